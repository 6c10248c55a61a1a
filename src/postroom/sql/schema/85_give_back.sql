-- Going back: what the upgrade replaced is there again, and schema postroom is gone. Old callers go on meanwhile, by the
-- functions of before, and find what was in flight.

-- give_back: gives the tables back to the programs that had them before postroom. For their owner, with no process of
-- postroom left: CALL postroom.give_back().
--
-- Kept: all rows, and the columns that were added; but due_at, by which claims go, since nobody keeps it true from here
-- on: a later migrate, which adds it anew, finds rows as from before postroom. Gone: the indexes (but the unique one, so
-- that a later migrate can build it), triggers, policies and jobs of ours, and what only schema postroom knows.
--
-- In transactions of their own, with one table's lock each: in one they cost callers a deadlock or two and 2 s. One that
-- was cut off is taken up by the next call.
CREATE OR REPLACE PROCEDURE postroom.give_back()
LANGUAGE plpgsql
AS $$
DECLARE
    v_table text;
    v_done  boolean;
BEGIN
    PERFORM postroom.refuse_give_back();
    PERFORM postroom.give_back_functions();
    COMMIT;
    PERFORM postroom.end_leases_of_the_dead();
    PERFORM postroom.give_back_times();
    COMMIT;
    FOREACH v_table IN ARRAY ARRAY['email_queue', 'webhook_retry_queue', 'rate_limit_counters'] LOOP
        LOOP
            BEGIN
                PERFORM postroom.give_back_table(v_table);
                v_done := true;
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                v_done := false;
            END;
            COMMIT;
            EXIT WHEN v_done;
            -- Others get their turn between two tries.
            PERFORM pg_catalog.pg_sleep(0.5);
        END LOOP;
    END LOOP;
    PERFORM postroom.give_back_cron();
    COMMIT;
    -- A call of a function of ours may still be under way.
    PERFORM pg_catalog.pg_sleep(1);
    DROP SCHEMA postroom CASCADE;
END;
$$;

-- refuse_give_back: raises where somebody would be hurt by it, before anything is changed.
CREATE OR REPLACE FUNCTION postroom.refuse_give_back()
RETURNS void
LANGUAGE plpgsql
STABLE
SET search_path = ''
AS $$
DECLARE
    v_problem text;
BEGIN
    SELECT format('a worker on %s (pid %s) was seen %s s ago', worker.host, worker.pid, worker.seen_s)
    INTO v_problem
    FROM (
        SELECT
            workers.host,
            workers.pid,
            GREATEST(extract(EPOCH FROM clock_timestamp() - max(workers.seen_at)), 0)::integer AS seen_s
        FROM postroom.workers
        GROUP BY workers.host, workers.pid
    ) AS worker
    WHERE worker.seen_s < 15
    ORDER BY worker.seen_s
    LIMIT 1;
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_in_use', MESSAGE = v_problem, HINT = 'Stop every process of postroom, then try again.';
    END IF;

    -- A column attachments that was there before is known to the programs that come now.
    SELECT count(*) || ' e-mails with attachments wait, and programs that know no attachments would send them without'
    INTO v_problem
    FROM public.email_queue AS email
    WHERE email.status IN ('pending', 'processing')
        AND postroom.attached_bytes(email.attachments) IS NOT NULL
        AND EXISTS (
            SELECT 1
            FROM pg_catalog.pg_attribute AS att
            WHERE att.attrelid = 'public.email_queue'::regclass
                AND att.attname = 'attachments'
                AND postroom.written_since_upgrade(att.xmin)
        )
    HAVING count(*) > 0;
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = v_problem,
            HINT = 'Let `postroom worker --drain` send them, or set them to ''failed'', then try again. Nothing was changed.';
    END IF;

    SELECT string_agg(DISTINCT format('view %s', class.oid::regclass), ', ')
    INTO v_problem
    FROM pg_catalog.pg_depend AS depend
    JOIN pg_catalog.pg_rewrite AS rule ON rule.oid = depend.objid
    JOIN pg_catalog.pg_class AS class ON class.oid = rule.ev_class
    LEFT JOIN pg_catalog.pg_class AS needed
        ON depend.refclassid = 'pg_catalog.pg_class'::regclass AND needed.oid = depend.refobjid
    LEFT JOIN pg_catalog.pg_proc AS called
        ON depend.refclassid = 'pg_catalog.pg_proc'::regclass AND called.oid = depend.refobjid
    CROSS JOIN LATERAL (
        SELECT array_agg(schema.oid) AS schemas
        FROM pg_catalog.pg_namespace AS schema
        WHERE schema.nspname = 'postroom'
            OR (schema.nspname = 'cron' AND obj_description(schema.oid, 'pg_namespace') LIKE 'postroom: %')
    ) AS ours
    WHERE depend.classid = 'pg_catalog.pg_rewrite'::regclass
        AND class.relnamespace <> ALL (ours.schemas)
        AND (
            COALESCE(needed.relnamespace, called.pronamespace) = ANY (ours.schemas)
            OR obj_description(called.oid, 'pg_proc') LIKE 'postroom:%'
            OR (
                needed.oid IN (to_regclass('public.email_queue'), to_regclass('public.webhook_retry_queue'))
                AND depend.refobjsubid = (
                    SELECT att.attnum FROM pg_catalog.pg_attribute AS att
                    WHERE att.attrelid = needed.oid AND att.attname = 'due_at'
                )
            )
        );
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = format('postroom''s functions, tables or column due_at are needed by %s', v_problem),
            HINT = 'Drop or change what is named, then try again. Nothing was changed.';
    END IF;
