-- Table public.email_queue. Where a hand-made project has it already, it keeps its rows, columns and
-- names; what is missing is added, with constant defaults, which touches no row.
--
-- One table a migration: each takes the lock of one table for some milliseconds, and never holds
-- one while it waits for another.

DO $$
BEGIN
    IF to_regclass('public.email_queue') IS NULL THEN
        CREATE TABLE public.email_queue (
            id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            to_email      text NOT NULL,
            subject       text NOT NULL,
            html          text NOT NULL,
            from_email    text,
            reply_to      text,
            attempts      integer DEFAULT 0,
            max_attempts  integer DEFAULT 6,
            next_retry_at timestamptz,
            status        text DEFAULT 'pending',
            last_error    text,
            error_count   integer DEFAULT 0,
            email_type    text,
            metadata      jsonb DEFAULT '{}',
            created_at    timestamptz DEFAULT now(),
            updated_at    timestamptz DEFAULT now(),
            sent_at       timestamptz,
            failed_at     timestamptz
        );
        -- Default privileges may give a new table to anybody: until the grants are made, it is nobody's.
        ALTER TABLE public.email_queue ENABLE ROW LEVEL SECURITY;
    END IF;
END;
$$;

ALTER TABLE public.email_queue
    ADD COLUMN IF NOT EXISTS from_email      text,
    ADD COLUMN IF NOT EXISTS reply_to        text,
    ADD COLUMN IF NOT EXISTS attempts        integer DEFAULT 0,
    ADD COLUMN IF NOT EXISTS max_attempts    integer DEFAULT 6,
    ADD COLUMN IF NOT EXISTS next_retry_at   timestamptz,
    ADD COLUMN IF NOT EXISTS status          text DEFAULT 'pending',
    ADD COLUMN IF NOT EXISTS last_error      text,
    ADD COLUMN IF NOT EXISTS error_count     integer DEFAULT 0,
    ADD COLUMN IF NOT EXISTS email_type      text,
    ADD COLUMN IF NOT EXISTS metadata        jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at      timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at      timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS sent_at         timestamptz,
    ADD COLUMN IF NOT EXISTS failed_at       timestamptz,
    ADD COLUMN IF NOT EXISTS text            text,
    ADD COLUMN IF NOT EXISTS headers         jsonb,
    ADD COLUMN IF NOT EXISTS idempotency_key text,
    ADD COLUMN IF NOT EXISTS priority        integer NOT NULL DEFAULT 0,
    -- When the row may be taken: the time it waits for, or the end of its lease. NULL in rows that are
    -- older than postroom, and in settled ones.
    ADD COLUMN IF NOT EXISTS due_at          timestamptz,
    -- Grows with every claim; who settles must name it.
    ADD COLUMN IF NOT EXISTS lease_no        bigint NOT NULL DEFAULT 0,
    -- The worker that holds the lease; NULL where an old caller does.
    ADD COLUMN IF NOT EXISTS leased_by       uuid,
    -- Why a pending row waits: limit:<key>, backoff, send_at, transport.
    ADD COLUMN IF NOT EXISTS waits_for       text,
    -- The limit under which a row that waits for its recipient was planned: another one makes the plan void.
    ADD COLUMN IF NOT EXISTS planned_under   text,
    -- How often a worker died in the middle of an attempt.
    ADD COLUMN IF NOT EXISTS crashes         integer NOT NULL DEFAULT 0,
    -- Why a dead letter is one: permanent, exhausted, uncertain, poison, transport, stale.
    ADD COLUMN IF NOT EXISTS dead_reason     text,
    -- The attempts, oldest first: [{"at": …, "ms": …, "outcome": …, "transport": …, "reply": …}].
    ADD COLUMN IF NOT EXISTS attempt_log     jsonb;

ALTER TABLE public.email_queue ALTER COLUMN max_attempts SET DEFAULT 6;

-- A live row is updated about twice in its life: room for that on its page, and a vacuum that comes for
-- the dead versions of the live rows, not for a share of all history.
ALTER TABLE public.email_queue SET (
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
                'ALTER TABLE public.email_queue ADD CONSTRAINT %I %s', con.conname, pg_get_constraintdef(con.oid)
            ) AS definition
        FROM pg_constraint AS con
        JOIN pg_attribute AS att
            ON att.attrelid = con.conrelid AND att.attname = 'status' AND att.attnum = ANY (con.conkey)
        WHERE con.contype = 'c' AND con.conrelid = 'public.email_queue'::regclass
    LOOP
        EXECUTE format(
            $query$
                SELECT string_agg(wanted.status, ', ')
                FROM unnest(ARRAY['pending', 'processing', 'sent', 'failed', 'dead_letter']) AS wanted (status)
                CROSS JOIN LATERAL (
                    SELECT (%s) AS holds
                    FROM jsonb_populate_record(
                        NULL::public.email_queue,
                        jsonb_build_object(
                            'id', gen_random_uuid(), 'status', wanted.status,
                            'to_email', 'ada@example.com', 'subject', 's', 'html', 'h',
                            'attempts', 1, 'max_attempts', 6, 'error_count', 0, 'metadata', '{}'::jsonb,
                            'created_at', now(), 'updated_at', now(), 'next_retry_at', now(),
                            'sent_at', now(), 'failed_at', now()
                        )
                    )
                ) AS answer
                WHERE NOT answer.holds
            $query$, v_check.expression
        ) INTO v_refused;
        IF v_refused IS NOT NULL THEN
            INSERT INTO postroom.replaced_objects (kind, name, definition)
            VALUES ('constraint', format('%I on public.email_queue', v_check.conname), v_check.definition);
            EXECUTE format('ALTER TABLE public.email_queue DROP CONSTRAINT %I', v_check.conname);
            RAISE NOTICE 'constraint % on public.email_queue refused status %: dropped, kept in postroom.replaced_objects',
                v_check.conname, v_refused;
        END IF;
    END LOOP;
END;
$$;
