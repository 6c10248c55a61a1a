-- What is: the tables, types and indexes that sql/migrations add up to on an empty database. This file is for
-- reading. migrate does not run it; a test builds a database from it and compares (docs/decisions/0003).
--
-- Three tables in schema public, which applications and old callers share with us, and the private house in
-- schema postroom. The functions, triggers, policies and grants are in the files after this one.

CREATE SCHEMA postroom;

-- E-mail: one row is one message to one recipient, and the only truth about it.
--
-- No column of it has a constraint of ours but NOT NULL on what we add, with a default: an old caller may
-- write whatever it wrote before. Two triggers give what it writes its meaning (20_queue.sql).
CREATE TABLE public.email_queue (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),

    -- The message. html is always there; text is made from it where it is NULL.
    to_email        text NOT NULL,
    subject         text NOT NULL,
    html            text NOT NULL,
    from_email      text,        -- written by the first claim where it was NULL, so that every attempt sends the same
    reply_to        text,

    -- Its state. attempts counts every attempt that ended, error_count those of them that failed.
    attempts        integer DEFAULT 0,
    max_attempts    integer DEFAULT 6,           -- the first try and five retries
    next_retry_at   timestamptz,                 -- what a pending row waits for; due_at is what claims go by
    status          text DEFAULT 'pending',      -- pending, processing, sent, failed, dead_letter
    last_error      text,
    error_count     integer DEFAULT 0,

    -- The application's own: nothing here reads a decision from them.
    email_type      text,
    metadata        jsonb DEFAULT '{}',

    created_at      timestamptz DEFAULT now(),   -- the Date of the message
    updated_at      timestamptz DEFAULT now(),
    sent_at         timestamptz,
    failed_at       timestamptz,                 -- since when it is a dead letter, or failed

    -- Columns that postroom adds to a table that was there before.
    text            text,                        -- the plain part
    headers         jsonb,                       -- further headers: {"List-Unsubscribe": "…"}
    idempotency_key text,                        -- the same key is the same e-mail, as long as its row exists
    priority        integer NOT NULL DEFAULT 0,  -- higher goes first among what is due

    -- The lease (docs/decisions/0002). due_at is when the row may be taken: the time it waits for, or the end
    -- of its lease. NULL in settled rows, and in those older than postroom: next_retry_at stands in there.
    due_at          timestamptz DEFAULT clock_timestamp(),
    lease_no        bigint NOT NULL DEFAULT 0,   -- grows with every claim; who settles must name it
    leased_by       uuid,                        -- the worker, see postroom.workers; NULL: an old caller holds it

    -- For people who ask why it is where it is (`postroom explain`).
    waits_for       text,                        -- limit:<key>, backoff, send_at, transport
    planned_under   text,                        -- the recipient's limit that due_at was planned by; another voids it
    crashes         integer NOT NULL DEFAULT 0,  -- how often a worker died during an attempt; three are poison
    dead_reason     text,                        -- permanent, exhausted, uncertain, poison, transport, stale
    attempt_log     jsonb,                       -- the last twenty: [{"at": …, "outcome": …, "transport": …, …}]

    -- For figures of how long it took: set where it was to go out later, once next_retry_at is about to move on.
    wanted_at       timestamptz,

    -- [{"filename": …, "content": base64, "content_type"?, "content_id"?}] (docs/decisions/0031).
    attachments     jsonb
)
-- A live row is updated about twice in its life: room for that on its page, and a vacuum that comes for the dead
-- versions of the live rows, not for a share of all history.
WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.02
);

-- Not compressed: files hardly shrink, and so their size is known unread.
ALTER TABLE public.email_queue ALTER COLUMN attachments SET STORAGE EXTERNAL;

-- claim_emails, email_wait_s: what is live, by priority, oldest due first. It holds no history.
CREATE INDEX postroom_email_due
    ON public.email_queue (priority DESC, (COALESCE(due_at, next_retry_at, '-infinity'::timestamptz)))
    WHERE status IN ('pending', 'processing');

