-- pg_cron, where it is installed: it runs the two net jobs in place of our scheduler, and the views show its tables.

-- has_pg_cron: whether it is installed, in this database.
CREATE OR REPLACE FUNCTION postroom.has_pg_cron()
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_extension AS extension WHERE extension.extname = 'pg_cron');
$$;

-- may_use_pg_cron: pg_cron gives nobody the right to its schema by itself.
CREATE OR REPLACE FUNCTION postroom.may_use_pg_cron()
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT postroom.has_pg_cron() AND COALESCE(has_schema_privilege(to_regnamespace('cron')::oid, 'USAGE'), false);
$$;

-- read_cron_jobs: the jobs, whoever runs them. Beside pg_cron's, ours have a million on top of their ids.
--
-- SECURITY DEFINER, since pg_cron's row level security shows a user only its own jobs: service_role would see none. It
-- takes no argument, and shows what the owner sees.
CREATE OR REPLACE FUNCTION postroom.read_cron_jobs()
RETURNS TABLE (
    jobid bigint, schedule text, command text, nodename text, nodeport integer, database text, username text,
    active boolean, jobname text, run_by text, builtin text
)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = ''
AS $$
BEGIN
    IF NOT postroom.may_use_pg_cron() THEN
        RETURN QUERY
        SELECT
            job.jobid, job.schedule, job.command, job.nodename, job.nodeport, job.database, job.username, job.active,
            job.jobname, 'postroom', CASE WHEN job.builtin THEN job.jobname END
        FROM postroom.jobs AS job;
        RETURN;
    END IF;
    RETURN QUERY EXECUTE $query$
        SELECT
            job.jobid, job.schedule, job.command, job.nodename, job.nodeport, job.database, job.username, job.active,
            job.jobname::text, 'pg_cron', own.jobname
        FROM cron.job AS job
        LEFT JOIN postroom.jobs AS own ON own.pg_cron_jobid = job.jobid AND own.jobname = job.jobname::text
        UNION ALL
        SELECT
            job.jobid + 1000000, job.schedule, job.command, job.nodename, job.nodeport, job.database, job.username,
            job.active, job.jobname, 'postroom', CASE WHEN job.builtin THEN job.jobname END
        FROM postroom.jobs AS job
        WHERE NOT EXISTS (
            SELECT FROM cron.job AS theirs
            WHERE theirs.jobid = job.pg_cron_jobid AND theirs.jobname::text = job.jobname
        )
    $query$;
END;
$$;

-- read_cron_runs: the last runs (NULL: all), whoever ran them. SECURITY DEFINER as read_cron_jobs is.
CREATE OR REPLACE FUNCTION postroom.read_cron_runs(p_limit bigint)
RETURNS TABLE (
    jobid bigint, runid bigint, job_pid integer, database text, username text, command text, status text,
    return_message text, start_time timestamptz, end_time timestamptz
)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = ''
AS $$
BEGIN
    IF NOT postroom.may_use_pg_cron() THEN
        RETURN QUERY
        SELECT
            run.jobid, run.runid, run.job_pid, run.database, run.username, run.command, run.status,
            run.return_message, run.start_time, run.end_time
        FROM postroom.job_runs AS run
        ORDER BY run.runid DESC
        LIMIT p_limit;
        RETURN;
    END IF;
    RETURN QUERY EXECUTE $query$
        (SELECT
            run.jobid, run.runid, run.job_pid, run.database, run.username, run.command, run.status,
            run.return_message, run.start_time, run.end_time
        FROM cron.job_run_details AS run
        ORDER BY run.runid DESC
        LIMIT $1)
        UNION ALL
        (SELECT
            COALESCE(theirs.jobid, run.jobid + 1000000), run.runid + 1000000000, run.job_pid, run.database, run.username,
            run.command, run.status, run.return_message, run.start_time, run.end_time
        FROM postroom.job_runs AS run
        LEFT JOIN postroom.jobs AS job ON job.jobid = run.jobid
        LEFT JOIN cron.job AS theirs ON theirs.jobid = job.pg_cron_jobid AND theirs.jobname::text = job.jobname
        ORDER BY run.runid DESC
        LIMIT $1)
    $query$ USING p_limit;
END;
$$;

-- The jobs and their history, whoever runs them.
CREATE OR REPLACE VIEW postroom.cron_jobs AS
SELECT
    job.jobid,
    job.schedule,
    job.command,
    job.nodename,
    job.nodeport,
    job.database,
    job.username,
    job.active,
    job.jobname,
    job.run_by
FROM postroom.read_cron_jobs() AS job;

CREATE OR REPLACE VIEW postroom.cron_runs AS
SELECT
    run.jobid,
    run.runid,
    run.job_pid,
    run.database,
    run.username,
    run.command,
    run.status,
    run.return_message,
    run.start_time,
    run.end_time
FROM postroom.read_cron_runs(NULL) AS run;

