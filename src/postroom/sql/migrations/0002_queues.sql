-- The three public tables. Where a hand-made project has them already they keep their rows, columns
-- and names; what is missing is added, with constant defaults, which touches no row.

CREATE TABLE IF NOT EXISTS public.email_queue (
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
    -- How often a worker died in the middle of an attempt.
    ADD COLUMN IF NOT EXISTS crashes         integer NOT NULL DEFAULT 0,
    -- Why a dead letter is one: permanent, exhausted, uncertain, poison, transport, stale.
    ADD COLUMN IF NOT EXISTS dead_reason     text,
    -- The attempts, oldest first: [{"at": …, "ms": …, "outcome": …, "transport": …, "reply": …}].
    ADD COLUMN IF NOT EXISTS attempt_log     jsonb;

ALTER TABLE public.email_queue ALTER COLUMN max_attempts SET DEFAULT 6;

CREATE TABLE IF NOT EXISTS public.webhook_retry_queue (
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
    ADD COLUMN IF NOT EXISTS attempt_log      jsonb;

ALTER TABLE public.webhook_retry_queue ALTER COLUMN max_attempts SET DEFAULT 6;

CREATE TABLE IF NOT EXISTS public.rate_limit_counters (
    key          text PRIMARY KEY,
    count        integer DEFAULT 0,
    window_start timestamptz,
    window_end   timestamptz,
    updated_at   timestamptz DEFAULT now()
);

ALTER TABLE public.rate_limit_counters
    ADD COLUMN IF NOT EXISTS count         integer DEFAULT 0,
    ADD COLUMN IF NOT EXISTS window_start  timestamptz,
    ADD COLUMN IF NOT EXISTS window_end    timestamptz,
    ADD COLUMN IF NOT EXISTS updated_at    timestamptz DEFAULT now(),
    -- The book of a limit (schema/30_limits.sql): when slots were taken, and how many then, oldest
    -- first. NULL in rows that are older than postroom and in the application's own keys.
    ADD COLUMN IF NOT EXISTS taken_at      timestamptz[],
    ADD COLUMN IF NOT EXISTS taken         integer[],
    -- Slots ever taken, and the last ticket given to a row that waits: ticket t is served as slot t.
    ADD COLUMN IF NOT EXISTS taken_total   bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS planned       bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS planned_high  bigint NOT NULL DEFAULT 0,
    -- The limit under which the tickets were given: another one makes them void.
    ADD COLUMN IF NOT EXISTS planned_under text,
    ADD COLUMN IF NOT EXISTS checked_at    timestamptz;

-- About 2.5 kB at most, written once a batch: uncompressed and in the row.
ALTER TABLE public.rate_limit_counters ALTER COLUMN taken_at SET STORAGE PLAIN;
ALTER TABLE public.rate_limit_counters ALTER COLUMN taken SET STORAGE PLAIN;

-- A live row is updated about twice in its life: room for that on its page, and a vacuum that comes for
-- the dead versions of the live rows, not for a share of all history.
ALTER TABLE public.email_queue SET (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.02
);
ALTER TABLE public.webhook_retry_queue SET (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.02
);
ALTER TABLE public.rate_limit_counters SET (
    fillfactor = 40,
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 1000
);

-- A CHECK that refuses one of the five statuses would refuse what the engine writes.
DO $$
DECLARE
    v_check record;
    v_status text;
    v_refuses boolean;
BEGIN
    FOR v_check IN
        SELECT
            con.conname,
            con.conrelid::regclass AS table_name,
            pg_get_constraintdef(con.oid) AS definition,
            CASE con.conrelid
                WHEN 'public.email_queue'::regclass
                    THEN ARRAY['pending', 'processing', 'sent', 'failed', 'dead_letter']
                ELSE ARRAY['pending', 'processing', 'processed', 'failed', 'dead_letter']
            END AS statuses
        FROM pg_constraint AS con
        JOIN pg_attribute AS att
            ON att.attrelid = con.conrelid AND att.attname = 'status' AND att.attnum = ANY (con.conkey)
        WHERE con.contype = 'c'
            AND con.conrelid IN ('public.email_queue'::regclass, 'public.webhook_retry_queue'::regclass)
    LOOP
        v_refuses := false;
        IF v_check.definition ~ '^CHECK' THEN
            FOREACH v_status IN ARRAY v_check.statuses LOOP
                BEGIN
                    -- Asked of the expression itself; one that needs other columns as well is told by
                    -- whether it names the status at all.
                    EXECUTE format(
                        'SELECT NOT (%s) FROM (SELECT %L::text AS status) AS row_with_status',
                        regexp_replace(regexp_replace(v_check.definition, '^CHECK \(', ''), '\)( NOT VALID)?( NO INHERIT)?$', ''),
                        v_status
                    ) INTO v_refuses;
                EXCEPTION WHEN undefined_column THEN
                    v_refuses := position(quote_literal(v_status) IN v_check.definition) = 0;
                END;
                EXIT WHEN v_refuses;
            END LOOP;
        END IF;
        IF v_refuses THEN
            INSERT INTO postroom.replaced_objects (kind, name, definition)
            VALUES (
                'constraint',
                format('%I on %s', v_check.conname, v_check.table_name),
                format('ALTER TABLE %s ADD CONSTRAINT %I %s', v_check.table_name, v_check.conname, v_check.definition)
            );
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', v_check.table_name, v_check.conname);
            RAISE NOTICE 'constraint % on % refused a status that the queue uses: dropped, kept in postroom.replaced_objects',
                v_check.conname, v_check.table_name;
        END IF;
    END LOOP;
END;
$$;
