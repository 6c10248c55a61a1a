-- What an upgrade does to rows, in batches that each commit: it settles those that are stuck and those that have
-- waited for too long, and touches no other.

-- written_since_upgrade: whether a row is younger than the first migration: it was written while we migrate.
CREATE OR REPLACE FUNCTION postroom.written_since_upgrade(p_xmin xid)
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT age(p_xmin) <= age(first.applied_in::xid)
    FROM postroom.migrations AS first
    WHERE first.version = 1;
$$;

-- old_row_fate: what the upgrade makes of a row from before postroom; NULL: it is left alone.
--
-- 'leased': in the hand of an old caller, whose 15 minutes count from the row's last sign of life. 'stale': it has
-- waited for more than p_stale (NULL: none does), counted from when it should have gone out; where nobody wrote
-- down when it was made, from its last change. 'stuck': its caller is gone.
CREATE OR REPLACE FUNCTION postroom.old_row_fate(
    p_status text, p_created_at timestamptz, p_updated_at timestamptz, p_next_retry_at timestamptz,
    p_fresh boolean, p_now timestamptz, p_stale interval
)
RETURNS text
LANGUAGE sql
STABLE
AS $$
    SELECT CASE
        WHEN p_status = 'processing' AND (
            p_fresh OR GREATEST(p_created_at, p_updated_at, p_next_retry_at) > p_now - interval '15 minutes'
        ) THEN 'leased'
        WHEN GREATEST(COALESCE(p_created_at, p_updated_at), p_next_retry_at) < p_now - p_stale THEN 'stale'
        WHEN p_status = 'processing' THEN 'stuck'
    END;
$$;

-- settle_old_rows: one batch of rows from before postroom.
--
-- A row in an old caller's hand is not touched: the end of its lease is written beside it. One whose own trigger
-- refuses its settling is set aside with the outcome that is to be written.
--
-- Goes by id, from the row after p_after: last_id is where the next batch begins, NULL at the end of the table.
-- Rows that somebody has locked are passed over: has_old_rows tells whether another pass is needed.
CREATE OR REPLACE FUNCTION postroom.settle_old_rows(
    p_table regclass, p_stale interval, p_after uuid, p_limit integer,
    OUT last_id uuid, OUT stuck integer, OUT leased integer, OUT stale integer, OUT refused integer
)
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_queue    text := CASE WHEN p_table = 'public.email_queue'::regclass THEN 'email' ELSE 'webhook' END;
    v_now      timestamptz := clock_timestamp();
    v_id       uuid;
    v_lease_no bigint;
    v_fate     text;
    v_claimed  timestamptz;
BEGIN
    stuck := 0;
    leased := 0;
    stale := 0;
    refused := 0;
    FOR v_id, v_lease_no, v_fate, v_claimed IN EXECUTE format(
        $query$
            SELECT
                old.id,
                old.lease_no,
                fate.fate,
                CASE
                    WHEN fate.is_fresh THEN $1
                    ELSE LEAST(GREATEST(old.created_at, old.updated_at, old.next_retry_at), $1)
                END
            FROM %s AS old
            CROSS JOIN LATERAL (
                SELECT
                    postroom.written_since_upgrade(old.xmin) AS is_fresh,
                    postroom.old_row_fate(
                        old.status, old.created_at, old.updated_at, old.next_retry_at,
                        postroom.written_since_upgrade(old.xmin), $1, $2
                    ) AS fate
            ) AS fate
            WHERE old.id > $5
                AND old.due_at IS NULL
                AND old.status IN ('pending', 'processing')
                AND fate.fate IS NOT NULL
                AND NOT postroom.is_seen_to($3, old.id)
            ORDER BY old.id
            LIMIT $4
            FOR UPDATE OF old SKIP LOCKED
        $query$, p_table
    ) USING v_now, p_stale, v_queue, p_limit, COALESCE(p_after, '00000000-0000-0000-0000-000000000000')
    LOOP
        last_id := v_id;
        IF v_fate = 'leased' THEN
            INSERT INTO postroom.old_leases (queue, id, ends_at)
            VALUES (v_queue, v_id, v_claimed + interval '15 minutes')
            ON CONFLICT DO NOTHING;
            leased := leased + 1;
            CONTINUE;
        END IF;
        BEGIN
            IF v_fate = 'stale' THEN
                EXECUTE format(
                    $update$
                        UPDATE %s
                        SET status = 'dead_letter', last_error = 'stale at upgrade', dead_reason = 'stale',
                            failed_at = $1, updated_at = $1
                        WHERE id = $2
                    $update$, p_table
                ) USING v_now, v_id;
                stale := stale + 1;
            ELSE
                EXECUTE format(
                    'UPDATE %s SET status = ''pending'', due_at = $1, updated_at = $1 WHERE id = $2', p_table
                ) USING v_now, v_id;
                stuck := stuck + 1;
            END IF;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            IF SQLSTATE ~ '^(40|53|55|57|58|XX00[12])' THEN
                RAISE;
            END IF;
            PERFORM postroom.set_aside(
                v_queue, v_id, SQLERRM, v_lease_no,
                CASE v_fate WHEN 'stale' THEN 'abandoned' ELSE 'released' END,
                CASE v_fate WHEN 'stale' THEN 'stale at upgrade' END
            );
            refused := refused + 1;
        END;
    END LOOP;
