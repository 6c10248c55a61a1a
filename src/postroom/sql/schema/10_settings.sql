-- Queue policy: the settings that all workers share, checked and parsed where they are written.

-- span: a length of time as people write it: 500ms, 3s, 5m, 2h, 30d. NULL where it is none, or longer than 36500d:
-- beyond that, times that are so long ago fall out of the calendar.
CREATE OR REPLACE FUNCTION postroom.span(p_text text)
RETURNS interval
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT CASE WHEN said.seconds <= 36500 * 86400.0 THEN make_interval(secs => said.seconds) END
    FROM (
        SELECT substring(p_text FROM '^[0-9]+')::double precision
            * CASE substring(p_text FROM '[a-z]+$')
                WHEN 'ms' THEN 0.001 WHEN 's' THEN 1 WHEN 'm' THEN 60 WHEN 'h' THEN 3600 ELSE 86400
            END AS seconds
        WHERE p_text ~ '^[0-9]{1,9}(ms|s|m|h|d)$'
    ) AS said;
$$;

-- default_settings: every key that exists, and what holds until it is changed.
CREATE OR REPLACE FUNCTION postroom.default_settings()
RETURNS TABLE (key text, value text)
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    VALUES
        ('email.limit.global',    '100/60s'),
        ('email.limit.recipient', '10/60s'),
        ('email.backoff',         '1s,5s,30s,5m,30m'),
        ('webhook.backoff',       '1m,5m,30m,2h,24h'),
        ('email.on_uncertain',    'retry'),
        ('lease',                 '60s'),
        ('retention.sent',        '30d'),
        ('retention.processed',   '30d'),
        ('retention.dead_letter', 'off'),
        ('retention.failed',      '90d'),
        ('retention.cron',        '7d'),
        ('retention.body',        'off'),
        ('retention.stats',       '30d'),
        ('retention.audit',       '365d'),
        ('cron.process-email-queue',     '* * * * *'),
        ('cron.process-webhook-retries', '*/5 * * * *'),
        ('cron.cleanup',                 '15 3 * * *'),
        ('cron.reconcile',               '7 * * * *'),
        ('cron.alerts',                  '* * * * *');
$$;

-- is_schedule: whether a text is a schedule of cron, as pg_cron has it: five fields, @daily and its like, or
-- `N seconds`.
CREATE OR REPLACE FUNCTION postroom.is_schedule(p_text text)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT lower(p_text) ~ '^@(yearly|annually|monthly|weekly|daily|midnight|hourly)$'
        OR lower(p_text) ~ '^([1-9]|[1-5][0-9]) seconds?$'
        OR (
            SELECT count(*) = 5 AND bool_and(good.all_parts)
            FROM regexp_split_to_table(btrim(lower(p_text), E' \t'), '[ \t]+') WITH ORDINALITY AS field (value, place)
            CROSS JOIN LATERAL (
                SELECT bool_and(
                    CASE
                        WHEN field.place = 3 AND part.value = '$' THEN true
                        WHEN range.found IS NULL THEN false
                        WHEN range.found[4] IS NOT NULL AND range.found[4]::integer NOT BETWEEN 1 AND 60 THEN false
                        WHEN range.found[4] IS NOT NULL AND range.found[1] <> '*' AND range.found[3] IS NULL THEN false
                        WHEN range.found[1] = '*' THEN true
                        ELSE range.found[2]::integer >= bound.low
                            AND range.found[2]::integer <= COALESCE(range.found[3]::integer, bound.high)
                            AND COALESCE(range.found[3]::integer, 0) <= bound.high
                    END
                ) AS all_parts
                FROM (VALUES (1, 0, 59), (2, 0, 23), (3, 1, 31), (4, 1, 12), (5, 0, 7)) AS bound (place, low, high)
                CROSS JOIN LATERAL string_to_table(postroom._without_names(field.value, field.place), ',') AS part (value)
                CROSS JOIN LATERAL (
                    SELECT regexp_match(part.value, '^(\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([0-9]{1,2}))?$') AS found
                ) AS range
                WHERE bound.place = field.place
            ) AS good
        );
$$;