END;
$$;

-- give_back_functions: ours go aside, since calls of them may be under way; those of before come back, for whom they
-- were. Default privileges may give a new function to anybody, as its definer too.
CREATE OR REPLACE FUNCTION postroom.give_back_functions()
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
SET check_function_bodies = off -- they find their tables by a path that is not ours
AS $$
DECLARE
    v_ours    regprocedure;
    v_old     record;
    v_grantee text;
BEGIN
    FOR v_ours IN
        SELECT proc.oid
        FROM pg_catalog.pg_proc AS proc
        WHERE proc.pronamespace = to_regnamespace('public') AND obj_description(proc.oid, 'pg_proc') LIKE 'postroom:%'
    LOOP
        EXECUTE format('ALTER ROUTINE %s SET SCHEMA postroom', v_ours);
    END LOOP;

    FOR v_old IN
        -- Of one that was made anew and replaced again, the last: the first may have given something else, to others.
        SELECT DISTINCT ON (replaced.name) replaced.id, replaced.name, replaced.definition
        FROM postroom.replaced_objects AS replaced
        WHERE replaced.kind = 'function'
        ORDER BY replaced.name, replaced.id DESC
    LOOP
        EXECUTE v_old.definition;
        FOR v_grantee IN
            SELECT DISTINCT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
            FROM pg_catalog.pg_proc AS proc
            CROSS JOIN LATERAL pg_catalog.aclexplode(
                COALESCE(proc.proacl, pg_catalog.acldefault('f', proc.proowner))
            ) AS acl
            WHERE proc.oid = to_regprocedure('public.' || v_old.name) AND acl.grantee <> proc.proowner
        LOOP
            PERFORM postroom.revoke_all('ROUTINE', 'public.' || v_old.name, v_grantee);
        END LOOP;
        PERFORM postroom.give_back_rights('ROUTINE public.' || v_old.name, v_old.id);
    END LOOP;
END;
$$;

-- end_leases_of_the_dead: what a worker had in hand when it was killed. What follows is what its next claim would have
-- made of it: due as before, or an attempt that ended nobody knows how. But an event of which handlers are done is a dead
-- letter: the programs that come now would do those again, and nobody here knows whether there were others.
CREATE OR REPLACE FUNCTION postroom.end_leases_of_the_dead()
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_dead  record;
    v_ended record;
