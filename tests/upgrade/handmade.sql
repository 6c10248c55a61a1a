-- A hand-made project as its authors write it: queues, functions, policies and triggers of before postroom.
-- Run by the owner of the tables, who is no superuser; the roles and schema auth are there already.

ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;

CREATE TABLE email_queue (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    to_email text NOT NULL CHECK (to_email LIKE '%@%'),
    subject text NOT NULL,
    html text NOT NULL,
    from_email text DEFAULT 'Shop <shop@example.com>',
    reply_to text,
    attempts integer NOT NULL DEFAULT 0,
    max_attempts integer DEFAULT 5,
    next_retry_at timestamptz,
    status text NOT NULL DEFAULT 'pending'
        CONSTRAINT email_queue_status_check CHECK (status IN ('pending', 'processing', 'sent', 'failed')),
    last_error text CHECK (length(last_error) < 100000),
    error_count integer DEFAULT 0,
    email_type text,
    metadata jsonb DEFAULT '{}'::jsonb,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    sent_at timestamptz,
    failed_at timestamptz,
    campaign text -- a column of the project's own
);
CREATE INDEX idx_email_queue_status ON email_queue (status, next_retry_at);

CREATE TABLE webhook_retry_queue (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    webhook_type text NOT NULL,
    webhook_event_id text,
    payload jsonb NOT NULL,
    headers jsonb,
    attempts integer DEFAULT 0,
    max_attempts integer DEFAULT 5,
    next_retry_at timestamptz,
    status text DEFAULT 'pending'
        CHECK (status IN ('pending', 'processing', 'processed', 'failed', 'dead_letter')),
    last_error text,
    error_count integer DEFAULT 0,
    last_error_at timestamptz,
    metadata jsonb DEFAULT '{}'::jsonb,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    processed_at timestamptz,
    failed_at timestamptz
);

CREATE TABLE rate_limit_counters (
    key text PRIMARY KEY,
    count integer NOT NULL DEFAULT 0,
    window_start timestamptz NOT NULL DEFAULT now(),
    window_end timestamptz NOT NULL,
    updated_at timestamptz DEFAULT now()
);

-- Rows in every state. The marker in email_type (webhook_type) says what the upgrade has to make of them.

INSERT INTO email_queue (to_email, subject, html, status, attempts, created_at, updated_at, sent_at, email_type)
SELECT 'sent' || n || '@example.com', 'Receipt ' || n, '<p>ü ' || n || '</p>', 'sent', 1, t, t, t, 'keep'
FROM (SELECT n, now() - n * interval '1 hour' AS t FROM generate_series(1, 400) AS n) AS old;

INSERT INTO email_queue (
    to_email, subject, html, status, attempts, error_count, last_error, created_at, updated_at, failed_at, email_type
)
SELECT 'failed' || n || '@example.com', 'Lost', '<p>x</p>', 'failed', 5, 5, 'gave up', t, t, t, 'keep'
FROM (SELECT n, now() - n * interval '1 day' AS t FROM generate_series(1, 50) AS n) AS old;

-- Waits since some days, hours, seconds: to be delivered.
INSERT INTO email_queue (to_email, subject, html, created_at, updated_at, email_type, metadata, campaign)
SELECT 'waits' || n || '@example.com', 'Order ' || n, '<p>Hi</p>', t, t, 'deliver', '{"n": 1.50}', 'spring'
FROM (SELECT n, now() - n * interval '1 hour' AS t FROM generate_series(1, 100) AS n) AS old;

-- Old, but asked for again two days ago.
INSERT INTO email_queue (to_email, subject, html, attempts, error_count, next_retry_at, created_at, updated_at, email_type)
SELECT 'retry' || n || '@example.com', 'Again', '<p>Hi</p>', 2, 2, now() - interval '2 days',
    now() - interval '30 days', now() - interval '2 days', 'deliver'
FROM generate_series(1, 20) AS n;

-- Old, and meant for later: next month's newsletter.
INSERT INTO email_queue (to_email, subject, html, next_retry_at, created_at, updated_at, email_type)
SELECT 'later' || n || '@example.com', 'Newsletter', '<p>Hi</p>', now() + interval '20 days',
    now() - interval '60 days', now() - interval '60 days', 'keep'
FROM generate_series(1, 20) AS n;

-- Forgotten for months.
INSERT INTO email_queue (to_email, subject, html, created_at, updated_at, next_retry_at, email_type)
SELECT 'stale' || n || '@example.com', 'Password reset', '<p>Hi</p>', t, t,
    CASE WHEN n % 2 = 0 THEN t + interval '5 minutes' END, 'stale'
