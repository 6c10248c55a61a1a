-- What /metrics and the saved views show of the queues: read from what is live, never from history.
--
-- A queue is looked at in the order in which it is claimed, up to 10,000 rows (5 ms); what is beyond is counted by
-- the size that the last vacuum or analyze saw, as state `uncounted`. So the sum is right to a few percent at any
-- size, and a scrape costs the same with ten rows and with ten million.

-- depth_state: why a live row waits, as one of a fixed set of words: who may update a queue may write anything into
-- waits_for, and the key of a limit may hold an address. Without a setting of its own, so that it is inlined.
CREATE OR REPLACE FUNCTION postroom.depth_state(p_waits_for text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT CASE
        WHEN p_waits_for IN ('backoff', 'send_at', 'transport') THEN p_waits_for
        WHEN p_waits_for ~ '^limit:email:(global|recipient|domain|sender|type|transport)(:|$)'
            THEN 'limit_' || split_part(p_waits_for, ':', 3)
        WHEN p_waits_for IS NULL THEN 'next_retry_at'
        ELSE 'other'
    END;
$$;

-- uncounted: how many entries an index of what is live has beyond those that were counted, as the last vacuum or
-- analyze saw it; at least one.
CREATE OR REPLACE FUNCTION postroom.uncounted(p_index text, p_counted bigint)
RETURNS bigint
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT GREATEST(max(class.reltuples)::bigint - p_counted, 1)
    FROM pg_catalog.pg_class AS class
    WHERE class.oid = to_regclass(p_index);
$$;

-- email_depths: live e-mails by state: due, leased, refused (by a trigger or constraint of the table), what they wait
-- for (depth_state), uncounted. What is due while the global limit has no slot waits for that limit; while the queue is
-- paused, for the pause's end.
CREATE OR REPLACE FUNCTION postroom.email_depths()
RETURNS TABLE (state text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET enable_sort = off -- else, by the statistics of a quieter hour, all that is live is sorted for its first rows
AS $$
DECLARE
    v_due     text := CASE
        WHEN postroom.queue_pause_s('email') IS NOT NULL THEN 'paused'
        WHEN (SELECT book.free = 0 FROM postroom.free_slots('email:global') AS book) THEN 'limit_global' ELSE 'due'
    END;
    v_counted bigint := 0;
BEGIN
    FOR state, count IN
        SELECT seen.state, count(*)
        FROM (
            SELECT CASE
                WHEN refused.id IS NOT NULL THEN 'refused'
                WHEN live.status = 'processing' AND NOT COALESCE(live.due_at <= clock_timestamp(), false) THEN 'leased'
                WHEN live.waits_for = 'transport' THEN 'transport'
                WHEN live.due <= clock_timestamp() THEN v_due
                ELSE postroom.depth_state(live.waits_for)
            END AS state
            FROM (
                SELECT
                    email.id, email.status, email.waits_for, email.due_at,
                    COALESCE(email.due_at, email.next_retry_at, '-infinity'::timestamptz) AS due
                FROM public.email_queue AS email
                WHERE email.status IN ('pending', 'processing')
                ORDER BY
                    email.priority DESC, COALESCE(email.due_at, email.next_retry_at, '-infinity'::timestamptz)
                LIMIT 10000
            ) AS live
            LEFT JOIN postroom.refused_rows AS refused ON refused.queue = 'email' AND refused.id = live.id
        ) AS seen
        GROUP BY seen.state
        ORDER BY seen.state
    LOOP
        v_counted := v_counted + count;
        RETURN NEXT;
    END LOOP;
    IF v_counted >= 10000 THEN
        RETURN QUERY SELECT 'uncounted', postroom.uncounted('public.postroom_email_due', v_counted);
    END IF;
END;
$$;

-- limit_waits: the keys that most e-mails wait for, the longest line first: of the 10,000 that email_depths looks at.
CREATE OR REPLACE FUNCTION postroom.limit_waits(p_keys integer)
RETURNS TABLE (key text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET enable_sort = off
AS $$
BEGIN
    RETURN QUERY
    SELECT substr(live.waits_for, 7), count(*)
    FROM (
        SELECT email.waits_for, COALESCE(email.due_at, email.next_retry_at, '-infinity'::timestamptz) AS due
        FROM public.email_queue AS email
        WHERE email.status IN ('pending', 'processing')
        ORDER BY
            email.priority DESC, COALESCE(email.due_at, email.next_retry_at, '-infinity'::timestamptz)
        LIMIT 10000
    ) AS live
    WHERE live.waits_for LIKE 'limit:email:%' AND live.due > clock_timestamp()
    GROUP BY 1
    ORDER BY 2 DESC, 1
    LIMIT p_keys;
END;
$$;

-- webhook_depths: the same for events. One that stands behind another in its lane is due.
CREATE OR REPLACE FUNCTION postroom.webhook_depths()
RETURNS TABLE (state text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET enable_sort = off -- else, by the statistics of a quieter hour, all that is live is sorted for its first rows
AS $$
DECLARE
    v_due     text := CASE WHEN postroom.queue_pause_s('webhook') IS NULL THEN 'due' ELSE 'paused' END;
    v_counted bigint := 0;
BEGIN
    FOR state, count IN
        SELECT seen.state, count(*)
        FROM (
            SELECT CASE
                WHEN refused.id IS NOT NULL THEN 'refused'
                WHEN live.status = 'processing' AND NOT COALESCE(live.due_at <= clock_timestamp(), false) THEN 'leased'
                WHEN live.due <= clock_timestamp() THEN v_due
                ELSE postroom.depth_state(live.waits_for)
            END AS state
            FROM (
                SELECT
                    event.id, event.status, event.waits_for, event.due_at,
                    COALESCE(event.due_at, event.next_retry_at, '-infinity'::timestamptz) AS due
                FROM public.webhook_retry_queue AS event
                WHERE event.status IN ('pending', 'processing')
                ORDER BY
                    event.priority DESC, COALESCE(event.due_at, event.next_retry_at, '-infinity'::timestamptz)
                LIMIT 10000
            ) AS live
            LEFT JOIN postroom.refused_rows AS refused ON refused.queue = 'webhook' AND refused.id = live.id
        ) AS seen
        GROUP BY seen.state
        ORDER BY seen.state
    LOOP
        v_counted := v_counted + count;
        RETURN NEXT;
    END LOOP;
    IF v_counted >= 10000 THEN
        RETURN QUERY SELECT 'uncounted', postroom.uncounted('public.postroom_webhook_due', v_counted);
    END IF;
END;
$$;

-- email_due_s: for how long the oldest e-mail that could be attempted now has been due; NULL where none is. The first
-- of each priority is looked at, of the highest hundred.
CREATE OR REPLACE FUNCTION postroom.email_due_s()
RETURNS double precision
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_priority integer;
    v_due      timestamptz;
    v_oldest   timestamptz;
BEGIN
    FOR v_look IN 1..100 LOOP
        SELECT live.priority
        INTO v_priority
        FROM public.email_queue AS live
        WHERE live.status IN ('pending', 'processing') AND live.priority < COALESCE(v_priority, 2147483648)
        ORDER BY live.priority DESC
        LIMIT 1;
        EXIT WHEN NOT FOUND;

        SELECT COALESCE(live.due_at, live.next_retry_at, live.created_at)
        INTO v_due
        FROM public.email_queue AS live
        WHERE live.status IN ('pending', 'processing')
            AND live.priority = v_priority
            AND (live.status = 'pending' OR live.due_at IS NOT NULL)
            AND NOT EXISTS (
                SELECT 1
                FROM postroom.refused_rows AS refused
                WHERE refused.queue = 'email' AND refused.id = live.id
            )
        ORDER BY COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        LIMIT 1;
        v_oldest := LEAST(v_oldest, v_due);
    END LOOP;
    RETURN CASE WHEN isfinite(v_oldest) AND v_oldest <= clock_timestamp() THEN
        extract(EPOCH FROM clock_timestamp() - v_oldest)
    END;
END;
$$;

-- webhook_due_s: the same for events.
CREATE OR REPLACE FUNCTION postroom.webhook_due_s()
RETURNS double precision
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_priority integer;
    v_due      timestamptz;
    v_oldest   timestamptz;
BEGIN
    FOR v_look IN 1..100 LOOP
        SELECT live.priority
        INTO v_priority
        FROM public.webhook_retry_queue AS live
        WHERE live.status IN ('pending', 'processing') AND live.priority < COALESCE(v_priority, 2147483648)
        ORDER BY live.priority DESC
        LIMIT 1;
        EXIT WHEN NOT FOUND;

        SELECT COALESCE(live.due_at, live.next_retry_at, live.created_at)
        INTO v_due
        FROM public.webhook_retry_queue AS live
        WHERE live.status IN ('pending', 'processing')
            AND live.priority = v_priority
            AND (live.status = 'pending' OR live.due_at IS NOT NULL)
            AND NOT EXISTS (
                SELECT 1
                FROM postroom.refused_rows AS refused
                WHERE refused.queue = 'webhook' AND refused.id = live.id
            )
        ORDER BY COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        LIMIT 1;
        v_oldest := LEAST(v_oldest, v_due);
    END LOOP;
    RETURN CASE WHEN isfinite(v_oldest) AND v_oldest <= clock_timestamp() THEN
        extract(EPOCH FROM clock_timestamp() - v_oldest)
    END;
END;
$$;

-- count_dead_letters: how many dead letters each queue has: counted up to 10,000, by the index beyond.
CREATE OR REPLACE FUNCTION postroom.count_dead_letters()
RETURNS TABLE (queue text, count bigint)
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
    SELECT dead.queue, dead.count + CASE WHEN dead.count < 10000 THEN 0 ELSE postroom.uncounted(dead.index, dead.count) END
    FROM (
        SELECT 'email' AS queue, 'public.postroom_email_dead_letter' AS index, count(*) AS count
        FROM (SELECT FROM public.email_queue AS email WHERE email.status = 'dead_letter' LIMIT 10000) AS email
        UNION ALL
        SELECT 'webhook', 'public.postroom_webhook_dead_letter', count(*)
        FROM (SELECT FROM public.webhook_retry_queue AS event WHERE event.status = 'dead_letter' LIMIT 10000) AS event
    ) AS dead;
END;
$$;

-- queue_depths: what waits in both queues, and dead letters; cheap at any size.
CREATE OR REPLACE VIEW postroom.queue_depths AS
SELECT 'email'::text AS queue, depth.state, depth.count FROM postroom.email_depths() AS depth
UNION ALL
SELECT 'webhook', depth.state, depth.count FROM postroom.webhook_depths() AS depth
UNION ALL
SELECT dead.queue, 'dead_letter', dead.count FROM postroom.count_dead_letters() AS dead;

-- The queries that a hand-made project watches itself by, as views. The first two read whole tables, history too: for a
-- person, and for a screen of some minutes; queue_depths is for every few seconds.

-- email_queue_status, webhook_queue_status: rows by status, with their oldest and newest.
CREATE OR REPLACE VIEW postroom.email_queue_status AS
SELECT
    email.status,
    count(*) AS count,
    min(email.created_at) AS oldest_pending,
    max(email.created_at) AS newest_pending
FROM public.email_queue AS email
GROUP BY email.status;

CREATE OR REPLACE VIEW postroom.webhook_queue_status AS
SELECT
    event.status,
    count(*) AS count,
    avg(event.attempts) AS avg_attempts,
    min(event.created_at) AS oldest_pending
FROM public.webhook_retry_queue AS event
GROUP BY event.status;

-- net_runs: the last twenty runs of the two jobs that deliver what is due, whoever runs them: ours, or pg_cron.
CREATE OR REPLACE VIEW postroom.net_runs AS
SELECT
    run.jobid,
    run.status,
    run.start_time,
    run.end_time,
    CASE job.jobname WHEN 'process-email-queue' THEN 'Email Queue' ELSE 'Webhook Retry' END AS job_type
FROM postroom.read_cron_runs(5000) AS run
INNER JOIN postroom.read_cron_jobs() AS job ON run.jobid = job.jobid
WHERE job.jobname IN ('process-email-queue', 'process-webhook-retries')
ORDER BY run.start_time DESC
LIMIT 20;

-- dead_letter_counts: how many of each queue wait for a person.
CREATE OR REPLACE VIEW postroom.dead_letter_counts AS
SELECT
    (
        SELECT count(*) FROM public.email_queue AS email
        WHERE email.status = 'dead_letter'
    ) AS failed_emails,
    (
        SELECT count(*) FROM public.webhook_retry_queue AS event
        WHERE event.status = 'dead_letter'
    ) AS failed_webhooks;
