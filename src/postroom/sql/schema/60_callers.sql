-- The functions of the contract, in schema public: for applications and for old callers. SECURITY INVOKER, all
-- of them: who may not touch the tables may not do it through these either.

-- Functions of these names that are there already (SECURITY DEFINER, other return types, older overloads)
-- make room. Their text is kept; the objects live on in schema postroom until the migration ends, so
-- that a caller in the middle of one does not fall.
DO $$
DECLARE
    v_old record;
BEGIN
    FOR v_old IN
        SELECT
            proc.oid,
            regexp_replace(proc.oid::regprocedure::text, '^public\.', '') AS name,
            pg_get_functiondef(proc.oid) AS definition,
            proc.proowner AS owner,
            COALESCE(proc.proacl, acldefault('f', proc.proowner)) AS rights
        FROM pg_proc AS proc
        WHERE proc.pronamespace = 'public'::regnamespace
            AND proc.prokind IN ('f', 'p')
            AND (
                proc.proname IN (
                    'calculate_email_retry_time', 'calculate_webhook_retry_time',
                    'get_email_queue_batch', 'mark_email_sent', 'mark_email_failed',
                    'get_webhook_retry_batch', 'mark_webhook_processed', 'mark_webhook_failed',
                    'increment_rate_limit', 'cleanup_rate_limit_counters', 'enqueue_email'
                )
                -- A name that an application may have taken: only what would be in the way.
                OR (proc.proname = 'enqueue_emails' AND oidvectortypes(proc.proargtypes) = 'jsonb')
            )
            AND COALESCE(obj_description(proc.oid, 'pg_proc'), '') NOT LIKE 'postroom:%'
        ORDER BY proc.oid
    LOOP
        INSERT INTO postroom.replaced_objects (kind, name, definition)
        VALUES ('function', v_old.name, v_old.definition);
        INSERT INTO postroom.replaced_objects (kind, name, definition)
        SELECT
            'grant', 'ROUTINE public.' || v_old.name,
            format('ALTER ROUTINE public.%s OWNER TO %s', v_old.name, v_old.owner::regrole)
        WHERE v_old.owner <> (SELECT role.oid FROM pg_roles AS role WHERE role.rolname = current_user);
        PERFORM postroom.note_rights('ROUTINE public.' || v_old.name, v_old.rights, v_old.owner);
        RAISE NOTICE 'function % replaced, its text is kept in postroom.replaced_objects', v_old.name;
        EXECUTE format('ALTER ROUTINE %s RENAME TO %I', v_old.oid::regprocedure, '_replaced_' || v_old.oid);
        EXECUTE format('ALTER ROUTINE %s SET SCHEMA postroom', v_old.oid::regprocedure);
    END LOOP;
END;
$$;

CREATE OR REPLACE FUNCTION public.calculate_email_retry_time(attempt_number integer)
RETURNS timestamptz
LANGUAGE sql
VOLATILE
SET search_path = ''
AS $$
    SELECT clock_timestamp() + postroom.retry_delay('email', attempt_number);
$$;
COMMENT ON FUNCTION public.calculate_email_retry_time(integer)
IS 'postroom: when the attempt after this one is due, by email.backoff, without jitter';

CREATE OR REPLACE FUNCTION public.calculate_webhook_retry_time(attempt_number integer)
RETURNS timestamptz
LANGUAGE sql
VOLATILE
SET search_path = ''
AS $$
    SELECT clock_timestamp() + postroom.retry_delay('webhook', attempt_number);
$$;
COMMENT ON FUNCTION public.calculate_webhook_retry_time(integer)
IS 'postroom: when the attempt after this one is due, by webhook.backoff, without jitter';

-- E-mails with attachments are left to workers: a caller who knows these columns would send them without.
--
-- RETURNS TABLE (id ...) makes `id` a variable of plpgsql; in LANGUAGE sql, and with every column named
-- by its table, nothing is ambiguous.
CREATE OR REPLACE FUNCTION public.get_email_queue_batch(batch_size integer DEFAULT 50)
RETURNS TABLE (
    id           uuid,
    to_email     text,
    subject      text,
    html         text,
    from_email   text,
    reply_to     text,
    attempts     integer,
    max_attempts integer,
    email_type   text,
    metadata     jsonb
)
LANGUAGE sql
VOLATILE
SET search_path = ''
SET enable_seqscan = off
AS $$
    SELECT
        email.id, email.to_email, email.subject, email.html, email.from_email, email.reply_to,
        email.attempts, email.max_attempts, email.email_type, email.metadata
    FROM postroom.lease_emails(
        NULL, GREATEST(get_email_queue_batch.batch_size, 0), interval '15 minutes', NULL, NULL, false
    ) WITH ORDINALITY AS claimed (
        id, lease_no, lease_s, to_email, subject, html, text, from_email, reply_to, headers, created_at, attempts,
        max_attempts, email_type, attached, place
    )
    JOIN public.email_queue AS email ON email.id = claimed.id
    ORDER BY claimed.place;
