-- Alerts: what the rules found, and which messages follow from it (docs/decisions/0020).
--
-- The rules are looked at by whoever runs the job `alerts`; what was told is here, so that a restart, or another leader,
-- neither tells it twice nor forgets to say that it is over.

-- track_alerts: takes what the rules found, and returns the alerts whose last message somebody has not taken yet.
--
-- p_checked are the rules that were looked at: what they do not find any more is over. p_off are those that are switched
-- off: they are forgotten. An alert fires once it has held for its p_holds. A message that nobody takes for a day, after
-- the alert is over, is given up.
CREATE OR REPLACE FUNCTION postroom.track_alerts(
    p_checked   text[],
    p_off       text[],
    p_rules     text[],
    p_subjects  text[],
    p_summaries text[],
    p_holds     interval[],
    p_targets   text[],
    p_repeat    interval,
    p_now       timestamptz DEFAULT clock_timestamp()
)
RETURNS SETOF postroom.alerts
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    DELETE FROM postroom.alerts
    WHERE alerts.rule = ANY (p_off) OR alerts.over_at < p_now - interval '30 days';

    -- What has not fired ends unsaid.
    DELETE FROM postroom.alerts
    WHERE alerts.rule = ANY (p_checked)
        AND alerts.fired_at IS NULL
        AND NOT EXISTS (
            SELECT 1
            FROM unnest(p_rules, p_subjects) AS found (rule, subject)
            WHERE found.rule = alerts.rule AND found.subject = alerts.subject
        );

    UPDATE postroom.alerts
    SET over_at = p_now, last_sent = p_now, owed = p_targets
    WHERE alerts.rule = ANY (p_checked)
        AND alerts.over_at IS NULL
        AND NOT EXISTS (
            SELECT 1
            FROM unnest(p_rules, p_subjects) AS found (rule, subject)
            WHERE found.rule = alerts.rule AND found.subject = alerts.subject
        );

    INSERT INTO postroom.alerts AS known (rule, subject, summary, since)
    SELECT found.rule, found.subject, found.summary, p_now
    FROM unnest(p_rules, p_subjects, p_summaries) AS found (rule, subject, summary)
    ORDER BY found.rule, found.subject
    ON CONFLICT (rule, subject) DO UPDATE
    SET summary = EXCLUDED.summary,
        since = CASE WHEN known.over_at IS NULL THEN known.since ELSE EXCLUDED.since END,
        fired_at = CASE WHEN known.over_at IS NULL THEN known.fired_at END,
        last_sent = CASE WHEN known.over_at IS NULL THEN known.last_sent END,
        repeats = CASE WHEN known.over_at IS NULL THEN known.repeats ELSE 0 END,
        owed = CASE WHEN known.over_at IS NULL THEN known.owed ELSE '{}' END,
        over_at = NULL;

    UPDATE postroom.alerts
    SET fired_at = p_now, last_sent = p_now, owed = p_targets
    FROM unnest(p_rules, p_subjects, p_holds) AS found (rule, subject, hold)
    WHERE alerts.rule = found.rule
        AND alerts.subject = found.subject
        AND alerts.fired_at IS NULL
        AND alerts.since <= p_now - found.hold;

    UPDATE postroom.alerts
    SET repeats = alerts.repeats + 1, last_sent = p_now, owed = p_targets
    FROM unnest(p_rules, p_subjects) AS found (rule, subject)
    WHERE alerts.rule = found.rule AND alerts.subject = found.subject AND alerts.last_sent <= p_now - p_repeat;

    -- Nobody is owed anything who is no target any more.
    UPDATE postroom.alerts
    SET owed = CASE
        WHEN alerts.over_at < p_now - interval '1 day' THEN '{}'
        ELSE ARRAY(SELECT name.name FROM unnest(alerts.owed) AS name (name) WHERE name.name = ANY (p_targets))
    END
    WHERE alerts.owed <> '{}'
        AND (alerts.over_at < p_now - interval '1 day' OR NOT alerts.owed <@ p_targets);

    RETURN QUERY
    SELECT alert.*
    FROM postroom.alerts AS alert
    WHERE alert.owed <> '{}'
    ORDER BY alert.last_sent, alert.rule, alert.subject;
END;
$$;

-- alert_taken: a target has taken a message; p_last_sent says which, as a later one may be owed meanwhile.
CREATE OR REPLACE FUNCTION postroom.alert_taken(p_rule text, p_subject text, p_last_sent timestamptz, p_target text)
RETURNS void
LANGUAGE sql
SET search_path = ''
AS $$
    UPDATE postroom.alerts
    SET owed = array_remove(alerts.owed, p_target)
    WHERE alerts.rule = p_rule AND alerts.subject = p_subject AND alerts.last_sent = p_last_sent;
$$;

-- arrived_dead_letters: the dead letters of the last day by reason, at most 10,000 of each queue, with the newest error.
CREATE OR REPLACE FUNCTION postroom.arrived_dead_letters()
RETURNS TABLE (queue text, reason text, count bigint, last_error text)
LANGUAGE sql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
    SELECT
        dead.queue,
        COALESCE(dead.reason, 'other'),
        count(*),
        (array_agg(left(dead.last_error, 300) ORDER BY dead.failed_at DESC))[1]
    FROM (
        (
            SELECT 'email' AS queue, email.dead_reason AS reason, email.last_error, email.failed_at
            FROM public.email_queue AS email
            WHERE email.status = 'dead_letter' AND email.failed_at > (SELECT clock_timestamp()) - interval '1 day'
            LIMIT 10000
        )
        UNION ALL
        (
            SELECT 'webhook', event.dead_reason, event.last_error, event.failed_at
            FROM public.webhook_retry_queue AS event
            WHERE event.status = 'dead_letter' AND event.failed_at > (SELECT clock_timestamp()) - interval '1 day'
            LIMIT 10000
        )
    ) AS dead
    GROUP BY 1, 2
    ORDER BY 1, 2;
$$;
