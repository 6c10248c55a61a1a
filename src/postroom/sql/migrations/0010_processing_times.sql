-- What attempts take and how they end, counted where they are settled.

CREATE TABLE postroom.tallies (
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    queue      text NOT NULL,
    kind       text NOT NULL,
    transport  text NOT NULL,
    outcome    text NOT NULL,
    status     text NOT NULL,

    wait_ms    integer[] NOT NULL,
    attempt_ms integer[] NOT NULL,
    total_ms   integer[] NOT NULL
)
WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);

CREATE TABLE postroom.processing_minutes (
    minute     timestamptz NOT NULL,
    queue      text NOT NULL,
    kind       text NOT NULL,
    transport  text NOT NULL,
    outcome    text NOT NULL,
    status     text NOT NULL,
    attempts   integer NOT NULL,
    wait       integer[] NOT NULL,
    attempt    integer[] NOT NULL,
    total      integer[] NOT NULL,
    CONSTRAINT processing_minutes_pkey PRIMARY KEY (minute, queue, kind, transport, outcome, status)
);

CREATE TABLE postroom.processing_totals (
    queue      text NOT NULL,
    kind       text NOT NULL,
    transport  text NOT NULL,
    outcome    text NOT NULL,
    status     text NOT NULL,
    attempts   bigint NOT NULL,
    wait       bigint[] NOT NULL,
    attempt    bigint[] NOT NULL,
    total      bigint[] NOT NULL,
    wait_ms    bigint NOT NULL,
    attempt_ms bigint NOT NULL,
    total_ms   bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT processing_totals_pkey PRIMARY KEY (queue, kind, transport, outcome, status)
)
WITH (fillfactor = 50);

-- When an e-mail that was to go out later was wanted: next_retry_at moves on with its limits and retries.
ALTER TABLE public.email_queue ADD COLUMN IF NOT EXISTS wanted_at timestamptz;