$$;
COMMENT ON FUNCTION public.get_email_queue_batch(integer)
IS 'postroom: claims due e-mails without attachments for 15 minutes, for callers that settle with mark_email_sent or _failed';

-- Whoever holds the lease: the mail is out. The lease number moves on, so that a worker that holds the row
-- writes nothing over it.
CREATE OR REPLACE FUNCTION public.mark_email_sent(email_id uuid)
RETURNS void
LANGUAGE sql
VOLATILE
SET search_path = ''
AS $$
    WITH sent AS (
        UPDATE public.email_queue
        SET status = 'sent',
            attempts = LEAST(COALESCE(email_queue.attempts, 0), 2147483646) + 1,
            sent_at = clock_timestamp(),
            due_at = NULL,
            lease_no = email_queue.lease_no + 1,
            leased_by = NULL,
            waits_for = NULL,
            dead_reason = NULL,
            updated_at = clock_timestamp()
        WHERE email_queue.id = mark_email_sent.email_id AND email_queue.status IS DISTINCT FROM 'sent'
        RETURNING email_queue.*
    )
    INSERT INTO postroom.tallies (queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms)
    SELECT
        'email', COALESCE(sent.email_type, ''), 'an old caller', 'done', sent.status, '{NULL}', '{NULL}',
        ARRAY[postroom.elapsed_ms(COALESCE(sent.wanted_at, sent.created_at), clock_timestamp())]
    FROM sent;
$$;
COMMENT ON FUNCTION public.mark_email_sent(uuid) IS 'postroom: settles an e-mail as sent';

CREATE OR REPLACE FUNCTION public.mark_email_failed(email_id uuid, error_message text)
RETURNS void
LANGUAGE sql
VOLATILE
SET search_path = ''
AS $$
    SELECT postroom.write_email_outcomes(
        NULL,
        ARRAY[email.id],
        ARRAY[email.lease_no],
        ARRAY['temporary'::text],
        ARRAY[COALESCE(mark_email_failed.error_message, 'failed')],
        ARRAY[NULL::double precision],
        ARRAY[jsonb_build_object(
            'at', clock_timestamp(), 'outcome', 'temporary', 'transport', 'an old caller',
            'reply', mark_email_failed.error_message
        )]
    )
    FROM public.email_queue AS email
    WHERE email.id = mark_email_failed.email_id AND email.leased_by IS NULL; -- the status is looked at where it is written
$$;
COMMENT ON FUNCTION public.mark_email_failed(uuid, text)
IS 'postroom: settles an attempt of an old caller as failed: pending with the next delay, or dead_letter';

CREATE OR REPLACE FUNCTION public.get_webhook_retry_batch(batch_size integer DEFAULT 10)
RETURNS TABLE (
    id               uuid,
    webhook_type     text,
    webhook_event_id text,
    payload          jsonb,
    headers          jsonb,
    attempts         integer,
    max_attempts     integer,
    metadata         jsonb
)
LANGUAGE sql
VOLATILE
SET search_path = ''
SET enable_seqscan = off
AS $$
    SELECT
        webhook.id, webhook.webhook_type, webhook.webhook_event_id, webhook.payload, webhook.headers,
        webhook.attempts, webhook.max_attempts, webhook.metadata
    FROM postroom.lease_webhooks(
        NULL, GREATEST(get_webhook_retry_batch.batch_size, 0), interval '15 minutes', NULL, '{}'
    ) WITH ORDINALITY AS claimed (
        id, lease_no, lease_s, webhook_type, webhook_event_id, event_type, payload, headers, created_at, attempts,
        max_attempts, metadata, handlers_done, handlers_stopped, method, target, raw_headers, body, place
    )
    JOIN public.webhook_retry_queue AS webhook ON webhook.id = claimed.id
    ORDER BY claimed.place;
$$;
COMMENT ON FUNCTION public.get_webhook_retry_batch(integer)
IS 'postroom: claims due events for 15 minutes, for callers that settle with mark_webhook_processed and mark_webhook_failed';

