-- Retention: what is old enough is forgotten, in batches of a few pages that each are one transaction.
--
-- A batch is a range of row addresses (p_from up to p_to, as `(page,0)`): one pass reads the table once, needs no index
-- that every settle would have to write, and its batches cost the same however much of the table is history. Rows that
-- somebody has locked are left to the next pass. With p_dry_run nothing is changed.

-- kept_since: what ended before this moment is to be forgotten; NULL where that setting is off.
CREATE OR REPLACE FUNCTION postroom.kept_since(p_key text)
RETURNS timestamptz
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT clock_timestamp() - setting.span FROM postroom.settings AS setting WHERE setting.key = 'retention.' || p_key;
$$;

-- cleanup_emails: sent e-mails, dead letters and what a person discarded (an old caller's `failed` has no dead_reason and
-- stays); and the bodies of those that have ended, where their rows are kept for longer.
CREATE OR REPLACE FUNCTION postroom.cleanup_emails(p_from tid, p_to tid, p_dry_run boolean)
RETURNS TABLE (rule text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_sent        timestamptz := postroom.kept_since('sent');
    v_dead_letter timestamptz := postroom.kept_since('dead_letter');
    v_failed      timestamptz := postroom.kept_since('failed');
    v_body        timestamptz := postroom.kept_since('body');
    v_gone        tid[];
    v_emptied     tid[];
BEGIN
    v_gone := ARRAY(
        SELECT email.ctid
        FROM public.email_queue AS email
        WHERE email.ctid >= p_from AND email.ctid < p_to
            AND CASE email.status
                WHEN 'sent' THEN COALESCE(email.sent_at, email.updated_at, email.created_at) < v_sent
                WHEN 'dead_letter' THEN COALESCE(email.failed_at, email.updated_at, email.created_at) < v_dead_letter
                WHEN 'failed' THEN email.dead_reason IS NOT NULL
                    AND COALESCE(email.failed_at, email.updated_at, email.created_at) < v_failed
            END
        FOR UPDATE SKIP LOCKED
    );
    v_emptied := ARRAY(
        SELECT email.ctid
        FROM public.email_queue AS email
        WHERE email.ctid >= p_from AND email.ctid < p_to
            AND email.ctid <> ALL (v_gone)
            AND CASE email.status
                WHEN 'sent' THEN COALESCE(email.sent_at, email.updated_at, email.created_at) < v_body
                WHEN 'failed' THEN email.dead_reason IS NOT NULL
                    AND COALESCE(email.failed_at, email.updated_at, email.created_at) < v_body
            END
            AND (email.html <> '' OR email.text IS NOT NULL OR postroom.attached_bytes(email.attachments) IS NOT NULL)
        FOR UPDATE SKIP LOCKED
    );
    RETURN QUERY
    SELECT email.status, count(*)
    FROM public.email_queue AS email
    WHERE email.ctid = ANY (v_gone)
    GROUP BY email.status;
    RETURN QUERY SELECT 'body', cardinality(v_emptied)::bigint;
    IF NOT p_dry_run THEN
        DELETE FROM public.email_queue WHERE email_queue.ctid = ANY (v_gone);
        UPDATE public.email_queue
        SET html = '', text = NULL, attachments = DEFAULT, updated_at = clock_timestamp()
        WHERE email_queue.ctid = ANY (v_emptied);
    END IF;
END;
$$;

-- cleanup_webhooks: the same for events. A request goes with its row (forget_request); where only the body goes, the
-- payload says so, and replay passes the event over.
CREATE OR REPLACE FUNCTION postroom.cleanup_webhooks(p_from tid, p_to tid, p_dry_run boolean)
RETURNS TABLE (rule text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_processed   timestamptz := postroom.kept_since('processed');
    v_dead_letter timestamptz := postroom.kept_since('dead_letter');
    v_failed      timestamptz := postroom.kept_since('failed');
    v_body        timestamptz := postroom.kept_since('body');
    v_gone        tid[];
    v_emptied     tid[];
BEGIN
    v_gone := ARRAY(
        SELECT event.ctid
        FROM public.webhook_retry_queue AS event
        WHERE event.ctid >= p_from AND event.ctid < p_to
            AND CASE event.status
                WHEN 'processed' THEN COALESCE(event.processed_at, event.updated_at, event.created_at) < v_processed
                WHEN 'dead_letter' THEN COALESCE(event.failed_at, event.updated_at, event.created_at) < v_dead_letter
                WHEN 'failed' THEN event.dead_reason IS NOT NULL
                    AND COALESCE(event.failed_at, event.updated_at, event.created_at) < v_failed
            END
        FOR UPDATE SKIP LOCKED
    );
    v_emptied := ARRAY(
        SELECT event.ctid
        FROM public.webhook_retry_queue AS event
        WHERE event.ctid >= p_from AND event.ctid < p_to
            AND event.ctid <> ALL (v_gone)
            AND CASE event.status
                WHEN 'processed' THEN COALESCE(event.processed_at, event.updated_at, event.created_at) < v_body
                WHEN 'failed' THEN event.dead_reason IS NOT NULL
                    AND COALESCE(event.failed_at, event.updated_at, event.created_at) < v_body
            END
            AND event.payload <> '{"_emptied": true}'
        FOR UPDATE SKIP LOCKED
    );
    RETURN QUERY
    SELECT event.status, count(*)
    FROM public.webhook_retry_queue AS event
    WHERE event.ctid = ANY (v_gone)
    GROUP BY event.status;
    RETURN QUERY SELECT 'body', cardinality(v_emptied)::bigint;
    IF NOT p_dry_run THEN
        DELETE FROM public.webhook_retry_queue WHERE webhook_retry_queue.ctid = ANY (v_gone);
        DELETE FROM postroom.webhook_requests
        WHERE webhook_requests.id = ANY (ARRAY(
            SELECT event.id FROM public.webhook_retry_queue AS event WHERE event.ctid = ANY (v_emptied)
        ));
        UPDATE public.webhook_retry_queue
        SET payload = '{"_emptied": true}', updated_at = clock_timestamp()
        WHERE webhook_retry_queue.ctid = ANY (v_emptied);
    END IF;
END;
$$;

-- cleanup_seen_webhooks: an event is known for 30 days, whatever became of its row.
CREATE OR REPLACE FUNCTION postroom.cleanup_seen_webhooks(p_from tid, p_to tid, p_dry_run boolean)
RETURNS TABLE (rule text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_gone tid[];
BEGIN
    v_gone := ARRAY(
        SELECT seen.ctid
        FROM postroom.seen_webhooks AS seen
        WHERE seen.ctid >= p_from AND seen.ctid < p_to AND seen.seen_at < clock_timestamp() - interval '30 days'
        FOR UPDATE SKIP LOCKED
    );
    IF NOT p_dry_run THEN
        DELETE FROM postroom.seen_webhooks WHERE seen_webhooks.ctid = ANY (v_gone);
    END IF;
    RETURN QUERY SELECT 'seen', cardinality(v_gone)::bigint;
END;
$$;

-- cleanup_limits: windows that have ended, as cleanup_rate_limit_counters has them.
CREATE OR REPLACE FUNCTION postroom.cleanup_limits(p_from tid, p_to tid, p_dry_run boolean)
RETURNS TABLE (rule text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_gone tid[];
BEGIN
    v_gone := ARRAY(
        SELECT ended.ctid
        FROM public.rate_limit_counters AS ended
        WHERE ended.ctid >= p_from AND ended.ctid < p_to
            AND ended.window_end < clock_timestamp()
            -- A line in which nobody has moved for an hour was discarded.
            AND (ended.planned <= ended.taken_total OR ended.window_end < clock_timestamp() - interval '1 hour')
        FOR UPDATE SKIP LOCKED
    );
    IF NOT p_dry_run THEN
        DELETE FROM public.rate_limit_counters WHERE rate_limit_counters.ctid = ANY (v_gone);
    END IF;
    RETURN QUERY SELECT 'ended', cardinality(v_gone)::bigint;
END;
$$;

-- cleanup_job_runs: the history of our own schedule.
CREATE OR REPLACE FUNCTION postroom.cleanup_job_runs(p_from tid, p_to tid, p_dry_run boolean)
RETURNS TABLE (rule text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_gone tid[];
BEGIN
    v_gone := ARRAY(
        SELECT run.ctid
        FROM postroom.job_runs AS run
        WHERE run.ctid >= p_from AND run.ctid < p_to AND run.end_time < postroom.kept_since('cron')
        FOR UPDATE SKIP LOCKED
    );
    IF NOT p_dry_run THEN
        DELETE FROM postroom.job_runs WHERE job_runs.ctid = ANY (v_gone);
    END IF;
    RETURN QUERY SELECT 'cron', cardinality(v_gone)::bigint;
END;
$$;

-- cleanup_audit: who did what by hand.
CREATE OR REPLACE FUNCTION postroom.cleanup_audit(p_from tid, p_to tid, p_dry_run boolean)
RETURNS TABLE (rule text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_gone tid[];
BEGIN
    v_gone := ARRAY(
        SELECT entry.ctid
        FROM postroom.audit AS entry
        WHERE entry.ctid >= p_from AND entry.ctid < p_to AND entry.at < postroom.kept_since('audit')
        FOR UPDATE SKIP LOCKED
    );
    IF NOT p_dry_run THEN
        DELETE FROM postroom.audit WHERE audit.ctid = ANY (v_gone);
    END IF;
    RETURN QUERY SELECT 'audit', cardinality(v_gone)::bigint;
END;
$$;

-- cleanup_house: what is small: workers that died, leases of the upgrade that have ended, actions on many dead letters.
CREATE OR REPLACE FUNCTION postroom.cleanup_house()
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    PERFORM postroom.forget_dead_workers();
    DELETE FROM postroom.old_leases WHERE old_leases.ends_at < clock_timestamp() - interval '1 day';
    DELETE FROM postroom.bulk_actions WHERE GREATEST(bulk_actions.ended_at, bulk_actions.leased_until) < clock_timestamp() - interval '30 days';
END;
$$;

-- awaiting_cleanup: what the next cleanup will delete of a project that has kept everything so far: migrate tells.
CREATE OR REPLACE FUNCTION postroom.awaiting_cleanup()
RETURNS SETOF text
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT format(
        '%s has %s rows of more than %s: cleanup deletes them each night; to keep them: postroom settings set retention.%s off',
        found.name, found.status, setting.value, found.status
    )
    FROM (
        SELECT 'email_queue' AS name, 'sent' AS status, EXISTS (
            SELECT 1 FROM public.email_queue AS email
            WHERE email.status = 'sent'
                AND COALESCE(email.sent_at, email.updated_at, email.created_at) < postroom.kept_since('sent') - interval '1 day'
        ) AS has_old
        UNION ALL
        SELECT 'webhook_retry_queue', 'processed', EXISTS (
            SELECT 1 FROM public.webhook_retry_queue AS event
            WHERE event.status = 'processed'
                AND COALESCE(event.processed_at, event.updated_at, event.created_at)
                    < postroom.kept_since('processed') - interval '1 day'
        )
    ) AS found
    JOIN postroom.settings AS setting ON setting.key = 'retention.' || found.status
    WHERE found.has_old;
$$;
