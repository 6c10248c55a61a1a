-- The e-mail queue: enqueue, claim, begin, settle.

-- In one transaction with the functions that return it: between the two, each claim would fail.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT 1
        FROM pg_catalog.pg_attribute AS known
        WHERE known.attrelid = 'postroom.claimed_email'::regclass AND known.attname = 'attached'
    ) THEN
        ALTER TYPE postroom.claimed_email ADD ATTRIBUTE attached integer;
    END IF;
END;
$$;

-- attachments_by_default: what a row has in attachments that says nothing of it: the default that a column of this name had
-- before. Its mails were whole without; one for each mail, such as terms, is a default in the shape of files. Asked for each
-- row that has something there, so it is written down once: a constant costs nothing.
DO $$
DECLARE
    v_default text;
    v_kind    text;
    v_held    jsonb;
    v_file    jsonb;
BEGIN
    SELECT pg_get_expr(made.adbin, made.adrelid), format_type(known.atttypid, known.atttypmod)
    INTO v_default, v_kind
    FROM pg_catalog.pg_attribute AS known
    JOIN pg_catalog.pg_attrdef AS made ON made.adrelid = known.attrelid AND made.adnum = known.attnum
    WHERE known.attrelid = 'public.email_queue'::regclass AND known.attname = 'attachments' AND known.attgenerated = '';
    -- Only what is the same for each row: a literal, which calls nothing.
    IF v_default ~ '^(''([^'']|'''')*''|[(]?-?[0-9.]+[)]?|true|false)(::[^()'']+([(][0-9,]+[)])?(\[\])*)*$' THEN
        EXECUTE format('SELECT pg_catalog.to_jsonb((%s)::%s)', v_default, v_kind) INTO v_held;
        BEGIN
            v_file := CASE jsonb_typeof(v_held) WHEN 'string' THEN (v_held #>> '{}')::jsonb ELSE v_held END -> 0;
        EXCEPTION WHEN data_exception THEN
            v_file := NULL;  -- a text that is no JSON
        END;
        IF v_file ?& '{filename,content}' THEN
            v_held := NULL;
        END IF;
    END IF;
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION postroom.attachments_by_default() RETURNS jsonb LANGUAGE sql IMMUTABLE AS %L',
        format('SELECT %L::jsonb', v_held)
    );
END;
$$;

-- attached_bytes: about how many bytes a row's attachments take; NULL where there are none. Nothing is read for it that
-- is stored apart.
--
-- Of whatever type the column is: a hand-made table may have one of this name. [], {}, '', false and 0 are none, and so is
-- its default, unless that has files. Whose path it is called by does not matter: a to_jsonb(jsonb) in public would fit
-- better than that of pg_catalog.
CREATE OR REPLACE FUNCTION postroom.attached_bytes(p_attachments anyelement)
RETURNS integer
LANGUAGE sql
STABLE
AS $$
    SELECT CASE
        WHEN p_attachments IS NULL THEN NULL
        WHEN pg_catalog.pg_column_size(p_attachments) >= 1000 THEN pg_catalog.pg_column_size(p_attachments)
        WHEN pg_catalog.to_jsonb(p_attachments) IN (
            'null', '[]', '{}', '""', '"[]"', 'false', '0', postroom.attachments_by_default()
        ) THEN NULL
        ELSE pg_catalog.pg_column_size(p_attachments)
    END;
$$;

-- claim_emails: lease up to p_limit due e-mails to one worker: the highest priority first, then what has
-- been due longest. p_before leaves out what became due later; p_from is written into rows that
-- name no sender, so that every attempt sends the same.
--
-- Claiming moves the due time to the end of the lease, so one column says when a row may be taken, one
-- index finds it, and a crashed worker costs time and nothing else. No more are claimed than the
-- global limit has slots for, and p_beyond (below 0: what the worker holds and has not begun): those that wait
-- for it keep their place untouched.
--
-- p_attachments: whether the worker knows of attachments; to one of before, an e-mail that has some is not given.
--
-- A row whose own trigger refuses the update would fail the whole batch: then the rows are
-- taken one by one, and that one is set aside. (OTHERS leaves out a failed ASSERT, which is no less the row's own.)
DROP FUNCTION IF EXISTS postroom.claim_emails(uuid, integer, text, timestamptz, integer);
CREATE OR REPLACE FUNCTION postroom.claim_emails(
    p_worker      uuid,
    p_limit       integer,
    p_from        text DEFAULT NULL,
    p_before      timestamptz DEFAULT NULL,
    p_beyond      integer DEFAULT 0,
    p_attachments boolean DEFAULT false
)
RETURNS SETOF postroom.claimed_email
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_free integer;
BEGIN
    SELECT book.free INTO v_free FROM postroom.free_slots('email:global') AS book;
    IF v_free = 0 OR v_free + p_beyond <= 0 THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT *
    FROM postroom.lease_emails(
        p_worker, LEAST(p_limit, v_free + p_beyond), postroom.lease_length(), p_from, p_before, p_attachments
    );
    IF FOUND THEN
        PERFORM postroom.get_up(p_worker);
    END IF;
END;
$$;

-- first_live_email: the highest priority below p_below that has live rows, and since when the first of them is due, or
-- from when on it will be; NULL where there is none. p_look: last_look; where it is given, only what is due by p_until
-- is looked for: beyond stand the dead entries of the leases of the last minute.
CREATE OR REPLACE FUNCTION postroom.first_live_email(
    p_below bigint, p_look jsonb, p_until timestamptz, OUT priority integer, OUT first_at timestamptz
)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_below bigint := p_below;
    v_known integer;
BEGIN
    LOOP
        IF p_look IS NULL OR v_below <= (p_look ->> 'lowest')::bigint THEN
            SELECT live.priority, COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
            INTO first_live_email.priority, first_at
            FROM public.email_queue AS live
            WHERE live.status IN ('pending', 'processing')
                -- One comparison: an OR is no condition of an index, and walks all that is live in a plan for any value.
                AND live.priority < v_below
            ORDER BY live.priority DESC, COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
            LIMIT 1;
            RETURN;
        END IF;

        SELECT max(known.priority::integer)
        INTO v_known
        FROM jsonb_object_keys(p_look -> 'floors') AS known (priority)
        WHERE known.priority::bigint < v_below;

        -- One between them that has come since.
        SELECT live.priority, COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        INTO first_live_email.priority, first_at
        FROM public.email_queue AS live
        WHERE live.status IN ('pending', 'processing')
            AND live.priority < v_below
            AND live.priority > COALESCE(v_known, -2147483649)
            AND COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
                >= (SELECT to_timestamp((p_look ->> 'from')::double precision))
            AND COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz) <= (SELECT p_until)
        ORDER BY live.priority DESC, COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        LIMIT 1;
        IF FOUND OR v_known IS NULL THEN
            RETURN;
        END IF;

        SELECT live.priority, COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        INTO first_live_email.priority, first_at
        FROM public.email_queue AS live
        WHERE live.status IN ('pending', 'processing')
            AND live.priority = v_known
            AND COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz) >= (
                SELECT COALESCE(
                    to_timestamp((p_look -> 'floors' ->> v_known::text)::double precision), '-infinity'::timestamptz
                )
            )
            AND COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz) <= (SELECT p_until)
        ORDER BY COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        LIMIT 1;
        IF FOUND THEN
            RETURN;
        END IF;
        v_below := v_known;
    END LOOP;
END;
$$;

-- lock_due_emails: locks up to p_limit due rows of one priority and gives their ids, oldest due first. p_floor: those
-- that were due before it are left out: none of them is live (first_live_email). p_attachments: also those that have some.
DROP FUNCTION IF EXISTS postroom.lock_due_emails(integer, integer, timestamptz);
DROP FUNCTION IF EXISTS postroom.lock_due_emails(integer, integer, timestamptz, timestamptz);
CREATE OR REPLACE FUNCTION postroom.lock_due_emails(
    p_priority integer, p_limit integer, p_before timestamptz, p_floor timestamptz, p_attachments boolean
)
RETURNS TABLE (id uuid, crashed boolean)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
    SELECT
        due.id,
        -- Its lease has ended with the start mark set: the worker died during the attempt.
        due.status = 'processing'
        AND due.leased_by IS NOT NULL
        AND postroom.begun_by(due.leased_by, due.id, due.lease_no)
    FROM public.email_queue AS due
    WHERE due.status IN ('pending', 'processing')
        AND due.priority = p_priority
        -- Bare, clock_timestamp() is volatile and walks the whole index: 80 ms, not 0.02.
        AND COALESCE(due.due_at, due.next_retry_at, '-infinity'::timestamptz)
            <= (SELECT LEAST(clock_timestamp(), p_before))
        AND COALESCE(due.due_at, due.next_retry_at, '-infinity'::timestamptz)
            >= (SELECT COALESCE(p_floor, '-infinity'::timestamptz))
        -- Claimed before postroom came: the end of that lease is written elsewhere.
        AND (due.status = 'pending' OR due.due_at IS NOT NULL OR postroom.old_lease_ended('email', due.id))
        AND (p_attachments OR postroom.attached_bytes(due.attachments) IS NULL)
        AND NOT EXISTS (
            SELECT 1
            FROM postroom.refused_rows AS refused
            WHERE refused.queue = 'email'
                AND refused.id = due.id
                AND (refused.verdict IS NOT NULL OR refused.next_try_at > (SELECT clock_timestamp()))
        )
    ORDER BY COALESCE(due.due_at, due.next_retry_at, '-infinity'::timestamptz)
    LIMIT p_limit
    FOR NO KEY UPDATE OF due SKIP LOCKED;
END;
$$;

-- an_email_has_a_place: whether any e-mail waits in the line of a limit.
--
-- Asked for in the order of the index of those that do, and without leave to sort: with statistics of an hour when all had
-- been sent, the index of what is live looks as short, and each claim read all of it (10,000 rows, 6 of 18 us a mail).
CREATE OR REPLACE FUNCTION postroom.an_email_has_a_place()
RETURNS boolean
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
BEGIN
    PERFORM 1
    FROM public.email_queue AS waiting
    WHERE waiting.status = 'pending' AND waiting.planned_under IS NOT NULL
    ORDER BY waiting.planned_under
    LIMIT 1;
    RETURN FOUND;
END;
$$;

-- plan_due_emails: gives those of some due rows their time, without a lease, that would surely have to wait: in the
-- line of their recipient (domain, type, sender) stand as many as it has slots in a window. So a mail that waits is
-- written to once. The rows are locked; the books are passed over where somebody holds them, so this waits for nobody.
--
-- others are the rows that may be leased; planned says how many have got a time. The rest stays due for the next look.
CREATE OR REPLACE FUNCTION postroom.plan_due_emails(
    p_ids uuid[], p_from text, OUT others uuid[], OUT planned integer
)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_ids     uuid[];
    v_to      text[];
    v_from    text[];
    v_types   text[];
    v_keys    text[];
    v_amounts integer[];
    v_spans   interval[];
    v_names   text[];
    v_held    text[];
BEGIN
    others := p_ids;
    planned := 0;
    SELECT
        array_agg(mail.id), array_agg(mail.to_email), array_agg(mail.from_email), array_agg(mail.email_type)
    INTO v_ids, v_to, v_from, v_types
    FROM (
        SELECT
            email.id, email.to_email, COALESCE(NULLIF(email.from_email, ''), p_from) AS from_email, email.email_type,
            -- Whose turn has come, who passes the line, and whose lease has ended, is leased.
            email.status = 'pending' AND email.planned_under IS NULL AND email.priority <= 0 AS has_no_place
        FROM unnest(p_ids) WITH ORDINALITY AS due (id, place)
        JOIN public.email_queue AS email ON email.id = due.id
        ORDER BY due.place
        OFFSET 0
    ) AS mail
    WHERE mail.has_no_place;

    SELECT
        array_agg(v_ids[stop.place] ORDER BY stop.place),
        array_agg(stop.key ORDER BY stop.place),
        array_agg(stop.amount ORDER BY stop.place),
        array_agg(stop.span ORDER BY stop.place),
        array_agg(stop.name ORDER BY stop.place)
    INTO v_ids, v_keys, v_amounts, v_spans, v_names
    FROM (
        SELECT DISTINCT ON (hold.place) hold.place, hold.key, hold.amount, hold.span, hold.name
        FROM postroom.limits_of_emails(v_to, v_from, v_types, NULL, NULL) AS hold
        JOIN public.rate_limit_counters AS counter ON counter.key = hold.key
        WHERE counter.planned_under = hold.name AND counter.planned - counter.taken_total >= hold.amount
        ORDER BY hold.place, hold.rank
    ) AS stop;
    IF v_ids IS NULL THEN
        RETURN;
    END IF;

    SELECT array_agg(book.key)
    INTO v_held
    FROM (
        SELECT counter.key
        FROM public.rate_limit_counters AS counter
        WHERE counter.key = ANY (v_keys)
        ORDER BY counter.key
        FOR UPDATE SKIP LOCKED
    ) AS book;

    -- What is known of their books may have changed meanwhile: now it cannot.
    WITH mail AS MATERIALIZED (
        SELECT
            line.id, line.key, line.name,
            postroom.turn_at(
                line.key,
                counter.planned - counter.taken_total + row_number() OVER (PARTITION BY line.key ORDER BY line.place),
                0, line.amount, line.span, clock_timestamp()
            ) AS due_at
        FROM unnest(v_ids, v_keys, v_amounts, v_spans, v_names)
            WITH ORDINALITY AS line (id, key, amount, span, name, place)
        JOIN public.rate_limit_counters AS counter ON counter.key = line.key
        WHERE line.key = ANY (v_held)
            AND counter.planned_under = line.name
            AND counter.planned - counter.taken_total >= line.amount
    ),

    given AS (
        UPDATE public.email_queue
        SET status = 'pending',
            due_at = mail.due_at,
            next_retry_at = mail.due_at,
            wanted_at = CASE WHEN email_queue.waits_for = 'send_at' THEN email_queue.next_retry_at ELSE email_queue.wanted_at END,
            waits_for = 'limit:' || mail.key,
            planned_under = mail.name,
            updated_at = clock_timestamp()
        FROM mail
        WHERE email_queue.id = mail.id
        RETURNING mail.key
    ),

    tallied AS (
        INSERT INTO postroom.tallies (queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms)
        SELECT tally.*
        FROM postroom.tally_of_waits(ARRAY(SELECT 'limit:' || given.key FROM given)) AS tally
    ),

    longer AS (
        UPDATE public.rate_limit_counters AS counter
        SET planned = counter.planned + line.count
        FROM (SELECT given.key, count(*) AS count FROM given GROUP BY given.key) AS line
        WHERE counter.key = line.key
    )

    SELECT count(*) INTO planned FROM given;
    SELECT array_agg(due.id ORDER BY due.place)
    INTO others
    FROM unnest(p_ids) WITH ORDINALITY AS due (id, place)
    WHERE due.id <> ALL (v_ids);
EXCEPTION WHEN OTHERS OR assert_failure THEN
    IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
        RAISE;
    END IF;
    -- A row's own trigger refuses: the lease finds out which.
    others := p_ids;
    planned := 0;
END;
$$;

-- lease_emails: takes the leases; no rows where nothing is due. A NULL worker is an old caller, who takes no slots, and
-- would send an e-mail without its attachments: those that have some are left to workers (p_attachments).
--
-- Rows are locked and written in one subtransaction: rows that are locked by one and written by another take a
-- multixact a claim, and whoever looks at them looks that up.
--
-- The last argument may be missing: until 60_callers.sql follows, the get_email_queue_batch of before calls this one.
DROP FUNCTION IF EXISTS postroom.lease_emails(uuid, integer, interval, text, timestamptz);
CREATE OR REPLACE FUNCTION postroom.lease_emails(
    p_worker uuid, p_limit integer, p_lease interval, p_from text, p_before timestamptz, p_attachments boolean DEFAULT false
)
RETURNS SETOF postroom.claimed_email
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_look     jsonb := postroom.last_look('email');
    v_began    timestamptz := clock_timestamp();
    v_step     timestamptz;
    v_took     interval := '0 seconds';
    v_pages    bigint := 0;
    v_first    timestamptz;
    v_floors   jsonb := '{}';
    v_priority integer;
    v_lowest   integer;
    v_due      uuid[];
    v_crashed  uuid[];
    v_leased   integer := 0;
    v_count    integer;
    v_id       uuid;
    v_looked   integer;
    v_planned  integer := 0;
    v_looks    integer := 1000;  -- how many may be planned in one call
    v_singly   boolean := false; -- a row of this priority has refused
BEGIN
    -- One look a claim, whatever its size: 1.5 us and a page or two. Whoever claims comes through here.
    IF EXISTS (
        SELECT 1
        FROM postroom.pauses AS pause
        WHERE pause.kind = 'queue' AND pause.name = 'email' AND COALESCE(pause.until > clock_timestamp(), true)
    ) THEN
        RETURN;
    END IF;

    LOOP
        EXIT WHEN v_leased >= p_limit;
        -- Where all that was looked at got a time or a lease, the same priority may have more.
        IF v_planned = 0 AND NOT v_singly THEN
            v_step := clock_timestamp();
            v_pages := v_pages - pg_stat_get_xact_blocks_fetched('public.email_queue'::regclass);
            SELECT live.priority, live.first_at
            INTO v_priority, v_first
            FROM postroom.first_live_email(COALESCE(v_lowest, 2147483648), v_look, v_step) AS live;
            v_took := v_took + (clock_timestamp() - v_step);
            v_pages := v_pages + pg_stat_get_xact_blocks_fetched('public.email_queue'::regclass);
            v_lowest := v_priority;
            EXIT WHEN v_priority IS NULL;
            v_floors := postroom.add_floor(v_floors, v_priority, v_first, v_began);
        END IF;
        v_planned := 0;

        BEGIN
            SELECT
                array_agg(due.id) FILTER (WHERE NOT due.crashed),
                array_agg(due.id) FILTER (WHERE due.crashed)
            INTO v_due, v_crashed
            FROM postroom.lock_due_emails(
                v_priority, p_limit - v_leased, p_before, v_first, p_attachments
            ) AS due;

            IF v_crashed IS NOT NULL THEN
                PERFORM postroom.settle_crashed_emails(v_crashed);
            END IF;

            -- A pass over what is due counts what it puts back: there all are leased.
            IF v_due IS NOT NULL AND p_worker IS NOT NULL AND p_before IS NULL AND postroom.an_email_has_a_place() THEN
                v_looked := cardinality(v_due);
                SELECT plan.others, plan.planned
                INTO v_due, v_planned
                FROM postroom.plan_due_emails(v_due, p_from) AS plan;
                v_looks := v_looks - v_planned;
                IF v_looks <= 0 OR v_planned + COALESCE(cardinality(v_due), 0) < v_looked THEN
                    v_planned := 0;
                END IF;
            END IF;

            IF v_due IS NOT NULL AND NOT v_singly THEN
                RETURN QUERY SELECT * FROM postroom.write_email_leases(p_worker, v_due, p_lease, p_from);
                GET DIAGNOSTICS v_count = ROW_COUNT;
                v_leased := v_leased + v_count;
            END IF;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            IF v_singly OR NOT postroom.is_the_rows_own(SQLSTATE) THEN
                RAISE;
            END IF;
            v_singly := true;
            CONTINUE;
        END;
        IF v_singly AND v_due IS NOT NULL THEN
            FOREACH v_id IN ARRAY v_due LOOP
                BEGIN
                    RETURN QUERY SELECT * FROM postroom.write_email_leases(p_worker, ARRAY[v_id], p_lease, p_from);
                    v_leased := v_leased + 1;
                EXCEPTION WHEN OTHERS OR assert_failure THEN
                    IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
                        RAISE;
                    END IF;
                    PERFORM postroom.set_aside('email', v_id, SQLERRM, NULL, NULL, NULL);
                END;
            END LOOP;
        END IF;
        v_singly := false;
    END LOOP;
    PERFORM postroom.keep_look('email', v_look, v_floors, v_lowest, v_began, v_took, v_pages);
    IF v_leased = 0 AND postroom.look_again('email', v_look) THEN
        RETURN QUERY SELECT * FROM postroom.lease_emails(p_worker, p_limit, p_lease, p_from, p_before, p_attachments);
    END IF;
END;
$$;

-- write_email_leases: leases some locked rows, and gives them back in the order of p_ids.
DROP FUNCTION IF EXISTS postroom.write_email_leases(uuid, uuid[], interval, text);
CREATE FUNCTION postroom.write_email_leases(
    p_worker uuid, p_ids uuid[], p_lease interval, p_from text
)
RETURNS SETOF postroom.claimed_email
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
    WITH leased AS (
        UPDATE public.email_queue
        SET status = 'processing',
            due_at = clock_timestamp() + p_lease,
            lease_no = email_queue.lease_no + 1,
            leased_by = p_worker,
            from_email = COALESCE(NULLIF(email_queue.from_email, ''), p_from),
            updated_at = clock_timestamp()
        FROM unnest(p_ids) WITH ORDINALITY AS due (id, place)
        WHERE email_queue.id = due.id
        RETURNING
            due.place, email_queue.id, email_queue.lease_no, email_queue.to_email, email_queue.subject,
            email_queue.html, email_queue.text, email_queue.from_email, email_queue.reply_to, email_queue.headers,
            email_queue.created_at, email_queue.attempts, email_queue.max_attempts, email_queue.email_type,
            postroom.attached_bytes(email_queue.attachments) AS attached
    )
    SELECT
        leased.id, leased.lease_no, extract(EPOCH FROM p_lease)::double precision, leased.to_email, leased.subject,
        -- NULL: beyond what any mail server takes, and more than a worker should hold in memory.
        CASE WHEN octet_length(leased.html) + COALESCE(octet_length(leased.text), 0) <= 52428800 THEN leased.html END,
        CASE WHEN octet_length(leased.html) + octet_length(leased.text) <= 52428800 THEN leased.text END,
        leased.from_email, leased.reply_to, leased.headers, leased.created_at,
        COALESCE(leased.attempts, 0), COALESCE(leased.max_attempts, 6), leased.email_type, leased.attached
    FROM leased
    ORDER BY leased.place;
END;
$$;

-- email_attachments: an e-mail's attachments, whatever type their column is of; no row where they are more than a worker
-- should hold in memory, or the e-mail is gone.
CREATE OR REPLACE FUNCTION postroom.email_attachments(p_id uuid)
RETURNS SETOF text
LANGUAGE plpgsql
STABLE
SET search_path = ''
AS $$
BEGIN
    RETURN QUERY
    SELECT read.attachments
    FROM (
        SELECT to_jsonb(email.attachments)::text AS attachments
        FROM public.email_queue AS email
        WHERE email.id = p_id
        OFFSET 0  -- written out twice else
    ) AS read
    WHERE COALESCE(octet_length(read.attachments), 0) <= 52428800;
END;
$$;

-- set_aside: notes a row that refuses our update, so that it stops no other. It is tried again after
-- five minutes; where an outcome is known, only that outcome is.
CREATE OR REPLACE FUNCTION postroom.set_aside(
    p_queue text, p_id uuid, p_error text, p_lease_no bigint, p_verdict text, p_reply text
)
RETURNS void
LANGUAGE sql
SET search_path = ''
AS $$
    INSERT INTO postroom.refused_rows (queue, id, error, lease_no, verdict, reply, next_try_at)
    VALUES (p_queue, p_id, p_error, p_lease_no, p_verdict, p_reply, clock_timestamp() + interval '5 minutes')
    ON CONFLICT (queue, id) DO UPDATE
    SET error = EXCLUDED.error,
        lease_no = COALESCE(EXCLUDED.lease_no, refused_rows.lease_no),
        verdict = COALESCE(EXCLUDED.verdict, refused_rows.verdict),
        reply = COALESCE(EXCLUDED.reply, refused_rows.reply),
        next_try_at = EXCLUDED.next_try_at;
$$;

-- email_wait_s: seconds until there is something to claim: 0 now, NULL nothing at all. At most 1 while a look at
-- everything takes long (last_look). While the queue is paused: until that ends.
CREATE OR REPLACE FUNCTION postroom.email_wait_s()
RETURNS double precision
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_look     jsonb := postroom.last_look('email');
    v_began    timestamptz := clock_timestamp();
    v_step     timestamptz;
    v_took     interval := '0 seconds';
    v_pages    bigint := 0;
    v_first    timestamptz;
    v_floors   jsonb := '{}';
    v_priority integer;
    v_due      timestamptz;
    v_next     timestamptz;
    v_pause_s  double precision;
    v_slot_s   double precision;
BEGIN
    v_pause_s := postroom.queue_pause_s('email');
    IF v_pause_s IS NOT NULL THEN
        RETURN NULLIF(v_pause_s, 'Infinity');
    END IF;

    LOOP
        v_step := clock_timestamp();
        v_pages := v_pages - pg_stat_get_xact_blocks_fetched('public.email_queue'::regclass);
        SELECT live.priority, live.first_at
        INTO v_priority, v_first
        FROM postroom.first_live_email(COALESCE(v_priority, 2147483648), v_look, v_step + interval '1 second') AS live;
        v_took := v_took + (clock_timestamp() - v_step);
        v_pages := v_pages + pg_stat_get_xact_blocks_fetched('public.email_queue'::regclass);
        EXIT WHEN v_priority IS NULL;
        v_floors := postroom.add_floor(v_floors, v_priority, v_first, v_began);

        SELECT COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        INTO v_due
        FROM public.email_queue AS live
        WHERE live.status IN ('pending', 'processing')
            AND live.priority = v_priority
            AND COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
                >= (SELECT v_first)
            AND (live.status = 'pending' OR live.due_at IS NOT NULL)
            AND NOT EXISTS (
                SELECT 1
                FROM postroom.refused_rows AS refused
                WHERE refused.queue = 'email' AND refused.id = live.id
            )
        ORDER BY COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        LIMIT 1;
        v_next := LEAST(v_next, NULLIF(v_due, 'infinity'));
    END LOOP;
    PERFORM postroom.keep_look('email', v_look, v_floors, NULL, v_began, v_took, v_pages);
    IF v_look IS NOT NULL THEN
        v_next := LEAST(v_next, v_began + interval '1 second');
    END IF;
    IF v_next IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT book.wait_s INTO v_slot_s FROM postroom.free_slots('email:global') AS book;
    RETURN GREATEST(
        CASE WHEN v_next = '-infinity' THEN 0 ELSE extract(EPOCH FROM v_next - clock_timestamp()) END,
        v_slot_s, 0
    );
END;
$$;

-- begin_emails: the last step before the transport is called. It takes the slots of the limits, writes
-- the start marks, and puts back the rows that must wait. Those that are no longer ours are not in the answer.
--
-- p_routes, p_rerouted: the transport that each is about to go out by; true where it was begun less than 250 ms
-- ago by another one: its slots of all limits but the transport's are still good.
--
-- p_begun: the attempts that this worker has begun before and not settled: the worker's mark is one
-- list, written whole, one small update a batch.
--
-- A lease with less than half its length left is extended, so that nobody can take the row over between this look
-- and the commit; one that was taken over while this waited for the books is left out.
DROP FUNCTION IF EXISTS postroom.begin_emails(uuid, uuid[], bigint[], uuid[], bigint[]);
DROP FUNCTION IF EXISTS postroom.begin_emails_v2(uuid, uuid[], bigint[], uuid[], bigint[], text[], boolean[]);
CREATE OR REPLACE FUNCTION postroom.begin_emails(
    p_worker          uuid,
    p_ids             uuid[],
    p_lease_nos       bigint[],
    p_begun           uuid[],
    p_begun_lease_nos bigint[],
    p_routes          text[] DEFAULT NULL,
    p_rerouted        boolean[] DEFAULT NULL
)
RETURNS SETOF postroom.begun_row
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_lease    interval := postroom.lease_length();
    v_ids      uuid[];
    v_nos      bigint[];
    v_to       text[];
    v_from     text[];
    v_types    text[];
    v_prio     integer[];
    v_waits    text[];
    v_unders   text[];
    v_routes   text[];
    v_rerouted boolean[];
    v_places   integer[];
    v_dues     timestamptz[];
    v_is_short boolean;
BEGIN
    SELECT
        array_agg(ours.id), array_agg(ours.lease_no), array_agg(ours.to_email), array_agg(ours.from_email),
        array_agg(ours.email_type), array_agg(ours.priority), array_agg(ours.waits_for),
        array_agg(ours.planned_under), array_agg(ours.route), array_agg(ours.rerouted),
        COALESCE(bool_or(ours.due_at < clock_timestamp() + v_lease / 2), false)
    INTO v_ids, v_nos, v_to, v_from, v_types, v_prio, v_waits, v_unders, v_routes, v_rerouted, v_is_short
    FROM (
        SELECT
            email.id, email.lease_no, email.to_email, email.from_email, email.email_type, email.priority,
            email.waits_for, email.planned_under, email.due_at, asked.route, asked.rerouted
        FROM unnest(p_ids, p_lease_nos, p_routes, p_rerouted)
            WITH ORDINALITY AS asked (id, lease_no, route, rerouted, place)
        JOIN public.email_queue AS email ON email.id = asked.id
        WHERE email.lease_no = asked.lease_no AND email.leased_by = p_worker
        ORDER BY asked.place
    ) AS ours;

    IF v_ids IS NOT NULL THEN
        SELECT
            array_agg(waiting.place), array_agg(waiting.waits_for), array_agg(waiting.planned_under),
            array_agg(waiting.due_at)
        INTO v_places, v_waits, v_unders, v_dues
        FROM postroom.take_slots_for_emails(
            v_to, v_from, v_types, v_prio, v_waits, v_unders, v_routes, v_rerouted
        ) AS waiting;
    END IF;

    IF v_places IS NOT NULL OR v_is_short THEN
        -- All of them, in their order: whoever waits for one of these must not be waited for.
        PERFORM 1
        FROM public.email_queue AS email
        WHERE email.id = ANY (v_ids) AND email.leased_by = p_worker
        ORDER BY email.id
        FOR NO KEY UPDATE;
    END IF;

    IF v_places IS NOT NULL THEN
        RETURN QUERY
        UPDATE public.email_queue
        SET status = 'pending',
            due_at = COALESCE(
                turn.due_at, email_queue.next_retry_at, LEAST(email_queue.created_at, clock_timestamp())
            ),
            next_retry_at = COALESCE(turn.due_at, email_queue.next_retry_at),
            wanted_at = CASE WHEN email_queue.waits_for = 'send_at' THEN email_queue.next_retry_at ELSE email_queue.wanted_at END,
            waits_for = turn.waits_for,
            planned_under = turn.planned_under,
            leased_by = NULL,
            updated_at = clock_timestamp()
        FROM (
            SELECT
                v_ids[slot.place] AS id, v_nos[slot.place] AS lease_no, slot.waits_for, slot.planned_under, slot.due_at
            FROM unnest(v_places, v_waits, v_unders, v_dues) AS slot (place, waits_for, planned_under, due_at)
            ORDER BY v_ids[slot.place]
        ) AS turn
        WHERE email_queue.id = turn.id
            AND email_queue.lease_no = turn.lease_no
            AND email_queue.leased_by = p_worker
        RETURNING email_queue.id, 'waits', email_queue.waits_for, email_queue.due_at;

        INSERT INTO postroom.tallies (queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms)
        SELECT tally.* FROM postroom.tally_of_waits(v_waits) AS tally;

        SELECT array_agg(mail.id), array_agg(mail.lease_no)
        INTO v_ids, v_nos
        FROM unnest(v_ids, v_nos) WITH ORDINALITY AS mail (id, lease_no, place)
        WHERE mail.place <> ALL (v_places);
    END IF;

    IF v_is_short THEN
        UPDATE public.email_queue
        SET due_at = clock_timestamp() + v_lease, updated_at = clock_timestamp()
        FROM unnest(v_ids, v_nos) AS ours (id, lease_no)
        WHERE email_queue.id = ours.id
            AND email_queue.lease_no = ours.lease_no
            AND email_queue.leased_by = p_worker
            AND email_queue.due_at < clock_timestamp() + v_lease / 2;

        SELECT array_agg(email.id), array_agg(email.lease_no)
        INTO v_ids, v_nos
        FROM unnest(v_ids, v_nos) AS ours (id, lease_no)
        JOIN public.email_queue AS email ON email.id = ours.id
        WHERE email.lease_no = ours.lease_no AND email.leased_by = p_worker;
    END IF;

    PERFORM postroom.mark_begun(p_worker, p_begun || v_ids, p_begun_lease_nos || v_nos);
    RETURN QUERY SELECT begun.id, 'begun', NULL::text, NULL::timestamptz FROM unnest(v_ids) AS begun (id);
END;
$$;

-- begin_direct_email: the row of one e-mail that is attempted at once, leased to the worker that attempts it.
--
-- Its slots and its start mark follow when the transport is ready, in begin_emails: to connect may take
-- longer than a slot is good for. Where a limit is reached already there is no row, and wait_s says when
-- to come back. Where a row has the key already it is the answer: made is false.
--
-- p_id comes from the caller, who must know it where the answer to this call is lost.
DROP FUNCTION IF EXISTS postroom.begin_direct_email(
    uuid, uuid, text, text, text, text, text, text, jsonb, text, jsonb, text
);
CREATE OR REPLACE FUNCTION postroom.begin_direct_email(
    p_worker          uuid,
    p_id              uuid,
    p_to              text,
    p_subject         text,
    p_html            text,
    p_from            text,
    p_reply_to        text,
    p_email_type      text,
    p_metadata        jsonb,
    p_text            text,
    p_headers         jsonb,
    p_idempotency_key text,
    p_attachments     jsonb DEFAULT NULL,
    OUT id         uuid,
    OUT made       boolean,
    OUT lease_s    double precision,
    OUT created_at timestamptz,
    OUT wait_s     double precision,
    OUT limit_key  text
)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_lease interval := postroom.lease_length();
BEGIN
    LOOP
        SELECT email.id, false
        INTO begin_direct_email.id, made
        FROM public.email_queue AS email
        WHERE email.idempotency_key = p_idempotency_key;
        IF FOUND THEN
            RETURN;
        END IF;

        -- Only a look: the slots are taken when it begins.
        SELECT book.wait_s, wanted.key
        INTO begin_direct_email.wait_s, limit_key
        FROM postroom.limits_of_emails(
            ARRAY[p_to], ARRAY[p_from], ARRAY[p_email_type], NULL, NULL
        ) AS wanted
        CROSS JOIN LATERAL postroom.free_slots(wanted.key) AS book
        WHERE book.free = 0
        ORDER BY book.wait_s DESC
        LIMIT 1;
        IF FOUND THEN
            RETURN;
        END IF;

        -- It stands in no line: where a limit is reached it is refused without being planned.
        INSERT INTO public.email_queue AS email (
            id, to_email, subject, html, from_email, reply_to, email_type, metadata, text, headers,
            idempotency_key, max_attempts, status, due_at, planned_under
        )
        VALUES (
            p_id, p_to, p_subject, p_html, p_from, p_reply_to, p_email_type, COALESCE(p_metadata, '{}'), p_text,
            p_headers, p_idempotency_key, 1, 'pending', clock_timestamp(), 'direct'
        )
        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
        RETURNING email.id, email.created_at, true
        INTO begin_direct_email.id, begin_direct_email.created_at, made;
        EXIT WHEN FOUND;
    END LOOP;

    IF p_attachments IS NOT NULL THEN  -- apart: a table's own column of this name may be of a type that no others need
        UPDATE public.email_queue SET attachments = p_attachments WHERE email_queue.id = begin_direct_email.id;
    END IF;
    UPDATE public.email_queue
    SET status = 'processing', due_at = clock_timestamp() + v_lease, lease_no = 1, leased_by = p_worker
    WHERE email_queue.id = begin_direct_email.id;
    lease_s := extract(EPOCH FROM v_lease);
END;
$$;

-- withdraw_direct_email: takes back the row of a direct e-mail that was put back to wait for a limit: nothing was
-- sent, and who waits for the answer comes again himself. wait_s says when. Where a worker has claimed the row
-- meanwhile it stays, and withdrawn is false.
CREATE OR REPLACE FUNCTION postroom.withdraw_direct_email(
    p_id uuid, p_lease_no bigint, OUT withdrawn boolean, OUT wait_s double precision
)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    DELETE FROM public.email_queue
    WHERE email_queue.id = p_id AND email_queue.lease_no = p_lease_no AND email_queue.status = 'pending'
    RETURNING true, GREATEST(
        extract(EPOCH FROM email_queue.due_at - clock_timestamp()),
        (SELECT book.wait_s FROM postroom.free_slots('email:global') AS book),
        0.001
    )
    INTO withdrawn, withdraw_direct_email.wait_s;
    withdrawn := COALESCE(withdrawn, false);
END;
$$;

-- extend_email_leases: gives attempts that take long another lease; returns those that it could extend.
--
-- It waits for nobody: what is locked is being begun or settled by the same worker, on another connection, and two
-- that lock the same rows in two orders wait for each other.
CREATE OR REPLACE FUNCTION postroom.extend_email_leases(p_worker uuid, p_ids uuid[], p_lease_nos bigint[])
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
    UPDATE public.email_queue
    SET due_at = clock_timestamp() + postroom.lease_length(), updated_at = clock_timestamp()
    WHERE email_queue.id = ANY (ARRAY(
        SELECT email.id
        FROM unnest(p_ids, p_lease_nos) AS held (id, lease_no)
        JOIN public.email_queue AS email ON email.id = held.id
        WHERE email.lease_no = held.lease_no AND email.leased_by = p_worker
        FOR NO KEY UPDATE OF email SKIP LOCKED
    ))
    RETURNING email_queue.id;
END;
$$;

-- settle_emails: writes down what became of some claimed e-mails, in one statement, and gives back the rows
-- that it changed. One whose lease has passed to another worker is not among them.
--
-- A success counts whoever has moved the row's status meanwhile, as long as nobody has claimed it
-- again: the e-mail is out. Every other outcome needs the lease.
CREATE OR REPLACE FUNCTION postroom.settle_emails(
    p_worker       uuid,
    p_ids          uuid[],
    p_lease_nos    bigint[],
    p_verdicts     text[],
    p_replies      text[],
    p_retry_afters double precision[],
    p_entries      jsonb[]
)
RETURNS SETOF postroom.settled_row
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_place integer;
BEGIN
    RETURN QUERY
    SELECT * FROM postroom.write_email_outcomes(
        p_worker, p_ids, p_lease_nos, p_verdicts, p_replies, p_retry_afters, p_entries
    );
EXCEPTION WHEN OTHERS OR assert_failure THEN
    IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
        RAISE;
    END IF;
    -- A row's own trigger has refused: one by one, and what is known of that row is kept.
    FOR v_place IN
        SELECT ended.place::integer
        FROM unnest(p_ids) WITH ORDINALITY AS ended (id, place)
        ORDER BY ended.id
    LOOP
        BEGIN
            RETURN QUERY
            SELECT * FROM postroom.write_email_outcomes(
                p_worker, p_ids[v_place:v_place], p_lease_nos[v_place:v_place], p_verdicts[v_place:v_place],
                p_replies[v_place:v_place], p_retry_afters[v_place:v_place], p_entries[v_place:v_place]
            );
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
                RAISE;
            END IF;
            PERFORM postroom.set_aside(
                'email', p_ids[v_place], SQLERRM, p_lease_nos[v_place], p_verdicts[v_place], p_replies[v_place]
            );
        END;
    END LOOP;
END;
$$;

CREATE OR REPLACE FUNCTION postroom.write_email_outcomes(
    p_worker       uuid,
    p_ids          uuid[],
    p_lease_nos    bigint[],
    p_verdicts     text[],
    p_replies      text[],
    p_retry_afters double precision[],
    p_entries      jsonb[]
)
RETURNS SETOF postroom.settled_row
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET enable_hashjoin = off -- it would lock the rows in another order than that of their ids
AS $$
BEGIN
    RETURN QUERY
    WITH settled AS (
        UPDATE public.email_queue
        SET (
            status, attempts, error_count, crashes, last_error, dead_reason, waits_for, planned_under,
            due_at, next_retry_at, wanted_at, sent_at, failed_at, attempt_log, leased_by, updated_at
        ) = (
            SELECT
                state.status,
                LEAST(COALESCE(email_queue.attempts, 0), 2147483646) + state.counted,
                LEAST(COALESCE(email_queue.error_count, 0), 2147483646) + state.failed,
                email_queue.crashes + state.crashed,
                COALESCE(state.error, email_queue.last_error),
                state.dead_reason,
                -- A ticket holds until its mail's turn has come.
                COALESCE(state.waits_for, CASE WHEN outcome.verdict = 'released' THEN email_queue.waits_for END),
                CASE WHEN outcome.verdict IN ('released', 'transport_down') THEN email_queue.planned_under END,
                CASE WHEN state.status = 'pending' THEN COALESCE(
                    clock_timestamp() + state.wait, email_queue.next_retry_at,
                    LEAST(email_queue.created_at, clock_timestamp())
                ) END,
                CASE WHEN state.wait IS NULL THEN email_queue.next_retry_at ELSE clock_timestamp() + state.wait END,
                CASE WHEN email_queue.waits_for = 'send_at' THEN email_queue.next_retry_at ELSE email_queue.wanted_at END,
                CASE WHEN state.status = 'sent' THEN clock_timestamp() ELSE email_queue.sent_at END,
                CASE WHEN state.status = 'dead_letter' THEN clock_timestamp() ELSE email_queue.failed_at END,
                postroom.log_attempt(email_queue.attempt_log, outcome.entry),
                NULL::uuid,
                clock_timestamp()
            FROM postroom.next_state(
                'email', outcome.verdict, outcome.reply, outcome.retry_after,
                email_queue.attempts, email_queue.max_attempts, email_queue.crashes
            ) AS state
        )
        -- In the order of the ids: a settle that is repeated may meet the first one, which still runs.
        FROM (
            SELECT ended.*
            FROM unnest(p_ids, p_lease_nos, p_verdicts, p_replies, p_retry_afters, p_entries)
                AS ended (id, lease_no, verdict, reply, retry_after, entry)
            ORDER BY ended.id
        ) AS outcome
        WHERE email_queue.id = outcome.id
            AND email_queue.lease_no = outcome.lease_no
            AND (
                (outcome.verdict = 'done' AND email_queue.status IS DISTINCT FROM 'sent')
                OR (email_queue.status = 'processing' AND email_queue.leased_by IS NOT DISTINCT FROM p_worker)
            )
        RETURNING
            email_queue.id, email_queue.status, email_queue.attempts, email_queue.next_retry_at, email_queue.created_at,
            email_queue.email_type, COALESCE(email_queue.wanted_at, email_queue.created_at) AS since,
            outcome.verdict, outcome.entry
    ),
    tallied AS (
        INSERT INTO postroom.tallies (queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms)
        SELECT
            'email', COALESCE(ended.email_type, ''), COALESCE(ended.entry ->> 'transport', ''), ended.verdict, ended.status,
            array_agg(CASE
                WHEN ended.attempts = 1 AND ended.verdict NOT IN ('transport_down', 'abandoned')
                    THEN GREATEST(ended.elapsed_ms - ended.ms, 0)
            END),
            array_agg(ended.ms),
            array_agg(CASE WHEN ended.status <> 'pending' THEN ended.elapsed_ms END)
        FROM (
            SELECT
                settled.*,
                postroom.elapsed_ms(settled.since, clock.now) AS elapsed_ms,
                CASE WHEN jsonb_typeof(settled.entry -> 'ms') = 'number' THEN (settled.entry ->> 'ms')::integer END AS ms
            FROM settled
            CROSS JOIN (SELECT clock_timestamp() AS now) AS clock
            WHERE settled.verdict <> 'released'
        ) AS ended
        GROUP BY 2, 3, 4, 5
    )
    SELECT settled.id, settled.status, settled.attempts, settled.next_retry_at, settled.created_at FROM settled;
END;
$$;

-- settle_crashed_emails: rows whose lease has ended with the start mark set. Called with their locks held.
CREATE OR REPLACE FUNCTION postroom.settle_crashed_emails(p_ids uuid[])
RETURNS void
LANGUAGE sql
SET search_path = ''
SET enable_seqscan = off
AS $$
    SELECT postroom.settle_emails(
        crashed.leased_by,
        array_agg(crashed.id),
        array_agg(crashed.lease_no),
        array_agg('crashed'::text),
        array_agg('the worker died during the attempt'::text),
        array_agg(NULL::double precision),
        array_agg(jsonb_build_object('at', clock_timestamp(), 'outcome', 'crashed', 'worker', crashed.leased_by))
    )
    FROM public.email_queue AS crashed
    WHERE crashed.id = ANY (p_ids)
    GROUP BY crashed.leased_by;
$$;

-- settle_refused_emails: tries again to write the outcomes that a row's own trigger refused.
-- Returns how many are written now.
CREATE OR REPLACE FUNCTION postroom.settle_refused_emails()
RETURNS integer
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_row   record;
    v_count integer := 0;
BEGIN
    FOR v_row IN
        SELECT refused.id, refused.lease_no, refused.verdict, refused.reply, email.leased_by, email.id AS found
        FROM postroom.refused_rows AS refused
        LEFT JOIN public.email_queue AS email ON email.id = refused.id
        WHERE refused.queue = 'email' AND refused.next_try_at <= clock_timestamp()
        ORDER BY refused.id
        LIMIT 100
        FOR UPDATE OF refused SKIP LOCKED
    LOOP
        IF v_row.verdict IS NOT NULL AND v_row.found IS NOT NULL THEN
            BEGIN
                PERFORM postroom.write_email_outcomes(
                    v_row.leased_by, ARRAY[v_row.id], ARRAY[v_row.lease_no], ARRAY[v_row.verdict],
                    ARRAY[v_row.reply], ARRAY[NULL::double precision], ARRAY[NULL::jsonb]
                );
            EXCEPTION WHEN OTHERS OR assert_failure THEN
                IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
                    RAISE;
                END IF;
                PERFORM postroom.set_aside('email', v_row.id, SQLERRM, NULL, NULL, NULL);
                CONTINUE;
            END;
            v_count := v_count + 1;
        END IF;
        DELETE FROM postroom.refused_rows WHERE refused_rows.queue = 'email' AND refused_rows.id = v_row.id;
    END LOOP;
    RETURN v_count;
END;
$$;

-- retry_dead_emails: dead letters get all their attempts again; returns the ids that changed.
DROP FUNCTION IF EXISTS postroom.retry_dead_emails(uuid[]);
CREATE OR REPLACE FUNCTION postroom.retry_dead_emails(p_ids uuid[], p_by text DEFAULT NULL)
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_entry jsonb := postroom.decision('retried', p_by);
BEGIN
    RETURN QUERY
    UPDATE public.email_queue
    SET status = 'pending', attempts = 0, crashes = 0, due_at = clock_timestamp(), next_retry_at = NULL,
        waits_for = NULL, planned_under = NULL, dead_reason = NULL, failed_at = NULL, updated_at = clock_timestamp(),
        attempt_log = postroom.log_attempt(email_queue.attempt_log, v_entry)
    WHERE email_queue.id IN (
        SELECT chosen.id
        FROM public.email_queue AS chosen
        WHERE chosen.id = ANY (p_ids) AND chosen.status = 'dead_letter'
        ORDER BY chosen.id
        FOR NO KEY UPDATE
    )
    RETURNING email_queue.id;
    PERFORM postroom.wake('email');
END;
$$;

-- discard_dead_emails: a person has decided that they will not go out; returns the ids that changed.
DROP FUNCTION IF EXISTS postroom.discard_dead_emails(uuid[]);
CREATE OR REPLACE FUNCTION postroom.discard_dead_emails(
    p_ids uuid[], p_by text DEFAULT NULL, p_note text DEFAULT NULL
)
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_entry jsonb := postroom.decision('discarded', p_by, p_note);
BEGIN
    RETURN QUERY
    UPDATE public.email_queue
    SET status = 'failed', failed_at = clock_timestamp(), updated_at = clock_timestamp(),
        dead_reason = COALESCE(email_queue.dead_reason, 'discarded'),  -- an old caller's failed rows have none
        attempt_log = postroom.log_attempt(email_queue.attempt_log, v_entry)
    WHERE email_queue.id IN (
        SELECT chosen.id
        FROM public.email_queue AS chosen
        WHERE chosen.id = ANY (p_ids) AND chosen.status = 'dead_letter'
        ORDER BY chosen.id
        FOR NO KEY UPDATE
    )
    RETURNING email_queue.id;
END;
$$;

-- replace_dead_email: a dead letter goes out anew as another e-mail, with what a person has mended in it: NULL keeps what
-- was there, an empty p_text has the plain part made from the HTML. The new one names the old one in metadata.replaces, the
-- old one is discarded and names the new one in its attempt_log. All else is kept but the idempotency key, which stays the
-- old one's, its time, and its number of attempts.
--
-- Of two that mend the same one the second waits for the first, and finds no dead letter any more: PR002.
CREATE OR REPLACE FUNCTION postroom.replace_dead_email(
    p_id uuid, p_to text, p_subject text, p_html text, p_text text, p_by text DEFAULT NULL
)
RETURNS uuid
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_old public.email_queue;
    v_new uuid;
BEGIN
    SELECT email.* INTO v_old FROM public.email_queue AS email WHERE email.id = p_id FOR NO KEY UPDATE;
    IF v_old.status IS DISTINCT FROM 'dead_letter' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PR002',
            MESSAGE = format('e-mail %s is no dead letter: %s', p_id, COALESCE(v_old.status, 'there is none'));
    END IF;
    v_new := public.enqueue_email(
        COALESCE(p_to, v_old.to_email), COALESCE(p_subject, v_old.subject), COALESCE(p_html, v_old.html),
        from_email => v_old.from_email,
        reply_to => v_old.reply_to,
        email_type => v_old.email_type,
        metadata => CASE jsonb_typeof(v_old.metadata) WHEN 'object' THEN v_old.metadata ELSE '{}' END
            || jsonb_build_object('replaces', p_id),
        priority => v_old.priority,
        text => NULLIF(COALESCE(p_text, v_old.text), ''),
        headers => CASE WHEN v_old.headers <> 'null' THEN v_old.headers END
    );
    IF postroom.attached_bytes(v_old.attachments) IS NOT NULL THEN
        UPDATE public.email_queue SET attachments = v_old.attachments WHERE email_queue.id = v_new;
    END IF;
    UPDATE public.email_queue
    SET status = 'failed', failed_at = clock_timestamp(), updated_at = clock_timestamp(),
        dead_reason = COALESCE(email_queue.dead_reason, 'discarded'),
        attempt_log = postroom.log_attempt(
            email_queue.attempt_log, postroom.decision('replaced', p_by) || jsonb_build_object('by_email', v_new)
        )
    WHERE email_queue.id = p_id;
    RETURN v_new;
END;
$$;