CREATE OR REPLACE FUNCTION public.mark_webhook_processed(webhook_id uuid)
RETURNS void
LANGUAGE sql
VOLATILE
SET search_path = ''
AS $$
    WITH sent AS (
        UPDATE public.webhook_retry_queue
        SET status = 'processed',
            attempts = LEAST(COALESCE(webhook_retry_queue.attempts, 0), 2147483646) + 1,
            processed_at = clock_timestamp(),
            due_at = NULL,
            lease_no = webhook_retry_queue.lease_no + 1,
            leased_by = NULL,
            waits_for = NULL,
            dead_reason = NULL,
            updated_at = clock_timestamp()
        WHERE webhook_retry_queue.id = mark_webhook_processed.webhook_id
            AND webhook_retry_queue.status IS DISTINCT FROM 'processed'
        RETURNING webhook_retry_queue.*
    )
    INSERT INTO postroom.tallies (queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms)
    SELECT
        'webhook', sent.webhook_type, '', 'done', sent.status, '{NULL}', '{NULL}',
        ARRAY[postroom.elapsed_ms(sent.created_at, clock_timestamp())]
    FROM sent;
$$;
COMMENT ON FUNCTION public.mark_webhook_processed(uuid) IS 'postroom: settles an event as processed';

CREATE OR REPLACE FUNCTION public.mark_webhook_failed(webhook_id uuid, error_message text)
RETURNS void
LANGUAGE sql
VOLATILE
SET search_path = ''
AS $$
    SELECT postroom.write_webhook_outcomes(
        NULL,
        ARRAY[webhook.id],
        ARRAY[webhook.lease_no],
        ARRAY['temporary'::text],
        ARRAY[COALESCE(mark_webhook_failed.error_message, 'failed')],
        ARRAY[NULL::double precision],
        ARRAY[jsonb_build_object(
            'at', clock_timestamp(), 'outcome', 'temporary', 'handler', 'an old caller',
            'reply', mark_webhook_failed.error_message
        )]
    )
    FROM public.webhook_retry_queue AS webhook
    WHERE webhook.id = mark_webhook_failed.webhook_id AND webhook.leased_by IS NULL; -- the status is looked at where it is written
$$;
COMMENT ON FUNCTION public.mark_webhook_failed(uuid, text)
IS 'postroom: settles an attempt of an old caller as failed: pending with the next delay, or dead_letter';

-- A count above p_limit means refused, and then nothing was consumed. Keys of the engine (email:*) are booked
-- in its own books, under the lower of p_limit and the setting; other keys have windows of 60 s. A refusal that no
-- integer could tell is an error: who reads it as a count would go on.
CREATE OR REPLACE FUNCTION public.increment_rate_limit(p_key text, p_increment integer, p_limit integer)
RETURNS TABLE (count integer)
LANGUAGE plpgsql
VOLATILE
SET search_path = ''
AS $$
DECLARE
    v_key  text := CASE WHEN p_key LIKE 'email:%' THEN lower(p_key) ELSE p_key END;
    v_rule postroom.limit_rule;
    v_at   timestamptz;
    v_used integer;
BEGIN
    IF p_key IS NULL OR p_increment IS NULL OR p_limit IS NULL OR p_increment < 0 OR p_limit < 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'increment_rate_limit: p_key must be given, p_increment and p_limit must be 0 or more';
    END IF;

    IF v_key LIKE 'email:%' THEN
        v_rule := postroom.limit_rule_of(v_key);
        v_at := postroom.lock_books(ARRAY[v_key]);
        SELECT postroom.slots_used(counter.taken_at, counter.taken, v_at, postroom.book_window(v_rule.span))
        INTO v_used
        FROM public.rate_limit_counters AS counter
        WHERE counter.key = v_key;
        IF v_used::bigint + p_increment > LEAST(p_limit, COALESCE(v_rule.amount, p_limit)) THEN
            IF p_limit = 2147483647 THEN
                RAISE EXCEPTION USING
                    ERRCODE = 'invalid_parameter_value',
                    MESSAGE = format(
                        'increment_rate_limit: the limit %s is reached, and no count is above p_limit; '
                        'give a p_limit below 2147483647', v_key
                    );
            END IF;
            count := LEAST(GREATEST(v_used::bigint + p_increment, p_limit::bigint + 1), 2147483647);
        ELSE
            count := v_used + p_increment;
            IF p_increment > 0 THEN
                PERFORM postroom.take_slots(ARRAY[v_key], ARRAY[p_increment], v_at);
            END IF;
        END IF;
        RETURN NEXT;
        RETURN;
    END IF;

    LOOP
        INSERT INTO public.rate_limit_counters AS counter (key, count, window_start, window_end, updated_at)
        VALUES (v_key, 0, clock_timestamp(), clock_timestamp() + interval '60 seconds', clock_timestamp())
        ON CONFLICT (key) DO NOTHING;

        -- Under the row's lock, so that of two at once the second sees what the first has taken.
        SELECT CASE WHEN counter.window_end > clock_timestamp() THEN COALESCE(counter.count, 0) ELSE 0 END
        INTO v_used
        FROM public.rate_limit_counters AS counter
        WHERE counter.key = v_key
        FOR UPDATE;
        -- Not there: a cleanup came between.
        EXIT WHEN FOUND;
    END LOOP;

    IF v_used::bigint + p_increment > p_limit THEN
        IF p_limit = 2147483647 THEN
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_parameter_value',
                MESSAGE = format(
                    'increment_rate_limit: the limit %s is reached, and no count is above p_limit; '
                    'give a p_limit below 2147483647', v_key
                );
        END IF;
        count := LEAST(v_used::bigint + p_increment, 2147483647);
        RETURN NEXT;
        RETURN;
    END IF;

    UPDATE public.rate_limit_counters AS counter
    SET count = v_used + p_increment,
        window_start = CASE WHEN counter.window_end > clock_timestamp() THEN counter.window_start ELSE clock_timestamp() END,
        window_end = CASE
            WHEN counter.window_end > clock_timestamp() THEN counter.window_end
            ELSE clock_timestamp() + interval '60 seconds'
        END,
        updated_at = clock_timestamp()
    WHERE counter.key = v_key;
    count := v_used + p_increment;
    RETURN NEXT;