BEGIN
    IF NOT EXISTS (
        SELECT 1
        FROM pg_catalog.pg_attribute AS att
        WHERE att.attrelid = to_regclass('public.email_queue') AND att.attname = 'due_at'
    ) THEN
        RETURN; -- a call that was cut off has done it
    END IF;
    FOR v_dead IN
        SELECT 'email' AS queue, email.id, email.lease_no, email.leased_by, '' AS done
        FROM public.email_queue AS email
        WHERE email.status = 'processing' AND email.leased_by IS NOT NULL
        UNION ALL
        SELECT 'webhook', webhook.id, webhook.lease_no, webhook.leased_by, array_to_string(webhook.handlers_done, ', ')
        FROM public.webhook_retry_queue AS webhook
        WHERE webhook.status = 'processing' AND webhook.leased_by IS NOT NULL
    LOOP
        CONTINUE WHEN postroom.is_seen_to(v_dead.queue, v_dead.id);
        SELECT
            ARRAY[v_dead.id] AS ids,
            ARRAY[v_dead.lease_no] AS lease_nos,
            ARRAY[CASE
                WHEN v_dead.done <> '' THEN 'permanent'
                WHEN postroom.begun_by(v_dead.leased_by, v_dead.id, v_dead.lease_no) THEN 'crashed'
                ELSE 'released'
            END] AS verdicts,
            ARRAY['the worker died' || COALESCE('; done before: ' || NULLIF(v_dead.done, ''), '')] AS replies,
            ARRAY[NULL::double precision] AS retry_afters,
            ARRAY[NULL::jsonb] AS entries
        INTO v_ended;
        IF v_dead.queue = 'email' THEN
            PERFORM postroom.settle_emails(
                v_dead.leased_by, v_ended.ids, v_ended.lease_nos, v_ended.verdicts, v_ended.replies, v_ended.retry_afters,
                v_ended.entries
            );
        ELSE
            PERFORM postroom.settle_webhooks(
                v_dead.leased_by, v_ended.ids, v_ended.lease_nos, v_ended.verdicts, v_ended.replies, v_ended.retry_afters,
                v_ended.entries
            );
        END IF;
    END LOOP;
END;
$$;

-- give_back_times: where a table gives each row a time of its own (next_retry_at has a default), its programs ask for rows whose
-- time has come, and would never find those that we have written without one.
CREATE OR REPLACE FUNCTION postroom.give_back_times()
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_table regclass;
    v_id    uuid;
BEGIN
    FOR v_table IN
        SELECT att.attrelid::regclass
        FROM pg_catalog.pg_attribute AS att
        WHERE att.attrelid IN (to_regclass('public.email_queue'), to_regclass('public.webhook_retry_queue'))
            AND att.attname = 'next_retry_at'
            AND att.atthasdef
    LOOP
        FOR v_id IN EXECUTE format(
            'SELECT live.id FROM %s AS live WHERE live.status = ''pending'' AND live.next_retry_at IS NULL ORDER BY 1', v_table
        ) LOOP
            BEGIN
                EXECUTE format(
                    'UPDATE %s SET next_retry_at = clock_timestamp() '
                    'WHERE id = $1 AND status = ''pending'' AND next_retry_at IS NULL', v_table
                ) USING v_id;
            EXCEPTION WHEN OTHERS OR assert_failure THEN
                IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
                    RAISE;
                END IF;
            END;
        END LOOP;
    END LOOP;
END;
$$;

-- give_back_table: takes what is ours from a table, and puts back the policies and privileges that it had. Its lock is
-- taken first, in a short time or not at all: whoever comes after a statement that waits for a lock waits too.
CREATE OR REPLACE FUNCTION postroom.give_back_table(p_table text)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
SET lock_timeout = '600ms'
AS $$
DECLARE
    v_ours text;
BEGIN
    EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', p_table);
    FOR v_ours IN
        SELECT format('DROP TRIGGER %I ON public.%I', trigger.tgname, p_table)
        FROM pg_catalog.pg_trigger AS trigger
        JOIN pg_catalog.pg_proc AS proc ON proc.oid = trigger.tgfoid
        WHERE trigger.tgrelid = to_regclass('public.' || p_table) AND proc.pronamespace = to_regnamespace('postroom')
        UNION ALL
        SELECT format('DROP POLICY %I ON public.%I', policy.polname, p_table)
        FROM pg_catalog.pg_policy AS policy
        WHERE policy.polrelid = to_regclass('public.' || p_table) AND policy.polname LIKE 'postroom: %'
        UNION ALL
        SELECT format('DROP INDEX public.%I', class.relname)
        FROM pg_catalog.pg_index AS index
        JOIN pg_catalog.pg_class AS class ON class.oid = index.indexrelid
        WHERE index.indrelid = to_regclass('public.' || p_table) AND class.relname LIKE 'postroom\_%' AND NOT index.indisunique
        UNION ALL
        SELECT format('ALTER TABLE public.%I DROP COLUMN due_at', p_table)
        FROM pg_catalog.pg_attribute AS att
        WHERE att.attrelid = to_regclass('public.' || p_table) AND att.attname = 'due_at' AND NOT att.attisdropped
        UNION ALL
        SELECT format('REVOKE ALL ON TABLE public.%I FROM %s', p_table, outsiders.role)
        FROM pg_catalog.pg_class AS class
        CROSS JOIN LATERAL postroom.outsiders_in(class.relacl) AS outsiders (role)
        WHERE class.oid = to_regclass('public.' || p_table)
    LOOP
        EXECUTE v_ours;
    END LOOP;
    PERFORM postroom.give_back_rights('TABLE public.' || p_table);