-- wake_for_job: what pg_cron's job does where it cannot reach us: workers that sleep look for work.
CREATE OR REPLACE FUNCTION postroom.wake_for_job(p_name text)
RETURNS void
LANGUAGE sql
SET search_path = ''
AS $$
    SELECT postroom.wake(CASE p_name WHEN 'process-email-queue' THEN 'email' ELSE 'webhook' END);
$$;

-- post_job: what it does where pg_net is there: a request to our own door, which delivers what is due. The key that it
-- shows is good for ten minutes and this door, so that none stands in cron.job or in pg_cron's log.
CREATE OR REPLACE FUNCTION postroom.post_job(p_name text, p_url text)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_key     text := 'pj_' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
    v_request bigint;
BEGIN
    DELETE FROM postroom.job_keys WHERE job_keys.made_at < clock_timestamp() - interval '10 minutes';
    INSERT INTO postroom.job_keys (key_hash) VALUES (sha256(convert_to(v_key, 'UTF8')));
    EXECUTE 'SELECT net.http_post(url := $1, body := $2, headers := $3, timeout_milliseconds := 60000)'
    INTO v_request
    USING
        p_url || '/functions/v1/' || p_name,
        '{}'::jsonb,
        jsonb_build_object('Content-Type', 'application/json', 'Authorization', 'Bearer ' || v_key);
    RETURN v_request;
END;
$$;

-- tell_pg_cron: gives pg_cron one of our jobs as it is now, or takes it away.
CREATE OR REPLACE FUNCTION postroom.tell_pg_cron(p_job postroom.jobs)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_jobid bigint;
BEGIN
    IF p_job.active THEN
        EXECUTE 'SELECT cron.schedule($1, $2, $3)'
        INTO v_jobid
        USING p_job.jobname, p_job.schedule, p_job.pg_cron_command;
    ELSE
        EXECUTE 'SELECT cron.unschedule(job.jobid) FROM cron.job AS job WHERE job.jobid = $1 AND job.jobname::text = $2'
        USING p_job.pg_cron_jobid, p_job.jobname;
    END IF;
    UPDATE postroom.jobs SET pg_cron_jobid = v_jobid WHERE jobs.jobid = p_job.jobid;
END;
$$;

-- use_pg_cron: gives pg_cron the two net jobs, the alerts where it can reach us, and people's own that are in our tables;
-- says what it did and what it found.
-- Safe to call again and again. Only for the jobs' owner: pg_cron runs a job as whoever has scheduled it.
CREATE OR REPLACE FUNCTION postroom.use_pg_cron(p_public_url text)
RETURNS SETOF text
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_posts  boolean;
    v_job    postroom.jobs;
    v_theirs boolean;
    v_line   text;