END;
$$;
COMMENT ON FUNCTION public.increment_rate_limit(text, integer, integer)
IS 'postroom: takes slots of a limit; a count above p_limit means refused, and nothing was consumed';

CREATE OR REPLACE FUNCTION public.cleanup_rate_limit_counters()
RETURNS void
LANGUAGE sql
VOLATILE
SET search_path = ''
AS $$
    DELETE FROM public.rate_limit_counters
    WHERE rate_limit_counters.key = ANY (ARRAY(
        SELECT ended.key
        FROM public.rate_limit_counters AS ended
        WHERE ended.window_end < clock_timestamp()
            -- A line in which nobody has moved for an hour was discarded.
            AND (ended.planned <= ended.taken_total OR ended.window_end < clock_timestamp() - interval '1 hour')
        FOR UPDATE SKIP LOCKED
    ));
$$;
COMMENT ON FUNCTION public.cleanup_rate_limit_counters() IS 'postroom: forgets windows that have ended';

CREATE OR REPLACE FUNCTION public.enqueue_email(
    to_email        text,
    subject         text,
    html            text,
    from_email      text DEFAULT NULL,
    reply_to        text DEFAULT NULL,
    email_type      text DEFAULT NULL,
    metadata        jsonb DEFAULT '{}',
    idempotency_key text DEFAULT NULL,
    send_at         timestamptz DEFAULT NULL,
    priority        integer DEFAULT 0,
    max_attempts    integer DEFAULT 6,
    text            text DEFAULT NULL,
    headers         jsonb DEFAULT NULL
)
RETURNS uuid
LANGUAGE plpgsql
VOLATILE
SET search_path = ''
AS $$
#variable_conflict use_column
DECLARE
    v_id    uuid;
    v_us    pg_catalog.int8;
    v_wrong pg_catalog.text;
    v_round pg_catalog.int4 := 0;