END;
$$;

-- give_back_rights: the privileges and policies that were taken from an object, in the order in which they were; p_after:
-- of those that were kept later than this one of replaced_objects.
DROP FUNCTION IF EXISTS postroom.give_back_rights(text);
CREATE OR REPLACE FUNCTION postroom.give_back_rights(p_object text, p_after bigint DEFAULT 0)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_right record;
BEGIN
    FOR v_right IN
        SELECT replaced.kind, replaced.name, replaced.definition
        FROM postroom.replaced_objects AS replaced
        WHERE replaced.id > p_after
            AND (
                (replaced.kind = 'grant' AND replaced.name = p_object)
                OR (
                    replaced.kind = 'policy'
                    AND p_object LIKE 'TABLE %'
                    AND replaced.name LIKE '% on ' || regexp_replace(p_object, '^TABLE ', '')
                )
            )
        ORDER BY replaced.id
    LOOP
        BEGIN
            EXECUTE v_right.definition;
        EXCEPTION WHEN undefined_object OR duplicate_object OR insufficient_privilege THEN
            -- Its role is gone, somebody has made it again, or this user may not.
            RAISE NOTICE '% % is not put back: %', v_right.kind, v_right.name, SQLERRM;
        END;
    END LOOP;
END;
$$;

-- give_back_cron: takes our jobs from pg_cron, and our schema cron away; what a person has put into that stays.
CREATE OR REPLACE FUNCTION postroom.give_back_cron()
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_job postroom.jobs;
BEGIN
    IF postroom.may_use_pg_cron() THEN
        FOR v_job IN SELECT job.* FROM postroom.jobs AS job WHERE job.pg_cron_jobid IS NOT NULL LOOP
            v_job.active := false;
            PERFORM postroom.tell_pg_cron(v_job);
        END LOOP;
    END IF;
    BEGIN
        PERFORM postroom.drop_cron_schema();
    EXCEPTION WHEN dependent_objects_still_exist THEN
        RAISE NOTICE 'schema cron stays: %', SQLERRM;
    END;
END;
$$;

-- note_rights: writes down who may do what, before it is taken from them: those of p_roles, or (NULL) all but the owner.
--
-- p_object: as GRANT names it: `TABLE public.email_queue`. p_column: of a table, where it is about one alone.
CREATE OR REPLACE FUNCTION postroom.note_rights(
    p_object text, p_acl aclitem[], p_owner oid, p_roles text[] DEFAULT NULL, p_column text DEFAULT NULL
)
RETURNS void
LANGUAGE sql
SET search_path = ''
AS $$
    INSERT INTO postroom.replaced_objects (kind, name, definition)
    SELECT
        'grant',
        p_object,
        format(
            'GRANT %s ON %s TO %s%s',
            string_agg(
                held.privilege_type || COALESCE(' (' || quote_ident(p_column) || ')', ''), ', ' ORDER BY held.privilege_type
            ),
            p_object,
            held.role,
            CASE WHEN held.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        )
    FROM (
        SELECT
            acl.privilege_type,
            acl.is_grantable,
            CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS role
        FROM pg_catalog.aclexplode(p_acl) AS acl
        WHERE acl.grantee <> p_owner
    ) AS held
    WHERE p_roles IS NULL OR held.role = ANY (p_roles)
    GROUP BY held.role, held.is_grantable
    ORDER BY held.role;
$$;