-- enqueue_email, begin_direct_email: the row that has this key.
CREATE UNIQUE INDEX postroom_email_idempotency_key
    ON public.email_queue (idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- count_lines: how many rows wait for one limit; replan_limited_emails: rows that were planned under a
-- limit that holds no longer.
CREATE INDEX postroom_email_planned
    ON public.email_queue (planned_under, waits_for)
    WHERE status = 'pending' AND planned_under IS NOT NULL;

-- dead-letters list, newest first; the monitoring query that counts them.
CREATE INDEX postroom_email_dead_letter
    ON public.email_queue (failed_at)
    WHERE status = 'dead_letter';

-- Those of one reason, and how many there are.
CREATE INDEX postroom_email_dead_reason
    ON public.email_queue ((COALESCE(dead_reason, 'none')), failed_at, id) INCLUDE (dead_reason)
    WHERE status = 'dead_letter';

-- Lists of what has ended, newest first. A row enters one of them once, when it ends.
CREATE INDEX postroom_email_sent
    ON public.email_queue (sent_at)
    WHERE status = 'sent';

CREATE INDEX postroom_email_failed
    ON public.email_queue (failed_at)
    WHERE status = 'failed';

ALTER TABLE public.email_queue ENABLE ROW LEVEL SECURITY;

-- Incoming webhooks: one row is one event, whoever sent it. Columns that email_queue has too mean the same.
CREATE TABLE public.webhook_retry_queue (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),

    webhook_type     text NOT NULL,               -- the source: stripe
    webhook_event_id text,                        -- the provider's own id of the event
    payload          jsonb NOT NULL,              -- the body, where jsonb can hold it
    headers          jsonb,                       -- as they came

    attempts         integer DEFAULT 0,
    max_attempts     integer DEFAULT 6,
    next_retry_at    timestamptz,
    status           text DEFAULT 'pending',      -- pending, processing, processed, failed, dead_letter
    last_error       text,
    error_count      integer DEFAULT 0,
    last_error_at    timestamptz,
    metadata         jsonb DEFAULT '{}',
    created_at       timestamptz DEFAULT now(),
    updated_at       timestamptz DEFAULT now(),
    processed_at     timestamptz,
    failed_at        timestamptz,

    -- Columns that postroom adds.
    priority         integer NOT NULL DEFAULT 0,
    due_at           timestamptz DEFAULT clock_timestamp(),
    lease_no         bigint NOT NULL DEFAULT 0,
    leased_by        uuid,
    waits_for        text,
    crashes          integer NOT NULL DEFAULT 0,
    dead_reason      text,
    event_type       text,                        -- the provider's, such as checkout.session.completed
    handlers_done    text[] NOT NULL DEFAULT '{}', -- a retry runs only the others
    handlers_stopped text[] NOT NULL DEFAULT '{}', -- those that want it never again (410 Gone)
    lane             text,                        -- events of one lane go one after the other,
    lane_place       numeric,                     -- in this order
    lane_holds       boolean NOT NULL DEFAULT false, -- whether a dead letter holds those behind it
    attempt_log      jsonb
)
WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.02
);

-- claim_webhooks, webhook_wait_s.
CREATE INDEX postroom_webhook_due
    ON public.webhook_retry_queue (priority DESC, (COALESCE(due_at, next_retry_at, '-infinity'::timestamptz)))
    WHERE status IN ('pending', 'processing');

-- dead-letters list, newest first; the monitoring query that counts them.
CREATE INDEX postroom_webhook_dead_letter
    ON public.webhook_retry_queue (failed_at)
    WHERE status = 'dead_letter';

-- Those of one reason, and how many there are.
CREATE INDEX postroom_webhook_dead_reason
    ON public.webhook_retry_queue ((COALESCE(dead_reason, 'none')), failed_at, id) INCLUDE (dead_reason)
    WHERE status = 'dead_letter';

-- Lists of what has ended, newest first.
CREATE INDEX postroom_webhook_processed
    ON public.webhook_retry_queue (processed_at)
    WHERE status = 'processed';