BEGIN
    v_wrong := CASE
        WHEN enqueue_email.to_email IS NULL THEN 'to_email: is missing'
        WHEN enqueue_email.subject IS NULL THEN 'subject: is missing'
        WHEN enqueue_email.html IS NULL THEN 'html: is missing'
        WHEN enqueue_email.to_email !~ '^[^@[:space:],;<>]+@[^@[:space:],;<>]+$'
            THEN 'to_email: must be one address, such as ada@example.com'
        WHEN length(enqueue_email.subject) > 2000 THEN 'subject: is longer than 2000 characters'
        WHEN enqueue_email.subject ~ '[\n\r]' THEN 'subject: must be one line'
        WHEN enqueue_email.from_email ~ '[\n\r]' THEN 'from_email: must be one line'
        WHEN enqueue_email.reply_to ~ '[\n\r]' THEN 'reply_to: must be one line'
        WHEN enqueue_email.from_email !~ '^$|@' THEN 'from_email: must be an address, such as ada@example.com'
        WHEN enqueue_email.reply_to !~ '^$|@' THEN 'reply_to: must be an address, such as ada@example.com'
        WHEN enqueue_email.max_attempts < 1 THEN 'max_attempts: must be 1 or more'
        WHEN jsonb_typeof(enqueue_email.headers) <> 'object' THEN 'headers: must be an object of names and values'
        WHEN jsonb_typeof(enqueue_email.metadata) <> 'object' THEN 'metadata: must be an object'
    END;
    -- Apart: with a subquery in it the CASE above would be a query, planned and run at every call.
    IF v_wrong IS NULL AND enqueue_email.headers IS NOT NULL THEN
        IF EXISTS (
            SELECT 1
            FROM jsonb_each(enqueue_email.headers) AS header (name, value)
            WHERE header.name !~ '^[!-9;-~]{1,76}$'
                OR jsonb_typeof(header.value) <> 'string'
                OR header.value #>> '{}' ~ '[\n\r]'
        ) THEN
            v_wrong := 'headers: each must be a name of letters, digits and dashes with one line of text';
        END IF;
    END IF;
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = v_wrong;
    END IF;

    LOOP
        -- An id as enqueue_emails has it. Apart, since it is worked out more than once where it is written in place.
        v_us := date_part('epoch', clock_timestamp()) * 1000000;
        -- Waits for a transaction that holds the same key; a row that was there comes back by its id.
        INSERT INTO public.email_queue AS email (
            id, to_email, subject, html, from_email, reply_to, email_type, metadata, idempotency_key,
            next_retry_at, priority, max_attempts, text, headers
        )
        VALUES (
            (
                lpad(to_hex((v_us / 1000 << 16) + 28672 + v_us % 1000 * 4096 / 1000), 16, '0')
                || substr(gen_random_uuid()::pg_catalog.text, 20)
            )::uuid,
            enqueue_email.to_email, enqueue_email.subject, enqueue_email.html, enqueue_email.from_email,
            enqueue_email.reply_to, enqueue_email.email_type, COALESCE(enqueue_email.metadata, '{}'),
            enqueue_email.idempotency_key, enqueue_email.send_at, COALESCE(enqueue_email.priority, 0),
            COALESCE(enqueue_email.max_attempts, 6), enqueue_email.text, enqueue_email.headers
        )
        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
        RETURNING email.id INTO v_id;
        EXIT WHEN v_id IS NOT NULL;

        SELECT email.id
        INTO v_id
        FROM public.email_queue AS email
        WHERE email.idempotency_key = enqueue_email.idempotency_key;
        -- Not there: the row that was in the way has been deleted meanwhile.
        EXIT WHEN v_id IS NOT NULL;
        v_round := v_round + 1;
        IF enqueue_email.idempotency_key IS NULL OR v_round = 10 THEN
            RAISE EXCEPTION USING
                ERRCODE = 'triggered_action_exception',
                MESSAGE = 'a trigger of email_queue that is not postroom''s lets no row in: it returns NULL';
        END IF;
    END LOOP;
    RETURN v_id;
END;
$$;
COMMENT ON FUNCTION public.enqueue_email(
    text, text, text, text, text, text, jsonb, text, timestamptz, integer, integer, text, jsonb
) IS 'postroom: queues one e-mail in the caller''s transaction; the same idempotency_key gives the first id';

-- enqueue_emails: queues many e-mails, all or none, and gives their ids in their order; each is an object with
-- the names of enqueue_email's arguments, and "attachments"; the same is asked of each. An error begins with its place: `emails[3].subject: …`.
--
-- One statement stores them: a call of enqueue_email each takes four times as long (41 us a mail, not 11). They go in
-- by key: a key that another transaction holds is waited for, and two calls that wait in one order cannot
-- wait for each other.
--
-- An id is a UUID of version 7 (RFC 9562, 5.7): ms since 1970 in 48 bits, the version, the rest of the microseconds in 12
-- bits, the variant, random bits. Those of one call are a microsecond apart, in their order. Beside ten million rows a
-- random id has a page of the primary key to itself, which is read, written and logged whole (docs/decisions/0026).
CREATE OR REPLACE FUNCTION public.enqueue_emails(emails jsonb)
RETURNS uuid[]
LANGUAGE plpgsql
VOLATILE
SET search_path = ''
AS $$
DECLARE
    v_fields CONSTANT text [] := ARRAY[
        'to_email', 'subject', 'html', 'from_email', 'reply_to', 'email_type', 'metadata',
        'idempotency_key', 'send_at', 'priority', 'max_attempts', 'text', 'headers', 'attachments'
    ];
    v_token CONSTANT text := '[!#$%&''*+.^_`{|}~0-9A-Za-z-]+';  -- RFC 2045, 5.1; as email/attachments.py has it
    v_types CONSTANT text := format(
        '^%1$s/%1$s([ \t]*;[ \t]*%1$s=(%1$s|"([ !#-\[\]-~]|\\[ -~])*"))*[ \t]*;?[ \t]*$|^$', v_token
    );
    v_wrong    text;
    v_further  record;
    v_file     record;
    v_attached boolean := false;
    v_ids    uuid[] := '{}';
    v_seed   bytea;
    v_us     bigint;
    v_new    uuid[];
    v_place  integer;
    v_key    text;
    v_stored bigint;