BEGIN
    IF NOT postroom.has_pg_cron() OR NOT EXISTS (
        SELECT FROM postroom.jobs AS job WHERE job.builtin AND job.username = current_user
    ) THEN
        RETURN;
    ELSIF NOT postroom.may_use_pg_cron() THEN
        RETURN NEXT format(
            'pg_cron is installed, and %s may not use it, so postroom''s scheduler runs the jobs: GRANT USAGE ON SCHEMA cron TO %I',
            current_user, current_user
        );
        RETURN;
    END IF;
    v_posts := p_public_url IS NOT NULL
        AND COALESCE(has_schema_privilege(to_regnamespace('net')::oid, 'USAGE'), false)
        AND EXISTS (
            SELECT FROM pg_catalog.pg_proc AS proc
            WHERE proc.pronamespace = to_regnamespace('net')
                AND proc.proname = 'http_post'
                AND proc.proargnames @> '{url, body, headers, timeout_milliseconds}'::text[]
        );

    FOR v_job IN
        SELECT job.* FROM postroom.jobs AS job
        WHERE job.builtin
            AND (job.jobname IN ('process-email-queue', 'process-webhook-retries') OR v_posts AND job.jobname = 'alerts')
        ORDER BY job.jobid
        FOR UPDATE
    LOOP
        EXECUTE $query$
            SELECT EXISTS (
                SELECT FROM cron.job AS job
                WHERE job.jobname::text = $1 AND job.username = current_user AND NOT postroom.is_ours(job.command)
            )
        $query$
        INTO v_theirs
        USING v_job.jobname;
        IF v_theirs THEN
            UPDATE postroom.jobs SET pg_cron_jobid = NULL, pg_cron_command = NULL WHERE jobs.jobid = v_job.jobid;
            CONTINUE;  -- it is named below
        END IF;
        v_job.pg_cron_command := CASE
            WHEN v_posts THEN format('SELECT postroom.post_job(%L, %L)', v_job.jobname, p_public_url)
            ELSE format('SELECT postroom.wake_for_job(%L)', v_job.jobname)
        END;
        UPDATE postroom.jobs SET pg_cron_command = v_job.pg_cron_command WHERE jobs.jobid = v_job.jobid;
        PERFORM postroom.tell_pg_cron(v_job);
        RETURN NEXT format(
            'pg_cron %s %s%s', CASE WHEN v_job.active THEN 'runs' ELSE 'leaves out' END, v_job.jobname,
            CASE WHEN NOT v_posts THEN
                ': it wakes workers; to deliver where none runs it needs pg_net and POSTROOM_PUBLIC_URL'
            END
        );
    END LOOP;

    -- Where pg_cron cannot reach us any more, the alerts are our scheduler's again.
    FOR v_job IN
        SELECT job.* FROM postroom.jobs AS job
        WHERE job.builtin AND job.jobname = 'alerts' AND job.pg_cron_command IS NOT NULL AND NOT v_posts
        FOR UPDATE
    LOOP
        v_job.active := false;
        PERFORM postroom.tell_pg_cron(v_job);
        UPDATE postroom.jobs SET pg_cron_command = NULL WHERE jobs.jobid = v_job.jobid;
    END LOOP;

    FOR v_job IN
        SELECT job.* FROM postroom.jobs AS job
        WHERE NOT job.builtin AND job.username = current_user AND job.active
        ORDER BY job.jobid
        FOR UPDATE
    LOOP
        BEGIN
            IF v_job.jobname IS NULL THEN
                EXECUTE 'SELECT cron.schedule($1, $2)' USING v_job.schedule, v_job.command;
            ELSE
                EXECUTE 'SELECT cron.schedule($1, $2, $3)' USING v_job.jobname, v_job.schedule, v_job.command;
            END IF;
            DELETE FROM postroom.jobs WHERE jobs.jobid = v_job.jobid;
            RETURN NEXT format('job %s is pg_cron''s now', COALESCE(v_job.jobname, v_job.jobid::text));
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS v_line = MESSAGE_TEXT;
            RETURN NEXT format('job %s stays with postroom''s scheduler: %s', COALESCE(v_job.jobname, v_job.jobid::text), v_line);
        END;
    END LOOP;

    FOR v_line IN EXECUTE $query$
        SELECT format(
            'pg_cron''s job %s%s is yours and is kept; it calls %s', job.jobid, ' ' || quote_literal(job.jobname),
            substring(job.command FROM calls.pattern)
        )
        FROM cron.job AS job
        CROSS JOIN (VALUES (
            '(process-email-queue|process-webhook-retries|(?:get|mark)_(?:email|webhook)_\w+|cleanup_rate_limit_counters)'
        )) AS calls (pattern)
        WHERE job.command ~ calls.pattern AND NOT postroom.is_ours(job.command)
        ORDER BY job.jobid
    $query$ LOOP
        RETURN NEXT v_line;
    END LOOP;
END;
$$;

-- is_ours: whether a command is one that tell_pg_cron has written.
CREATE OR REPLACE FUNCTION postroom.is_ours(p_command text)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT p_command ~ '^SELECT postroom\.(post_job|wake_for_job)\(';
$$;

-- drop_cron_schema: gives the name of our schema cron over; whatever else stands in it, or on it, is named and stops it.
CREATE OR REPLACE FUNCTION postroom.drop_cron_schema()
RETURNS boolean
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    IF obj_description(to_regnamespace('cron'), 'pg_namespace') NOT LIKE 'postroom: %' IS NOT FALSE THEN
        RETURN false;
    END IF;
    DROP VIEW cron.job_run_details, cron.job;
    DROP FUNCTION cron.schedule(text, text), cron.schedule(text, text, text), cron.unschedule(bigint), cron.unschedule(text),
        cron.alter_job(bigint, text, text, text, text, boolean);
    -- A schema of version 1 has none.
    DROP FUNCTION IF EXISTS cron.schedule_in_database(text, text, text, text, text, boolean);
    DROP SCHEMA cron;
    RETURN true;
END;
$$;

-- cleanup_pg_cron_runs: pg_cron never forgets; of its history, what our own jobs have written.
CREATE OR REPLACE FUNCTION postroom.cleanup_pg_cron_runs(p_from tid, p_to tid, p_dry_run boolean)
RETURNS TABLE (rule text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_count bigint;
BEGIN
    IF p_dry_run THEN
        EXECUTE $query$
            SELECT count(*)
            FROM cron.job_run_details AS run
            WHERE run.ctid >= $1 AND run.ctid < $2 AND run.end_time < $3 AND postroom.is_ours(run.command)
        $query$
        INTO v_count
        USING p_from, p_to, postroom.kept_since('cron');
    ELSE
        EXECUTE $query$
            DELETE FROM cron.job_run_details AS run
            WHERE run.ctid >= $1 AND run.ctid < $2 AND run.end_time < $3 AND postroom.is_ours(run.command)
        $query$
        USING p_from, p_to, postroom.kept_since('cron');
        GET DIAGNOSTICS v_count = ROW_COUNT;
    END IF;
    RETURN QUERY SELECT 'cron', v_count;
END;
$$;