FROM (SELECT n, now() - interval '8 days' - n * interval '2 days' AS t FROM generate_series(1, 60) AS n) AS old;

-- Nobody knows since when; but the last change tells of some that it is long ago.
INSERT INTO email_queue (to_email, subject, html, created_at, updated_at, email_type)
VALUES
    ('ageless1@example.com', 'No date', '<p>Hi</p>', NULL, NULL, 'deliver'),
    ('ageless2@example.com', 'No date', '<p>Hi</p>', NULL, now() - interval '1 day', 'deliver'),
    ('ageless3@example.com', 'No date', '<p>Hi</p>', NULL, now() - interval '90 days', 'stale'),
    ('ageless4@example.com', 'No date', '<p>Hi</p>', NULL, NULL, 'keep');
UPDATE email_queue SET status = 'sent' WHERE to_email = 'ageless4@example.com';

-- Their worker died with them in hand.
INSERT INTO email_queue (to_email, subject, html, status, attempts, created_at, updated_at, email_type)
SELECT 'stuck' || n || '@example.com', 'Stuck', '<p>Hi</p>', 'processing', 1,
    now() - interval '3 days', now() - n * interval '1 hour', 'stuck'
FROM generate_series(1, 40) AS n;

INSERT INTO email_queue (to_email, subject, html, status, created_at, updated_at, email_type)
VALUES
    ('stuck-ageless@example.com', 'Stuck', '<p>Hi</p>', 'processing', NULL, NULL, 'stuck'),
    ('stuck-later@example.com', 'Stuck', '<p>Hi</p>', 'processing', now() - interval '20 days', now() - interval '3 days', 'stale'),
    -- In somebody's hand right now.
    ('held@example.com', 'Held', '<p>Hi</p>', 'processing', now() - interval '2 hours', now() - interval '2 minutes', 'held');

INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload, status, attempts, created_at, updated_at, metadata)
SELECT 'stripe', 'evt_' || n % 90, '{"amount": 10.00, "n": 1}', 'processed', 1, t, t, '{"upgrade": "keep"}'
FROM (SELECT n, now() - n * interval '1 hour' AS t FROM generate_series(1, 200) AS n) AS old;
INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload, status, created_at, updated_at, metadata)
SELECT 'stripe', 'evt_' || n % 20, '{"n": 2}', status, created_at, updated_at, jsonb_build_object('upgrade', fate)
FROM generate_series(1, 30) AS n
CROSS JOIN (VALUES
    ('pending', now() - interval '1 day', now() - interval '1 day', 'deliver'),
    ('pending', NULL, NULL, 'deliver'),
    ('pending', now() - interval '70 days', now() - interval '70 days', 'stale'),
    ('processing', now() - interval '5 days', now() - interval '4 days', 'stuck'),
    ('failed', now() - interval '70 days', now() - interval '70 days', 'keep'),
    ('dead_letter', now() - interval '70 days', now() - interval '70 days', 'keep')
) AS state (status, created_at, updated_at, fate);

INSERT INTO rate_limit_counters (key, count, window_start, window_end)
VALUES
    ('email:global', 7, now() - interval '30 seconds', now() + interval '30 seconds'),
    ('email:recipient:ada@example.com', 10, now() - interval '2 days', now() - interval '1 day'),
    ('signup:10.0.0.1', 3, now(), now() + interval '1 minute');

-- Triggers: one that dates every change, one that counts them, one that refuses some rows.

CREATE TABLE touched (queue text, id uuid, was text, became text);

CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END;
$$;
CREATE TRIGGER set_updated_at BEFORE UPDATE ON email_queue FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER set_updated_at BEFORE UPDATE ON webhook_retry_queue FOR EACH ROW EXECUTE FUNCTION set_updated_at();

CREATE FUNCTION note_touch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.touched VALUES (TG_TABLE_NAME, OLD.id, OLD.status, NEW.status);
    RETURN NULL;
END;
$$;
CREATE TRIGGER note_touch AFTER UPDATE ON email_queue FOR EACH ROW EXECUTE FUNCTION note_touch();
CREATE TRIGGER note_touch AFTER UPDATE ON webhook_retry_queue FOR EACH ROW EXECUTE FUNCTION note_touch();

CREATE FUNCTION protect_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.metadata ? 'legal_hold' THEN
        RAISE EXCEPTION 'row % is under legal hold', OLD.id;
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER protect_audit BEFORE UPDATE OR DELETE ON email_queue FOR EACH ROW EXECUTE FUNCTION protect_audit();