-- _without_names: jan to dec and sun to sat as numbers, in the fields where they may stand.
CREATE OR REPLACE FUNCTION postroom._without_names(p_field text, p_place bigint)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
SET search_path = ''
AS $$
DECLARE
    v_field text := p_field;
    v_names text[];
BEGIN
    v_names := CASE p_place
        WHEN 4 THEN ARRAY['', 'jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec']
        WHEN 5 THEN ARRAY['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat']
        ELSE '{}'
    END;
    FOR v_place IN 1..cardinality(v_names) LOOP
        IF v_names[v_place] <> '' THEN
            v_field := regexp_replace(v_field, '\m' || v_names[v_place] || '\M', (v_place - 1)::text, 'g');
        END IF;
    END LOOP;
    RETURN v_field;
END;
$$;

-- further_limit_key: the key of a limit that is there once somebody sets it, as it is kept; NULL where it is none. By
-- the recipient's domain, the sender's address, the e-mail's type or the transport (its kind, or its name without any
-- user: what `postroom status` shows), case aside.
CREATE OR REPLACE FUNCTION postroom.further_limit_key(p_key text)
RETURNS text
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT said.key
    FROM (SELECT lower(btrim(p_key)) AS key) AS said
    WHERE length(said.key) <= 500
        AND said.key ~ (
            '^email\.limit\.('
            'domain\.[^@[:space:]<>,;]+'
            '|sender\.[^@[:space:]<>,;]+@[^@[:space:]<>,;]+'
            '|type\.[^[:cntrl:]]+'
            '|transport\.((smtps?|resend|maildir)|(smtps?://|resend\+https?://)[^@[:space:]]+|maildir:[^[:cntrl:]]+)'
            ')$'
        );
$$;

-- parse_setting: fills the parsed columns of a setting, or says what is allowed.
--
-- A trigger, so that a value is right whichever way it was written.
CREATE OR REPLACE FUNCTION postroom.parse_setting()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_allowed text;
    v_spans   interval[];