BEGIN
    IF jsonb_typeof(emails) IS DISTINCT FROM 'array' OR jsonb_array_length(emails) > 10000 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'emails: must be an array of at most 10,000 e-mails';
    END IF;

    SELECT format('emails[%s]', checked.place - 1) || checked.wrong
    INTO v_wrong
    FROM (
        SELECT
            given.place,
            CASE
                WHEN jsonb_typeof(given.email) <> 'object' THEN ': must be an object'
                WHEN given.email - v_fields <> '{}' THEN format(
                    '.%s: is no field of an e-mail; those are %s',
                    (SELECT left(min(name), 60) FROM jsonb_object_keys(given.email - v_fields) AS name),
                    array_to_string(v_fields, ', ')
                )
                WHEN email.to_email IS NULL THEN '.to_email: is missing'
                WHEN email.subject IS NULL THEN '.subject: is missing'
                WHEN email.html IS NULL THEN '.html: is missing'
                WHEN jsonb_typeof(email.to_email) <> 'string' THEN '.to_email: must be a text'
                WHEN jsonb_typeof(email.subject) <> 'string' THEN '.subject: must be a text'
                WHEN jsonb_typeof(email.html) <> 'string' THEN '.html: must be a text'
                WHEN jsonb_typeof(email.from_email) <> 'string' THEN '.from_email: must be a text'
                WHEN jsonb_typeof(email.reply_to) <> 'string' THEN '.reply_to: must be a text'
                WHEN jsonb_typeof(email.email_type) <> 'string' THEN '.email_type: must be a text'
                WHEN jsonb_typeof(email.idempotency_key) <> 'string' THEN '.idempotency_key: must be a text'
                WHEN jsonb_typeof(email.send_at) <> 'string' THEN '.send_at: must be a text, such as 2030-12-31T23:59:59Z'
                WHEN jsonb_typeof(email.text) <> 'string' THEN '.text: must be a text'
                WHEN email.to_email #>> '{}' !~ '^[^@[:space:],;<>]+@[^@[:space:],;<>]+$'
                    THEN '.to_email: must be one address, such as ada@example.com'
                WHEN length(email.subject #>> '{}') > 2000 THEN '.subject: is longer than 2000 characters'
                WHEN email.subject #>> '{}' ~ '[\n\r]' THEN '.subject: must be one line'
                WHEN email.from_email #>> '{}' ~ '[\n\r]' THEN '.from_email: must be one line'
                WHEN email.reply_to #>> '{}' ~ '[\n\r]' THEN '.reply_to: must be one line'
                WHEN email.from_email #>> '{}' !~ '^$|@' THEN '.from_email: must be an address, such as ada@example.com'
                WHEN email.reply_to #>> '{}' !~ '^$|@' THEN '.reply_to: must be an address, such as ada@example.com'
                WHEN email.max_attempts #>> '{}' !~ '^[0-9]{1,10}$'
                    OR (email.max_attempts #>> '{}')::bigint NOT BETWEEN 1 AND 2147483647
                    THEN '.max_attempts: must be a whole number from 1 to 2147483647'
                WHEN email.priority #>> '{}' !~ '^-?[0-9]{1,10}$'
                    OR (email.priority #>> '{}')::bigint NOT BETWEEN -2147483648 AND 2147483647
                    THEN '.priority: must be a whole number from -2147483648 to 2147483647'
                WHEN jsonb_typeof(email.headers) <> 'object' THEN '.headers: must be an object of names and values'
                WHEN email.headers IS NOT NULL AND EXISTS (
                    SELECT 1
                    FROM jsonb_each(email.headers) AS header (name, value)
                    WHERE header.name !~ '^[!-9;-~]{1,76}$'
                        OR jsonb_typeof(header.value) <> 'string'
                        OR header.value #>> '{}' ~ '[\n\r]'
                ) THEN '.headers: each must be a name of letters, digits and dashes with one line of text'
                WHEN jsonb_typeof(email.metadata) <> 'object' THEN '.metadata: must be an object'
            END AS wrong
        FROM jsonb_array_elements(emails) WITH ORDINALITY AS given (email, place)
        CROSS JOIN LATERAL jsonb_to_record(CASE WHEN jsonb_typeof(given.email) = 'object' THEN given.email END) AS email (
            to_email jsonb, subject jsonb, html jsonb, from_email jsonb, reply_to jsonb, email_type jsonb, metadata jsonb,
            idempotency_key jsonb, send_at jsonb, priority jsonb, max_attempts jsonb, text jsonb, headers jsonb
        )
    ) AS checked
    WHERE checked.wrong IS NOT NULL
    ORDER BY checked.place
    LIMIT 1;
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = v_wrong;
    END IF;

    FOR v_further IN
        SELECT given.email ->> 'send_at' AS send_at, NULLIF(given.email -> 'attachments', 'null') AS files, given.place
        FROM jsonb_array_elements(emails) WITH ORDINALITY AS given (email, place)
        WHERE given.email ->> 'send_at' IS NOT NULL OR given.email ? 'attachments'
    LOOP
        BEGIN
            PERFORM v_further.send_at::timestamptz;
        EXCEPTION WHEN data_exception THEN
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('emails[%s].send_at: must be a moment, such as 2030-12-31T23:59:59Z', v_further.place - 1);
        END;
        CONTINUE WHEN v_further.files IS NULL;

        v_attached := true;
        v_wrong := CASE
            WHEN jsonb_typeof(v_further.files) <> 'array' THEN ': must be an array of {"filename", "content"}'
            WHEN jsonb_array_length(v_further.files) > 100 THEN ': are more than 100'
            WHEN pg_column_size(v_further.files) > 36700160 THEN ': have with their encoding more than 35 MiB'
        END;
        -- One look at each: they may be large, and each one copies them.
        FOR v_file IN
            SELECT
                file.file,
                file.place - 1 AS place,
                COALESCE(NULLIF(file.file -> 'content_type', 'null'), NULLIF(file.file -> 'contentType', 'null')) AS type,
                COALESCE(NULLIF(file.file -> 'content_id', 'null'), NULLIF(file.file -> 'contentId', 'null')) AS content_id
            FROM jsonb_array_elements(CASE WHEN v_wrong IS NULL THEN v_further.files END) WITH ORDINALITY AS file (file, place)
        LOOP
            v_wrong := CASE
                WHEN jsonb_typeof(v_file.file) <> 'object' THEN ': must be an object of filename and content'
                WHEN v_file.file ->> 'path' IS NOT NULL THEN '.path: nothing is fetched; give the file itself as content'
                WHEN v_file.file - '{filename,content,content_type,content_id,contentType,contentId,path}'::text[] <> '{}'
                    THEN ': has fields besides filename, content, content_type and content_id'
                WHEN COALESCE(jsonb_typeof(v_file.file -> 'filename'), '') <> 'string' THEN '.filename: must be a text'
                WHEN v_file.file ->> 'filename' !~ '^[^\u0001-\u001F\u007F-\u009F\u2028\u2029]{1,255}$'
                    THEN '.filename: must be one line of at most 255 characters'
                WHEN v_file.file ->> 'filename' !~ '[^ \u00A0\u1680\u2000-\u200A\u202F\u205F\u3000]'
                    THEN '.filename: must not be empty'
                WHEN COALESCE(jsonb_typeof(v_file.file -> 'content'), '') <> 'string'
                    THEN '.content: must be a text, the file in base64'
                -- Its decode() looks no further than the first that there is.
                WHEN strpos(rtrim(v_file.file ->> 'content', E'= \t\r\n'), '=') > 0 THEN '.content: is no base64'
                WHEN jsonb_typeof(v_file.type) <> 'string' THEN '.content_type: must be a text'
                WHEN v_file.type #>> '{}' ~* '^multipart/' THEN '.content_type: must be a file''s, not that of several parts'
                WHEN length(v_file.type #>> '{}') > 200 OR v_file.type #>> '{}' !~ v_types
                    THEN '.content_type: must be a type, such as application/pdf'
                WHEN jsonb_typeof(v_file.content_id) <> 'string' THEN '.content_id: must be a text'
                WHEN v_file.content_id #>> '{}' !~ '^(<?[!-;=?-~]{1,200}>?)?$'
                    THEN '.content_id: must be a word, such as logo'
            END;
            IF v_wrong IS NULL THEN
                BEGIN
                    PERFORM decode(v_file.file ->> 'content', 'base64');
                EXCEPTION WHEN data_exception THEN
                    v_wrong := '.content: is no base64';
                END;
            END IF;
            IF v_wrong IS NOT NULL THEN
                v_wrong := format('[%s]', v_file.place) || v_wrong;
                EXIT;
            END IF;
        END LOOP;
        IF v_wrong IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('emails[%s].attachments%s', v_further.place - 1, v_wrong);
        END IF;
    END LOOP;

    -- gen_random_uuid() takes 2.6 us of 7 for a row, a hash of one of them and a number 1. They are written out here and in
    -- enqueue_email, since roles of applications may call nothing in schema postroom.
    v_seed := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
    v_us := date_part('epoch', clock_timestamp()) * 1000000;
    v_new := ARRAY(
        SELECT
            (
                lpad(to_hex((made.us / 1000 << 16) + 28672 + made.us % 1000 * 4096 / 1000), 16, '0')
                || 'a'
                || substr(encode(sha256(v_seed || int8send(made.us)), 'hex'), 1, 15)
            )::uuid
        FROM generate_series(v_us + 1, v_us + jsonb_array_length(emails)) AS made (us)
    );

    FOR v_round IN 1..10 LOOP
        -- Apart: a table's own column of this name may be of another type, or take no NULL, and is not named without need.
        IF v_attached THEN
            INSERT INTO public.email_queue (
                id, to_email, subject, html, from_email, reply_to, email_type, metadata, idempotency_key,
                next_retry_at, priority, max_attempts, text, headers, attachments
            )
            SELECT
                v_new[given.place], given.to_email, given.subject, given.html, given.from_email, given.reply_to, given.email_type,
                COALESCE(given.metadata, '{}'), given.idempotency_key, given.send_at, COALESCE(given.priority, 0),
                COALESCE(given.max_attempts, 6), given.text, given.headers,
                COALESCE(given.attachments, '[]')
            FROM ROWS FROM (
                jsonb_to_recordset(emails) AS (
                    to_email text, subject text, html text, from_email text, reply_to text, email_type text, metadata jsonb,
                    idempotency_key text, send_at timestamptz, priority integer, max_attempts integer, text text,
                    headers jsonb, attachments jsonb
                )
            ) WITH ORDINALITY AS given (
                to_email, subject, html, from_email, reply_to, email_type, metadata,
                idempotency_key, send_at, priority, max_attempts, text, headers, attachments, place
            )
            WHERE v_ids[given.place] IS NULL
            ORDER BY given.idempotency_key NULLS FIRST, given.place
            ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING;
        ELSE
            INSERT INTO public.email_queue (
                id, to_email, subject, html, from_email, reply_to, email_type, metadata, idempotency_key,
                next_retry_at, priority, max_attempts, text, headers
            )
            SELECT
                v_new[given.place], given.to_email, given.subject, given.html, given.from_email, given.reply_to, given.email_type,
                COALESCE(given.metadata, '{}'), given.idempotency_key, given.send_at, COALESCE(given.priority, 0),
                COALESCE(given.max_attempts, 6), given.text, given.headers
            FROM ROWS FROM (
                jsonb_to_recordset(emails) AS (
                    to_email text, subject text, html text, from_email text, reply_to text, email_type text, metadata jsonb,
                    idempotency_key text, send_at timestamptz, priority integer, max_attempts integer, text text,
                    headers jsonb
                )
            ) WITH ORDINALITY AS given (
                to_email, subject, html, from_email, reply_to, email_type, metadata,
                idempotency_key, send_at, priority, max_attempts, text, headers, place
            )
            WHERE v_ids[given.place] IS NULL
            ORDER BY given.idempotency_key NULLS FIRST, given.place
            ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING;
        END IF;
        GET DIAGNOSTICS v_stored = ROW_COUNT;
        IF v_stored = cardinality(v_new) THEN
            RETURN v_new;
        END IF;

        -- Rows with their key were there. One may have been deleted meanwhile: then it is queued after all.
        FOR v_place, v_key IN
            SELECT given.place, given.email ->> 'idempotency_key'
            FROM jsonb_array_elements(emails) WITH ORDINALITY AS given (email, place)
            WHERE v_ids[given.place] IS NULL
            ORDER BY given.place
        LOOP
            IF v_key IS NULL THEN
                v_ids[v_place] := (SELECT email.id FROM public.email_queue AS email WHERE email.id = v_new[v_place]);
            ELSE
                v_ids[v_place] := (
                    SELECT email.id FROM public.email_queue AS email WHERE email.idempotency_key = v_key
                );
            END IF;
        END LOOP;
        IF array_position(v_ids, NULL) IS NULL THEN
            RETURN v_ids;
        END IF;
    END LOOP;
    RAISE EXCEPTION USING
        ERRCODE = 'triggered_action_exception',
        MESSAGE = format(
            'emails[%s]: a trigger of email_queue that is not postroom''s lets no row in: it returns NULL',
            array_position(v_ids, NULL) - 1
        );
END;
$$;
COMMENT ON FUNCTION public.enqueue_emails(jsonb)
IS 'postroom: queues many e-mails, also with attachments, all or none, in the caller''s transaction; gives ids in order';
