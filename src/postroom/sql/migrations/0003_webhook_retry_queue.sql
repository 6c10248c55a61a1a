-- Table public.webhook_retry_queue. Where a hand-made project has it already, it keeps its rows, columns and
-- names; what is missing is added, with constant defaults, which touches no row.
--
-- One table a migration: each takes the lock of one table for some milliseconds, and never holds
-- one while it waits for another.

DO $$
BEGIN
    IF to_regclass('public.webhook_retry_queue') IS NULL THEN
        CREATE TABLE public.webhook_retry_queue (
            id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            webhook_type     text NOT NULL,
            webhook_event_id text,
            payload          jsonb NOT NULL,
            headers          jsonb,
            attempts         integer DEFAULT 0,
            max_attempts     integer DEFAULT 6,
            next_retry_at    timestamptz,
            status           text DEFAULT 'pending',
            last_error       text,
            error_count      integer DEFAULT 0,
            last_error_at    timestamptz,
            metadata         jsonb DEFAULT '{}',
            created_at       timestamptz DEFAULT now(),
            updated_at       timestamptz DEFAULT now(),
            processed_at     timestamptz,
            failed_at        timestamptz
        );
        -- Default privileges may give a new table to anybody: until the grants are made, it is nobody's.
        ALTER TABLE public.webhook_retry_queue ENABLE ROW LEVEL SECURITY;
    END IF;
END;
$$;

ALTER TABLE public.webhook_retry_queue
    ADD COLUMN IF NOT EXISTS webhook_event_id text,
    ADD COLUMN IF NOT EXISTS headers          jsonb,
    ADD COLUMN IF NOT EXISTS attempts         integer DEFAULT 0,
    ADD COLUMN IF NOT EXISTS max_attempts     integer DEFAULT 6,
    ADD COLUMN IF NOT EXISTS next_retry_at    timestamptz,
    ADD COLUMN IF NOT EXISTS status           text DEFAULT 'pending',
    ADD COLUMN IF NOT EXISTS last_error       text,
    ADD COLUMN IF NOT EXISTS error_count      integer DEFAULT 0,
    ADD COLUMN IF NOT EXISTS last_error_at    timestamptz,
    ADD COLUMN IF NOT EXISTS metadata         jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at       timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at       timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS processed_at     timestamptz,
    ADD COLUMN IF NOT EXISTS failed_at        timestamptz,
    ADD COLUMN IF NOT EXISTS priority         integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS due_at           timestamptz,
    ADD COLUMN IF NOT EXISTS lease_no         bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS leased_by        uuid,
    ADD COLUMN IF NOT EXISTS waits_for        text,
    ADD COLUMN IF NOT EXISTS crashes          integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS dead_reason      text,
    -- The provider's type, such as checkout.session.completed.
    ADD COLUMN IF NOT EXISTS event_type       text,
    -- The handlers that are done: a retry runs only the others.
    ADD COLUMN IF NOT EXISTS handlers_done    text[] NOT NULL DEFAULT '{}',
    -- Those that want it never again (410 Gone, or a permanent failure).
    ADD COLUMN IF NOT EXISTS handlers_stopped text[] NOT NULL DEFAULT '{}',
    -- Events of one lane are handled one after the other, in the order of lane_place.
    ADD COLUMN IF NOT EXISTS lane             text,
    ADD COLUMN IF NOT EXISTS lane_place       numeric,
    -- Whether a dead letter holds those behind it.
    ADD COLUMN IF NOT EXISTS lane_holds       boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS attempt_log      jsonb;

ALTER TABLE public.webhook_retry_queue ALTER COLUMN max_attempts SET DEFAULT 6;

-- A live row is updated about twice in its life: room for that on its page, and a vacuum that comes for
-- the dead versions of the live rows, not for a share of all history.
ALTER TABLE public.webhook_retry_queue SET (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.02
);

-- A CHECK that refuses one of the five statuses would refuse what the engine writes. It is asked about a
-- row as the engine writes it, with the columns that it may name besides the status.
DO $$
DECLARE
    v_check   record;
    v_refused text;
BEGIN
    FOR v_check IN
        SELECT
            con.conname,
            pg_get_expr(con.conbin, con.conrelid) AS expression,
            format(
                'ALTER TABLE public.webhook_retry_queue ADD CONSTRAINT %I %s', con.conname, pg_get_constraintdef(con.oid)
            ) AS definition
        FROM pg_constraint AS con
        JOIN pg_attribute AS att
            ON att.attrelid = con.conrelid AND att.attname = 'status' AND att.attnum = ANY (con.conkey)
        WHERE con.contype = 'c' AND con.conrelid = 'public.webhook_retry_queue'::regclass
    LOOP
        EXECUTE format(
            $query$
                SELECT string_agg(wanted.status, ', ')
                FROM unnest(ARRAY['pending', 'processing', 'processed', 'failed', 'dead_letter']) AS wanted (status)
                CROSS JOIN LATERAL (
                    SELECT (%s) AS holds
                    FROM jsonb_populate_record(
                        NULL::public.webhook_retry_queue,
                        jsonb_build_object(
                            'id', gen_random_uuid(), 'status', wanted.status,
                            'webhook_type', 'stripe', 'webhook_event_id', 'evt_1', 'payload', '{}'::jsonb,
                            'attempts', 1, 'max_attempts', 6, 'error_count', 0, 'metadata', '{}'::jsonb,
                            'created_at', now(), 'updated_at', now(), 'next_retry_at', now(),
                            'processed_at', now(), 'failed_at', now()
                        )
                    )
                ) AS answer
                WHERE NOT answer.holds
            $query$, v_check.expression
        ) INTO v_refused;
        IF v_refused IS NOT NULL THEN
            INSERT INTO postroom.replaced_objects (kind, name, definition)
            VALUES ('constraint', format('%I on public.webhook_retry_queue', v_check.conname), v_check.definition);
            EXECUTE format('ALTER TABLE public.webhook_retry_queue DROP CONSTRAINT %I', v_check.conname);
            RAISE NOTICE 'constraint % on public.webhook_retry_queue refused status %: dropped, kept in postroom.replaced_objects',
                v_check.conname, v_refused;
        END IF;
    END LOOP;
END;
$$;