CREATE INDEX postroom_webhook_failed
    ON public.webhook_retry_queue (failed_at)
    WHERE status = 'failed';

-- The claim of an event in a lane: whether one stands before it.
CREATE INDEX postroom_webhook_lane
    ON public.webhook_retry_queue (webhook_type, lane, lane_place, id)
    WHERE lane IS NOT NULL AND status IN ('pending', 'processing', 'dead_letter');

ALTER TABLE public.webhook_retry_queue ENABLE ROW LEVEL SECURITY;

-- Limits: one row a key. email:global and email:recipient:<address> are books of the engine (docs/decisions/0005);
-- the application's own keys are windows of 60 s.
CREATE TABLE public.rate_limit_counters (
    key           text PRIMARY KEY,
    count         integer DEFAULT 0,           -- what counts at present
    window_start  timestamptz,
    window_end    timestamptz,
    updated_at    timestamptz DEFAULT now(),

    -- The book: when slots were taken and how many then, oldest first. NULL in the application's own keys.
    taken_at      timestamptz[],
    taken         integer[],
    -- Slots ever taken, and the last ticket given to a row that waits: ticket t is served as slot t.
    taken_total   bigint NOT NULL DEFAULT 0,
    planned       bigint NOT NULL DEFAULT 0,
    planned_high  bigint NOT NULL DEFAULT 0,   -- the same for those of a higher priority, who have a line of their own
    planned_under text,                        -- the limit that the tickets were given under; another voids them
    checked_at    timestamptz                  -- when the line was last counted
)
-- A book is about 2.5 kB and written once a batch: uncompressed, in the row, with room on its page.
WITH (
    toast_tuple_target = 8160,
    fillfactor = 40,
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 1000
);

ALTER TABLE public.rate_limit_counters
    ALTER COLUMN taken_at SET STORAGE EXTERNAL,
    ALTER COLUMN taken SET STORAGE EXTERNAL;

ALTER TABLE public.rate_limit_counters ENABLE ROW LEVEL SECURITY;

-- The numbered migrations that this database has seen.
CREATE TABLE postroom.migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    breaking   boolean NOT NULL DEFAULT false,            -- an older program must not start on it
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_in xid8 NOT NULL DEFAULT pg_current_xact_id() -- rows that are younger were written during the upgrade
);