END;
$$;

-- is_seen_to: whether the upgrade has seen to a row without touching it.
CREATE OR REPLACE FUNCTION postroom.is_seen_to(p_queue text, p_id uuid)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
    SELECT EXISTS (SELECT 1 FROM postroom.old_leases AS lease WHERE lease.queue = p_queue AND lease.id = p_id)
        OR EXISTS (SELECT 1 FROM postroom.refused_rows AS refused WHERE refused.queue = p_queue AND refused.id = p_id);
$$;

-- old_lease_ended: whether a row that an old caller claimed before postroom came may be taken.
CREATE OR REPLACE FUNCTION postroom.old_lease_ended(p_queue text, p_id uuid)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
    SELECT NOT EXISTS (
        SELECT 1
        FROM postroom.old_leases AS lease
        WHERE lease.queue = p_queue AND lease.id = p_id AND lease.ends_at > clock_timestamp()
    );
$$;

-- has_old_rows: whether settle_old_rows has something left to do.
CREATE OR REPLACE FUNCTION postroom.has_old_rows(p_table regclass, p_stale interval)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_found boolean;
BEGIN
    EXECUTE format(
        $query$
            SELECT EXISTS (
                SELECT 1
                FROM %s AS old
                WHERE old.due_at IS NULL
                    AND old.status IN ('pending', 'processing')
                    AND postroom.old_row_fate(
                        old.status, old.created_at, old.updated_at, old.next_retry_at, false, $1, $2
                    ) IS NOT NULL
                    AND NOT postroom.is_seen_to($3, old.id)
            )
        $query$, p_table
    )
    INTO v_found
    USING
        clock_timestamp(), p_stale, CASE WHEN p_table = 'public.email_queue'::regclass THEN 'email' ELSE 'webhook' END;
    RETURN v_found;
END;
$$;

-- drop_replaced_functions: what 60_callers.sql moved out of the way. Their text is in replaced_objects.
CREATE OR REPLACE FUNCTION postroom.drop_replaced_functions()
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_old record;
BEGIN
    FOR v_old IN
        SELECT proc.oid::regprocedure AS name
        FROM pg_catalog.pg_proc AS proc
        WHERE proc.pronamespace = to_regnamespace('postroom') AND proc.proname LIKE '\_replaced\_%'
    LOOP
        EXECUTE format('DROP ROUTINE %s', v_old.name);
    END LOOP;
END;
$$;

-- let_triggers_find_names: gives the functions that write the queues the search_path that a session has here.
--
-- A trigger of the application's own that names a table without its schema works for whoever writes the row with a
-- plain statement, and must work where we write it: with our empty path every one of its rows was set aside, and
-- enqueue_email failed.
CREATE OR REPLACE FUNCTION postroom.let_triggers_find_names()
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_path text := (SELECT setting.reset_val FROM pg_catalog.pg_settings AS setting WHERE setting.name = 'search_path');
    v_proc regprocedure;
BEGIN
    FOR v_proc IN
        SELECT proc.oid::regprocedure
        FROM pg_catalog.pg_proc AS proc
        WHERE NOT proc.prosecdef
            AND (
                proc.pronamespace = to_regnamespace('postroom')
                OR (
                    proc.pronamespace = to_regnamespace('public')
                    AND obj_description(proc.oid, 'pg_proc') LIKE 'postroom:%'
                )
            )
            AND proc.prosrc ~ '(UPDATE|INSERT INTO|DELETE FROM)\s+(public\.(email_queue|webhook_retry_queue)|%s)'
            AND NOT COALESCE('search_path=' || v_path = ANY (proc.proconfig), false)
            AND v_path <> ''
        ORDER BY 1
    LOOP
        EXECUTE format('ALTER ROUTINE %s SET search_path TO %s', v_proc, v_path);
    END LOOP;
END;
$$;

-- let_owner_in: where row level security is forced upon the tables' owner too, whoever works as it would see no row.
CREATE OR REPLACE FUNCTION postroom.let_owner_in()
RETURNS void
LANGUAGE sql
SET search_path = ''
AS $$
    SELECT postroom.make_policy(
        class.oid, 'postroom: its owner may do everything',
        format('FOR ALL TO %s USING (true) WITH CHECK (true)', class.relowner::regrole)
    )
    FROM pg_catalog.pg_class AS class
    JOIN pg_catalog.pg_roles AS role ON role.oid = class.relowner
    WHERE class.oid IN (
            to_regclass('public.email_queue'), to_regclass('public.webhook_retry_queue'),
            to_regclass('public.rate_limit_counters')
        )
        AND class.relforcerowsecurity
        AND NOT role.rolsuper
        AND NOT role.rolbypassrls;
$$;

-- Before the rows of before are looked at.
SELECT postroom.let_owner_in();
