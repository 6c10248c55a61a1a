-- Schema postroom: the private house. What other programs may rely on is in the contract
-- (schema public); everything here may change with any release.

-- Default privileges may give new things to anybody: who cannot enter the schema reaches nothing in it.
DO $$
DECLARE
    v_role name;
BEGIN
    -- Where it is there already, it needs no right to make schemas.
    IF to_regnamespace('postroom') IS NULL THEN
        CREATE SCHEMA postroom;
    END IF;
    REVOKE ALL ON SCHEMA postroom FROM PUBLIC;
    FOR v_role IN SELECT role.rolname FROM pg_roles AS role WHERE role.rolname IN ('anon', 'authenticated') LOOP
        EXECUTE format('REVOKE ALL ON SCHEMA postroom FROM %I', v_role);
    END LOOP;
END;
$$;

CREATE TABLE postroom.migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    breaking   boolean NOT NULL DEFAULT false,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The transaction that recorded it: rows that are younger were written while we migrate.
    applied_in xid8 NOT NULL DEFAULT pg_current_xact_id()
);

-- The parts that every migrate brings up to date: the functions (sql/schema), the rows of before.
CREATE TABLE postroom.repeatables (
    name       text PRIMARY KEY,
    version    integer NOT NULL,
    digest     text NOT NULL,
    -- The release of postroom that applied it: an older one leaves it as it is.
    program    text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What was replaced, with its text, so that a person can look it up or bring it back.
CREATE TABLE postroom.replaced_objects (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('function', 'policy', 'constraint', 'grant')),
    name        text NOT NULL,
    definition  text NOT NULL,
    replaced_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Roles named with `migrate --app-role`.
CREATE TABLE postroom.app_roles (
    name     text PRIMARY KEY,
    named_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Queue policy: it belongs to all workers together, so it is here and not in a file.
-- `value` is what a person wrote; the columns after it are that value, parsed once.
CREATE TABLE postroom.settings (
    key        text PRIMARY KEY,
    value      text NOT NULL,
    amount     integer,
    span       interval,
    spans      interval[],
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row a running engine: who it is, whether it sleeps, and which attempts it has begun.
CREATE TABLE postroom.workers (
    id              uuid PRIMARY KEY,
    queue           text NOT NULL CHECK (queue IN ('email', 'webhook')),
    host            text NOT NULL,
    pid             integer NOT NULL,
    version         text NOT NULL,
    started_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Whether it works on the queue; one that only attempts what somebody waits for does not.
    claims          boolean NOT NULL DEFAULT true,
    asleep          boolean NOT NULL DEFAULT false,
    -- The attempts that have begun and are not settled: ids and their lease numbers. This is the
    -- durable start: a lease that ends with its mark here is an uncertain outcome, one that
    -- ends without it counts in nothing.
    begun           uuid[] NOT NULL DEFAULT '{}',
    begun_lease_nos bigint[] NOT NULL DEFAULT '{}',
    -- How often the engine has settled, by verdict, since it started.
    settled         jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 20);

-- Written once a batch: uncompressed, and in the row as long as it fits there (300 attempts), so that the
-- update stays cheap.
ALTER TABLE postroom.workers SET (toast_tuple_target = 8160);
ALTER TABLE postroom.workers ALTER COLUMN begun SET STORAGE EXTERNAL;
ALTER TABLE postroom.workers ALTER COLUMN begun_lease_nos SET STORAGE EXTERNAL;

-- A transport that is down, as the workers last saw it.
CREATE TABLE postroom.transports (
    name         text PRIMARY KEY,
    paused_until timestamptz,
    reason       text,
    failures     integer NOT NULL DEFAULT 0,
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Rows whose own trigger or constraint refuses our update. They are left out of claims until
-- next_try_at; where an outcome is known (`verdict`), until it could be written down.
CREATE TABLE postroom.refused_rows (
    queue       text NOT NULL CHECK (queue IN ('email', 'webhook')),
    id          uuid NOT NULL,
    error       text NOT NULL,
    lease_no    bigint,
    verdict     text,
    reply       text,
    refused_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_try_at timestamptz NOT NULL,
    PRIMARY KEY (queue, id)
);

-- Rows that an old caller had in hand when postroom came, and until when: the upgrade does not touch them.
CREATE TABLE postroom.old_leases (
    queue   text NOT NULL CHECK (queue IN ('email', 'webhook')),
    id      uuid NOT NULL,
    ends_at timestamptz NOT NULL,
    PRIMARY KEY (queue, id)
);

-- A request as it came. Its row in public.webhook_retry_queue has what old callers know; this has the bytes.
-- No foreign key (a look at the queue for each event): a trigger forgets what belongs to rows that are deleted.
CREATE TABLE postroom.webhook_requests (
    id      uuid PRIMARY KEY,
    method  text NOT NULL,
    -- Path and query.
    target  text NOT NULL,
    -- [[name, value], …], in their order.
    headers jsonb NOT NULL,
    body    bytea NOT NULL
);

-- The events that were stored, by the provider's id, for 30 days: whatever cleanup did with their rows.
CREATE TABLE postroom.seen_webhooks (
    source   text NOT NULL,
    event_id text NOT NULL,
    id       uuid NOT NULL,
    seen_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, event_id)
);

-- Forgetting, oldest first. The table is written in the order of time, so a summary of its pages will do.
CREATE INDEX postroom_seen_webhooks_seen_at ON postroom.seen_webhooks USING brin (seen_at);

-- The handlers that programs bring with --app: a worker that does not have them leaves their events alone.
CREATE TABLE postroom.handlers (
    app    text NOT NULL,
    source text NOT NULL,
    name   text NOT NULL,
    -- Patterns of types, such as checkout.*
    events text[] NOT NULL,
    PRIMARY KEY (app, source, name)
);

-- The bearer keys of the HTTP API, hashed (postroom key new).
CREATE TABLE postroom.service_keys (
    key_hash   bytea PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What a claim, a start and a settle give back. Types of their own: a column that is added to a
-- queue later must not break a worker that is running.
CREATE TYPE postroom.claimed_email AS (
    id           uuid,
    lease_no     bigint,
    lease_s      double precision,
    to_email     text,
    subject      text,
    html         text,
    text         text,
    from_email   text,
    reply_to     text,
    headers      jsonb,
    created_at   timestamptz,
    attempts     integer,
    max_attempts integer,
    email_type   text
);

CREATE TYPE postroom.claimed_webhook AS (
    id               uuid,
    lease_no         bigint,
    lease_s          double precision,
    webhook_type     text,
    webhook_event_id text,
    event_type       text,
    payload          jsonb,
    headers          jsonb,
    created_at       timestamptz,
    attempts         integer,
    max_attempts     integer,
    metadata         jsonb,
    handlers_done    text[],
    handlers_stopped text[],
    -- Of the request as it came; NULL in rows that an old caller wrote.
    method           text,
    target           text,
    raw_headers      jsonb,
    body             bytea
);

-- state: 'begun'; 'waits' (put back, see waits_for and due_at); 'late' (the lease is lost).
CREATE TYPE postroom.begun_row AS (
    id        uuid,
    state     text,
    waits_for text,
    due_at    timestamptz
);

CREATE TYPE postroom.settled_row AS (
    id            uuid,
    status        text,
    attempts      integer,
    next_retry_at timestamptz,
    created_at    timestamptz
);

CREATE TYPE postroom.limit_rule AS (
    amount  integer,
    span    interval,
    written text
);