INSERT INTO email_queue (to_email, subject, html, status, created_at, updated_at, email_type, metadata)
VALUES
    ('hold-sent@example.com', 'Hold', '<p>Hi</p>', 'sent', now() - interval '9 days', now(), 'keep', '{"legal_hold": 1}'),
    ('hold-stuck@example.com', 'Hold', '<p>Hi</p>', 'processing', now() - interval '2 days', now() - interval '2 days',
        'refused', '{"legal_hold": 1}'),
    ('hold-stale@example.com', 'Hold', '<p>Hi</p>', 'pending', now() - interval '90 days', now() - interval '90 days',
        'refused', '{"legal_hold": 1}');

-- The functions, as they are found: as their definer, for anybody, some broken.

CREATE FUNCTION get_email_queue_batch() RETURNS SETOF email_queue LANGUAGE sql SECURITY DEFINER AS $$
    SELECT * FROM email_queue WHERE status = 'pending' LIMIT 10;
$$;
CREATE FUNCTION get_email_queue_batch(batch_size int)
RETURNS TABLE (id uuid, to_email text, subject text, html text, from_email text, attempts int)
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    RETURN QUERY
    UPDATE email_queue AS q SET status = 'processing'
    WHERE q.id IN (
        SELECT e.id FROM email_queue AS e
        WHERE e.status = 'pending' AND (e.next_retry_at IS NULL OR e.next_retry_at <= now())
            AND e.email_type = 'traffic'
        ORDER BY e.created_at LIMIT batch_size FOR UPDATE SKIP LOCKED
    )
    RETURNING q.id, q.to_email, q.subject, q.html, q.from_email, q.attempts;
END;
$$;
CREATE FUNCTION mark_email_sent(email_id uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE email_queue SET status = 'sent', sent_at = now(), attempts = attempts + 1 WHERE id = email_id;
    RETURN FOUND;
END;
$$;
CREATE FUNCTION mark_email_failed(email_id uuid, error_message text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE email_queue SET status = 'pending', attempts = attempts + 1, last_error = error_message WHERE id = email_id;
    RETURN FOUND;
END;
$$;
-- "column reference "id" is ambiguous", whenever it is called.
CREATE FUNCTION get_webhook_retry_batch(batch_size int DEFAULT 10)
RETURNS TABLE (id uuid, webhook_type text, payload jsonb)
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    RETURN QUERY
    UPDATE webhook_retry_queue SET status = 'processing'
    WHERE id IN (SELECT id FROM webhook_retry_queue WHERE status = 'pending' LIMIT batch_size)
    RETURNING id, webhook_type, payload;
END;
$$;
CREATE FUNCTION mark_webhook_processed(webhook_id uuid) RETURNS boolean LANGUAGE sql SECURITY DEFINER AS $$
    UPDATE webhook_retry_queue SET status = 'processed', processed_at = now() WHERE id = webhook_id RETURNING true;
$$;
CREATE FUNCTION increment_rate_limit(p_key text, p_increment int, p_limit int) RETURNS integer
LANGUAGE sql SECURITY DEFINER AS $$
    INSERT INTO rate_limit_counters AS c (key, count, window_end) VALUES (p_key, p_increment, now() + interval '1 minute')
    ON CONFLICT (key) DO UPDATE SET count = c.count + p_increment RETURNING c.count;
$$;
CREATE FUNCTION calculate_email_retry_time(attempts int) RETURNS timestamp LANGUAGE sql AS $$
    SELECT (now() + attempts * interval '1 minute')::timestamp;
$$;
CREATE FUNCTION enqueue_email(p_to text, p_subject text, p_html text) RETURNS uuid LANGUAGE sql SECURITY DEFINER AS $$
    INSERT INTO email_queue (to_email, subject, html, email_type) VALUES (p_to, p_subject, p_html, 'traffic') RETURNING id;
$$;

-- Who may do what: anybody, and some more.

ALTER TABLE email_queue ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhook_retry_queue ENABLE ROW LEVEL SECURITY;
CREATE POLICY "Anyone can queue" ON email_queue FOR INSERT TO public WITH CHECK (true);
CREATE POLICY "anon reads" ON email_queue FOR SELECT TO anon USING (true);
CREATE POLICY "Users see their own" ON email_queue FOR SELECT TO authenticated
    USING (to_email = (SELECT u.email FROM auth.users AS u WHERE u.id = auth.uid()));
CREATE POLICY "everything" ON webhook_retry_queue FOR ALL USING (true) WITH CHECK (true);