BEGIN
    NEW.key := COALESCE(postroom.further_limit_key(NEW.key), NEW.key);
    NEW.value := regexp_replace(lower(NEW.value), '\s', CASE WHEN NEW.key LIKE 'cron.%' THEN ' ' ELSE '' END, 'g');
    NEW.amount := NULL;
    NEW.span := NULL;
    NEW.spans := NULL;
    NEW.changed_at := clock_timestamp();

    IF NEW.key IN ('email.limit.global', 'email.limit.recipient') OR NEW.key = postroom.further_limit_key(NEW.key) THEN
        v_allowed := 'a number of e-mails from 1 to 10000000, a slash and a window of 1s to 31d, such as 100/60s; or off';
        IF NEW.value ~ '^[0-9]{1,8}/[^/]+$' THEN
            NEW.amount := split_part(NEW.value, '/', 1)::integer;
            NEW.span := postroom.span(split_part(NEW.value, '/', 2));
        END IF;
        IF NEW.value = 'off' OR (
            NEW.amount BETWEEN 1 AND 10000000
            AND NEW.span BETWEEN interval '1 second' AND interval '31 days'
        ) THEN
            IF TG_OP = 'INSERT'
                AND NEW.key = postroom.further_limit_key(NEW.key)
                AND NOT EXISTS (SELECT 1 FROM postroom.settings AS setting WHERE setting.key = NEW.key)
                AND (SELECT count(*) FROM postroom.settings AS setting WHERE setting.amount IS NOT NULL) >= 1000
            THEN
                RAISE EXCEPTION USING
                    ERRCODE = 'invalid_parameter_value',
                    MESSAGE = format('%s: there are 1000 limits already; set one that is not needed any more to off', NEW.key);
            END IF;
            RETURN NEW;
        END IF;
    ELSIF NEW.key IN ('email.backoff', 'webhook.backoff') THEN
        v_allowed := '1 to 50 spans of 1ms to 31d with commas between them, such as 1s,5s,30s,5m,30m';
        SELECT array_agg(postroom.span(part.value) ORDER BY part.place)
        INTO v_spans
        FROM unnest(string_to_array(NEW.value, ',')) WITH ORDINALITY AS part (value, place);
        IF cardinality(v_spans) BETWEEN 1 AND 50
            AND NOT EXISTS (
                SELECT 1 FROM unnest(v_spans) AS delay (span)
                WHERE (delay.span BETWEEN interval '1 millisecond' AND interval '31 days') IS NOT TRUE
            )
        THEN
            NEW.spans := v_spans;
            RETURN NEW;
        END IF;
    ELSIF NEW.key = 'email.on_uncertain' THEN
        v_allowed := 'retry or park';
        IF NEW.value IN ('retry', 'park') THEN
            RETURN NEW;
        END IF;
    ELSIF NEW.key = 'lease' THEN
        v_allowed := 'a span of 1s to 1d, such as 60s';
        NEW.span := postroom.span(NEW.value);
        IF NEW.span BETWEEN interval '1 second' AND interval '1 day' THEN
            RETURN NEW;
        END IF;
    ELSIF NEW.key LIKE 'retention.%' AND EXISTS (SELECT 1 FROM postroom.default_settings() AS d WHERE d.key = NEW.key) THEN
        v_allowed := 'a span of 1m to 36500d, such as 30d; or off';
        NEW.span := postroom.span(NEW.value);
        IF NEW.value = 'off' OR NEW.span >= interval '1 minute' THEN
            RETURN NEW;
        END IF;
    ELSIF NEW.key LIKE 'cron.%' AND EXISTS (SELECT 1 FROM postroom.default_settings() AS d WHERE d.key = NEW.key) THEN
        v_allowed := 'a schedule of cron in UTC, such as */5 * * * * or @daily; or off';
        NEW.value := btrim(regexp_replace(NEW.value, ' +', ' ', 'g'));
        IF NEW.value = 'off' OR postroom.is_schedule(NEW.value) THEN
            RETURN NEW;
        END IF;
    ELSE
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('there is no setting %L', NEW.key),
            HINT = 'Settings: ' || (SELECT string_agg(d.key, ', ') FROM postroom.default_settings() AS d)
                || ', email.limit.domain.DOMAIN, email.limit.sender.ADDRESS, email.limit.type.TYPE'
                || ', email.limit.transport.smtp|smtps|resend|maildir or a transport''s name';
    END IF;

    RAISE EXCEPTION USING
        ERRCODE = 'invalid_parameter_value',
        MESSAGE = format('%s = %L is not allowed; write %s', NEW.key, NEW.value, v_allowed);
END;
$$;

CREATE OR REPLACE TRIGGER settings_parse
    BEFORE INSERT OR UPDATE ON postroom.settings
    FOR EACH ROW EXECUTE FUNCTION postroom.parse_setting();

INSERT INTO postroom.settings (key, value)
SELECT d.key, d.value FROM postroom.default_settings() AS d
ON CONFLICT (key) DO NOTHING;

-- set_setting: change one; in force for every claim and settle that begins after it. A further limit that is off is
-- not there.
CREATE OR REPLACE FUNCTION postroom.set_setting(p_key text, p_value text)
RETURNS void
LANGUAGE sql
SET search_path = ''
AS $$
    INSERT INTO postroom.settings (key, value)
    VALUES (p_key, p_value)
    ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value;

    DELETE FROM postroom.settings
    WHERE settings.key = postroom.further_limit_key(p_key) AND settings.value = 'off';
$$;

-- lease_length: how long a claim holds a row.
CREATE OR REPLACE FUNCTION postroom.lease_length()
RETURNS interval
LANGUAGE plpgsql
STABLE
SET search_path = ''
AS $$
BEGIN
    RETURN (SELECT setting.span FROM postroom.settings AS setting WHERE setting.key = 'lease');
END;
$$;

-- retry_delay: the wait before the attempt that follows attempt p_attempts; beyond the schedule,
-- its last entry. Without jitter.
CREATE OR REPLACE FUNCTION postroom.retry_delay(p_queue text, p_attempts integer)
RETURNS interval
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT setting.spans[LEAST(GREATEST(COALESCE(p_attempts, 1), 1), cardinality(setting.spans))]
    FROM postroom.settings AS setting
    WHERE setting.key = p_queue || '.backoff';
$$;