-- The parts that every migrate brings up to date: the functions (the files after this one), the rows of before.
CREATE TABLE postroom.repeatables (
    name       text PRIMARY KEY,
    version    integer NOT NULL,
    digest     text NOT NULL,
    -- The release of postroom that applied it: an older one leaves it as it is.
    program    text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What the upgrade replaced, with its text, so that a person can look it up or bring it back.
CREATE TABLE postroom.replaced_objects (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('function', 'policy', 'constraint', 'grant')),
    name        text NOT NULL,
    definition  text NOT NULL,
    replaced_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Roles named with `migrate --app-role`: each later migrate grants them what they need.
CREATE TABLE postroom.app_roles (
    name     text PRIMARY KEY,
    named_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Queue policy (10_settings.sql): it belongs to all workers together, so it is here and not in a file.
CREATE TABLE postroom.settings (
    key        text PRIMARY KEY,
    value      text NOT NULL,      -- what a person wrote; a trigger parses it into the next three, or refuses it
    amount     integer,            -- limits: how many e-mails
    span       interval,           -- limits: the window; lease and retention: the time
    spans      interval[],         -- backoff: the delays
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row a running engine: who it is, whether it sleeps, and which attempts it has begun.
CREATE TABLE postroom.workers (
    id              uuid NOT NULL,
    queue           text NOT NULL CHECK (queue IN ('email', 'webhook')),
    host            text NOT NULL,
    pid             integer NOT NULL,
    version         text NOT NULL,
    started_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    claims          boolean NOT NULL DEFAULT true,  -- false: it only attempts what somebody waits for
    asleep          boolean NOT NULL DEFAULT false, -- an insert wakes it by NOTIFY

    -- The start marks (docs/decisions/0004): attempts that have begun and are not settled, with their lease
    -- numbers. A lease that ends with its mark here is an uncertain outcome; without it, it counts in nothing.
    begun           uuid[] NOT NULL DEFAULT '{}',
    begun_lease_nos bigint[] NOT NULL DEFAULT '{}',

    settled         jsonb NOT NULL DEFAULT '{}',    -- how often it has settled, by verdict

    -- Grows as the row is written, so that its newest version is found before the dead ones (docs/decisions/0013).
    generation      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (id, generation)
)
-- Written once a batch: uncompressed, in the row as long as it fits there (300 attempts), with room on its page.
WITH (fillfactor = 20, toast_tuple_target = 8160);

ALTER TABLE postroom.workers
    ALTER COLUMN begun SET STORAGE EXTERNAL,
    ALTER COLUMN begun_lease_nos SET STORAGE EXTERNAL;

-- wake: who sleeps, and was seen a short while ago. What changes with each batch is not in it.
CREATE INDEX workers_asleep ON postroom.workers (queue, seen_at) WHERE asleep;

-- Transports that are down, as the workers last saw them (docs/decisions/0007).
CREATE TABLE postroom.transports (
    name         text PRIMARY KEY,
    paused_until timestamptz,
    reason       text,
    failures     integer NOT NULL DEFAULT 0,
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What a person has paused (docs/decisions/0025): of a paused queue nothing is claimed, and no mail goes by a paused transport.
CREATE TABLE postroom.pauses (
    kind      text NOT NULL CONSTRAINT pauses_kind CHECK (kind IN ('queue', 'transport')),
    name      text NOT NULL,               -- email, webhook; a transport's name, as status shows it
    paused_by text NOT NULL,
    since     timestamptz NOT NULL DEFAULT clock_timestamp(),
    until     timestamptz,                 -- NULL: until a person resumes it
    reason    text,
    CONSTRAINT pauses_pkey PRIMARY KEY (kind, name),
    CONSTRAINT pauses_queue CHECK (kind <> 'queue' OR name IN ('email', 'webhook'))
);

-- Rows of a queue whose own trigger or constraint refuses our update: they stop no other. They are left out
-- of claims until next_try_at; where an outcome is known (verdict), until it could be written down.
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

-- Keys, hashed (`postroom key new`): an operator's opens the HTTP API and the whole dashboard, a viewer's shows its pages.
CREATE TABLE postroom.service_keys (
    key_hash   bytea PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    name       text CONSTRAINT service_keys_name UNIQUE,
    role       text NOT NULL DEFAULT 'operator' CONSTRAINT service_keys_role CHECK (role IN ('operator', 'viewer'))
);

-- Who did what by hand: a row is written in the transaction of what it tells, and never changed. No bodies, no secrets.
CREATE TABLE postroom.audit (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor  text NOT NULL,                                  -- the key's name, or user@host of the command line
    role   text NOT NULL CHECK (role IN ('operator', 'cli')),
    action text NOT NULL,                                  -- dead_letter.retry, setting.change, …: database/audit.py
    about  jsonb NOT NULL DEFAULT '{}',                    -- what of: ids, count, reason, key, before, after, …
    note   text                                            -- what the person said to it
);

-- Scheduled jobs (docs/decisions/0012), in pg_cron's columns; schema cron shows them where postroom makes it.
CREATE TABLE postroom.jobs (
    jobid             bigint GENERATED BY DEFAULT AS IDENTITY (START WITH 100) PRIMARY KEY, -- below: postroom's own
    schedule          text NOT NULL,
    command           text NOT NULL,
    nodename          text NOT NULL DEFAULT 'localhost',
    nodeport          integer NOT NULL DEFAULT current_setting('port')::integer,
    database          text NOT NULL DEFAULT current_database(),
    username          text NOT NULL DEFAULT current_user, -- whoever wrote the command: it runs with no other's rights
    active            boolean NOT NULL DEFAULT true,
    jobname           text,

    builtin           boolean NOT NULL DEFAULT false,     -- postroom's own: its command is for people to read
    last_minute       timestamptz NOT NULL DEFAULT clock_timestamp(), -- what was due until here is done or given up
    first_began_at    timestamptz,
    last_succeeded_at timestamptz,                        -- when the last run that succeeded began
    pg_cron_jobid     bigint,                             -- where pg_cron runs it in our place,
    pg_cron_command   text,                               -- by this command
    CONSTRAINT jobs_name UNIQUE (jobname, username)
);

CREATE UNIQUE INDEX jobs_builtin ON postroom.jobs (jobname) WHERE builtin;

-- Their history, in pg_cron's columns. The two unique keys decide what may begin, whoever believes that he leads:
-- never two runs of a job for one minute, never two of a job at once.
CREATE TABLE postroom.job_runs (
    runid          bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    jobid          bigint NOT NULL,
    job_pid        integer,                               -- of the scheduler
    database       text NOT NULL DEFAULT current_database(),
    username       text NOT NULL DEFAULT current_user,
    command        text NOT NULL,
    status         text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'succeeded', 'failed')),
    return_message text,
    start_time     timestamptz NOT NULL,
    end_time       timestamptz,

    minute         timestamptz,                           -- that it stands for; NULL: a person asked for it
    scheduler      uuid NOT NULL,
    leased_until   timestamptz NOT NULL,                  -- beyond, its scheduler is dead, and so is the run
    CONSTRAINT job_runs_minute UNIQUE (jobid, minute),
    CONSTRAINT job_runs_end CHECK ((status = 'running') = (end_time IS NULL))
);

CREATE UNIQUE INDEX job_runs_running ON postroom.job_runs (jobid) WHERE status = 'running';

-- One row: the scheduler that leads, for as long as its lease lasts.
CREATE TABLE postroom.cron_leader (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    scheduler   uuid,
    host        text,
    pid         integer,
    version     text,
    can_run     text[] NOT NULL DEFAULT '{}',             -- names of jobs; sql:USER for people's own of that user
    term        bigint NOT NULL DEFAULT 0,                -- grows with each other leader
    leads_since timestamptz,
    leads_until timestamptz
);

-- Keys of pg_cron's requests to our door (post_job), hashed: good for ten minutes, and for the jobs alone.
CREATE TABLE postroom.job_keys (
    key_hash bytea PRIMARY KEY,
    made_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What is wrong, and who was told (docs/decisions/0020): a row for each rule and what it speaks of.
CREATE TABLE postroom.alerts (
    rule      text NOT NULL,
    subject   text NOT NULL,
    summary   text NOT NULL,               -- as it was found last
    since     timestamptz NOT NULL,        -- found first
    fired_at  timestamptz,                 -- NULL: it has not held for long enough
    last_sent timestamptz,                 -- when the last message fell due
    repeats   integer NOT NULL DEFAULT 0,
    over_at   timestamptz,
    owed      text[] NOT NULL DEFAULT '{}', -- names of the targets that have not taken the last message
    CONSTRAINT alerts_pkey PRIMARY KEY (rule, subject),
    CONSTRAINT alerts_sent CHECK ((fired_at IS NULL) = (last_sent IS NULL)),
    CONSTRAINT alerts_over CHECK (over_at IS NULL OR fired_at IS NOT NULL)
);

-- What a person does to all dead letters of a group, and how far it came: any process goes on from there (54_bulk_actions.sql).
CREATE TABLE postroom.bulk_actions (
    id           uuid PRIMARY KEY,
    action       text NOT NULL CHECK (action IN ('retry', 'discard')),
    queue        text CHECK (queue IN ('email', 'webhook')),   -- NULL: both, one after the other
    reason       text,                     -- as dead_letter_is takes it; NULL: all
    note         text,
    begun_by     text NOT NULL,
    begun_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    asked_at     timestamptz NOT NULL,     -- what has died since was not asked about, and is left alone
    total        integer NOT NULL,         -- as it was counted then

    -- What stands before this place is done: by failed_at, then those of an old caller's that have none.
    place_queue  text NOT NULL,
    place_at     timestamptz,              -- NULL: among those that have none
    place_id     uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    done         integer NOT NULL DEFAULT 0,
    refused      integer NOT NULL DEFAULT 0,
    why          text,                     -- the first one's error

    runner       uuid,                     -- who works on it, for as long as its lease lasts
    leased_until timestamptz NOT NULL,
    ended_at     timestamptz,
    stopped_by   text,                     -- NULL: it came to its end
    CONSTRAINT bulk_actions_end CHECK (stopped_by IS NULL OR ended_at IS NOT NULL)
);

-- What happened, as the statements that settled it counted it: a row a batch and kind, written in their own
-- transaction, so that these figures and the rows agree whatever crashes. No key and no index: workers that write
-- here never meet. merge_tallies moves it into the next two within seconds.
CREATE TABLE postroom.tallies (
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    queue      text NOT NULL,
    kind       text NOT NULL,                -- email_type, or the source
    transport  text NOT NULL,
    outcome    text NOT NULL,                -- the verdict of an attempt; waits: put back before it began
    status     text NOT NULL,                -- what the row became; of waits: what for
    -- One entry an attempt; NULL where a time is not known, or not of this kind.
    wait_ms    integer[] NOT NULL,           -- from when it was to go out until its first attempt began
    attempt_ms integer[] NOT NULL,
    total_ms   integer[] NOT NULL            -- from when it was to go out until it ended: sent, processed, dead letter
)
WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);

-- The same by minute: histograms over the bounds of time_bounds_ms(), without the empty buckets at their ends.
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

-- And since ever, for counters that must never fall.
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
    wait_ms    bigint NOT NULL,              -- sums
    attempt_ms bigint NOT NULL,
    total_ms   bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT processing_totals_pkey PRIMARY KEY (queue, kind, transport, outcome, status)
)
WITH (fillfactor = 50);

-- What a claim, a start and a settle give back. Types of their own: a column that is added to a queue later
-- must not break a worker that is running.
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
    email_type   text,
    attached     integer       -- the bytes of its attachments, about, which are read when it is attempted; NULL: none
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

-- state: begun; waits (put back: waits_for and due_at say for what and until when); late (the lease is lost).
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

-- A limit as its setting has it: amount e-mails a span; amount is NULL where there is no limit.
CREATE TYPE postroom.limit_rule AS (
    amount  integer,
    span    interval,
    written text
);

-- An e-mail that must wait for a limit, as the limiter says it to the start: its place in the batch, the key, the limit
-- that it is planned under, and when to come back (NULL: at its old due time).
CREATE TYPE postroom.waiting_email AS (
    place         integer,
    waits_for     text,
    planned_under text,
    due_at        timestamptz
);

-- Until when a worker may be asleep, in seconds since 1970. A sequence, since what an INSERT reads in one is the newest,
-- and 2 us: the row of a worker costs it 13.
CREATE SEQUENCE postroom.email_sleepers;
CREATE SEQUENCE postroom.webhook_sleepers;

-- Where the server has lz4: a body of 2.8 kB is written in 6 us, not 17 by pglz, at the same size.
DO $$
BEGIN
    IF EXISTS (
        SELECT 1
        FROM pg_catalog.pg_settings AS setting
        WHERE setting.name = 'default_toast_compression' AND 'lz4' = ANY (setting.enumvals)
    ) THEN
        ALTER TABLE public.email_queue
            ALTER COLUMN html SET COMPRESSION lz4,
            ALTER COLUMN text SET COMPRESSION lz4;
        ALTER TABLE public.webhook_retry_queue ALTER COLUMN payload SET COMPRESSION lz4;
        ALTER TABLE postroom.webhook_requests ALTER COLUMN body SET COMPRESSION lz4;
    END IF;
END;
$$;
