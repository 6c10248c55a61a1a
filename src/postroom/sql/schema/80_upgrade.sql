-- What an upgrade does to rows, in batches that each commit: it settles those that are stuck and those that have
-- waited for too long, and touches no other.

-- upgrade_started_in: the transaction of the first migration. What is younger was written while we migrate.
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

-- settle_old_rows: one batch of rows from before postroom. A row in 'processing' whose last sign of life is more
-- than 15 minutes ago is stuck and becomes due; a younger one gets the rest of its 15 minutes. A row that
-- has waited for more than p_stale becomes a dead letter (NULL: none does).
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
    v_queue     text := CASE WHEN p_table = 'public.email_queue'::regclass THEN 'email' ELSE 'webhook' END;
    v_now       timestamptz := clock_timestamp();
    v_id        uuid;
    v_status    text;
    v_last_sign timestamptz;
    v_is_stale  boolean;
    v_is_fresh  boolean;
BEGIN
    stuck := 0;
    leased := 0;
    stale := 0;
    refused := 0;
    FOR v_id, v_status, v_last_sign, v_is_stale, v_is_fresh IN EXECUTE format(
        $query$
            SELECT
                old.id,
                old.status,
                GREATEST(old.created_at, old.updated_at, old.next_retry_at) AS last_sign,
                GREATEST(old.created_at, old.next_retry_at) < $1 - $2 AS is_stale,
                postroom.written_since_upgrade(old.xmin) AS is_fresh
            FROM %s AS old
            WHERE old.id > $5
                AND old.due_at IS NULL
                AND old.status IN ('pending', 'processing')
                AND (
                    old.status = 'processing'
                    OR GREATEST(old.created_at, old.next_retry_at) < $1 - $2
                )
                AND NOT EXISTS (
                    SELECT 1 FROM postroom.refused_rows AS refused
                    WHERE refused.queue = $3 AND refused.id = old.id
                )
            ORDER BY old.id
            LIMIT $4
            FOR UPDATE OF old SKIP LOCKED
        $query$, p_table
    ) USING v_now, p_stale, v_queue, p_limit, COALESCE(p_after, '00000000-0000-0000-0000-000000000000')
    LOOP
        last_id := v_id;
        BEGIN
            IF v_status = 'processing' AND (v_is_fresh OR v_last_sign > v_now - interval '15 minutes') THEN
                EXECUTE format('UPDATE %s SET due_at = $1 WHERE id = $2', p_table)
                USING
                    CASE WHEN v_is_fresh THEN v_now ELSE v_last_sign END + interval '15 minutes',
                    v_id;
                leased := leased + 1;
            ELSIF v_is_stale THEN
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
        EXCEPTION WHEN OTHERS THEN
            IF SQLSTATE ~ '^(40|53|55|57|58|XX00[12])' THEN
                RAISE;
            END IF;
            -- Its own trigger refuses: named, and out of the way.
            PERFORM postroom.set_aside(v_queue, v_id, SQLERRM, NULL, NULL, NULL);
            refused := refused + 1;
        END;
    END LOOP;
END;
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
                    AND (old.status = 'processing' OR GREATEST(old.created_at, old.next_retry_at) < $1 - $2)
                    AND NOT EXISTS (SELECT 1 FROM postroom.refused_rows AS refused WHERE refused.id = old.id)
            )
        $query$, p_table
    ) INTO v_found USING clock_timestamp(), p_stale;
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
