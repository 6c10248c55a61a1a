-- The webhook queue: store, claim, begin, finish a handler, settle. It mirrors the e-mail queue; it has no limits.

-- claim_webhooks: lease up to p_limit due events to one worker, what has been due longest first. p_not_of are
-- sources whose handlers this worker has not: another one does.
CREATE OR REPLACE FUNCTION postroom.claim_webhooks(
    p_worker uuid,
    p_limit  integer,
    p_before timestamptz DEFAULT NULL,
    p_not_of text[] DEFAULT '{}'
)
RETURNS SETOF postroom.claimed_webhook
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY
    SELECT * FROM postroom.lease_webhooks(p_worker, p_limit, postroom.lease_length(), p_before, p_not_of);
    IF FOUND THEN
        PERFORM postroom.get_up(p_worker);
    END IF;
END;
$$;

-- stands_behind: whether an event of a lane must wait for one before it: a live one, or a dead letter that holds.
CREATE OR REPLACE FUNCTION postroom.stands_behind(p_source text, p_lane text, p_place numeric, p_id uuid)
RETURNS boolean
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    RETURN EXISTS (
        SELECT 1
        FROM public.webhook_retry_queue AS before
        WHERE before.webhook_type = p_source
            AND before.lane = p_lane
            AND before.status IN ('pending', 'processing', 'dead_letter')
            AND (before.status <> 'dead_letter' OR before.lane_holds)
            AND (before.lane_place, before.id) < (p_place, p_id)
    );
END;
$$;

-- first_live_webhook: the highest priority below p_below that has live rows, and since when the first of them is due, or
-- from when on it will be; NULL where there is none. p_look: last_look; where it is given, only what is due by p_until
-- is looked for: beyond stand the dead entries of the leases of the last minute.
CREATE OR REPLACE FUNCTION postroom.first_live_webhook(
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
            INTO first_live_webhook.priority, first_at
            FROM public.webhook_retry_queue AS live
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
        INTO first_live_webhook.priority, first_at
        FROM public.webhook_retry_queue AS live
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
        INTO first_live_webhook.priority, first_at
        FROM public.webhook_retry_queue AS live
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

-- first_in_lanes: the lanes (as `source lane`, a hundred at most) of the due events that a claim of p_limit rows meets, and
-- the first event of each: it alone may be claimed. So each lane is looked up once, not each of its events by itself:
-- 20,000 that waited in one lane made every claim take 900 ms.
CREATE OR REPLACE FUNCTION postroom.first_in_lanes(
    p_priority integer, p_limit integer, p_from timestamptz, p_until timestamptz, OUT lanes text[], OUT firsts uuid[]
)
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_event record;
    v_place integer;
    v_free  integer := 0;
BEGIN
    lanes := '{}';
    firsts := '{}';
    IF NOT EXISTS (
        SELECT 1
        FROM public.webhook_retry_queue AS live
        WHERE live.lane IS NOT NULL AND live.status IN ('pending', 'processing', 'dead_letter')
    ) THEN
        RETURN;
    END IF;
    FOR v_event IN
        SELECT due.id, due.webhook_type, due.lane
        FROM public.webhook_retry_queue AS due
        WHERE due.status IN ('pending', 'processing')
            AND due.priority = p_priority
            AND COALESCE(due.due_at, due.next_retry_at, '-infinity'::timestamptz) >= (SELECT p_from)
            AND COALESCE(due.due_at, due.next_retry_at, '-infinity'::timestamptz) <= (SELECT p_until)
        ORDER BY COALESCE(due.due_at, due.next_retry_at, '-infinity'::timestamptz)
    LOOP
        IF v_event.lane IS NOT NULL THEN
            v_place := array_position(lanes, v_event.webhook_type || ' ' || v_event.lane);
            IF v_place IS NULL THEN
                EXIT WHEN cardinality(lanes) >= 100;
                lanes := lanes || (v_event.webhook_type || ' ' || v_event.lane);
                firsts := firsts || postroom.first_in_lane(v_event.webhook_type, v_event.lane);
                v_place := cardinality(lanes);
            END IF;
            CONTINUE WHEN v_event.id IS DISTINCT FROM firsts[v_place];
        END IF;
        v_free := v_free + 1;
        EXIT WHEN v_free >= p_limit;
    END LOOP;
END;
$$;

-- first_in_lane: the event of a lane that all others of it stand behind.
CREATE OR REPLACE FUNCTION postroom.first_in_lane(p_source text, p_lane text)
RETURNS uuid
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    RETURN (
        SELECT event.id
        FROM public.webhook_retry_queue AS event
        WHERE event.webhook_type = p_source
            AND event.lane = p_lane
            AND event.status IN ('pending', 'processing', 'dead_letter')
            AND (event.status <> 'dead_letter' OR event.lane_holds)
        ORDER BY event.lane_place, event.id
        LIMIT 1
    );
END;
$$;

-- lock_due_webhooks: locks up to p_limit due rows of one priority and gives their ids, oldest due first. p_floor: those
-- that were due before it are left out: none of them is live (first_live_webhook).
DROP FUNCTION IF EXISTS postroom.lock_due_webhooks(integer, integer, timestamptz, text[]);
CREATE OR REPLACE FUNCTION postroom.lock_due_webhooks(
    p_priority integer, p_limit integer, p_before timestamptz, p_not_of text[], p_floor timestamptz
)
RETURNS TABLE (id uuid, crashed boolean)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_lanes  text[];
    v_firsts uuid[];
BEGIN
    SELECT found.lanes, found.firsts
    INTO v_lanes, v_firsts
    FROM postroom.first_in_lanes(
        p_priority, p_limit, COALESCE(p_floor, '-infinity'::timestamptz), LEAST(clock_timestamp(), p_before)
    ) AS found;
    RETURN QUERY
    SELECT
        due.id,
        due.status = 'processing'
        AND due.leased_by IS NOT NULL
        AND postroom.begun_by(due.leased_by, due.id, due.lease_no)
    FROM public.webhook_retry_queue AS due
    WHERE due.status IN ('pending', 'processing')
        AND due.priority = p_priority
        AND COALESCE(due.due_at, due.next_retry_at, '-infinity'::timestamptz)
            <= (SELECT LEAST(clock_timestamp(), p_before))
        AND COALESCE(due.due_at, due.next_retry_at, '-infinity'::timestamptz)
            >= (SELECT COALESCE(p_floor, '-infinity'::timestamptz))
        -- Claimed before postroom came: the end of that lease is written elsewhere.
        AND (due.status = 'pending' OR due.due_at IS NOT NULL OR postroom.old_lease_ended('webhook', due.id))
        AND due.webhook_type <> ALL (p_not_of)
        AND (due.lane IS NULL OR due.id = ANY (v_firsts) OR due.webhook_type || ' ' || due.lane <> ALL (v_lanes))
        AND (due.lane IS NULL OR NOT postroom.stands_behind(due.webhook_type, due.lane, due.lane_place, due.id))
        AND NOT EXISTS (
            SELECT 1
            FROM postroom.refused_rows AS refused
            WHERE refused.queue = 'webhook'
                AND refused.id = due.id
                AND (refused.verdict IS NOT NULL OR refused.next_try_at > (SELECT clock_timestamp()))
        )
    ORDER BY COALESCE(due.due_at, due.next_retry_at, '-infinity'::timestamptz)
    LIMIT p_limit
    FOR NO KEY UPDATE OF due SKIP LOCKED;
END;
$$;

-- lease_webhooks: takes the leases; no rows where nothing is due. A NULL worker is an old caller.
--
-- Rows are locked and written in one subtransaction, as lease_emails does it.
DROP FUNCTION IF EXISTS postroom.lease_webhooks(uuid, integer, interval, timestamptz, text[]);
CREATE FUNCTION postroom.lease_webhooks(
    p_worker uuid, p_limit integer, p_lease interval, p_before timestamptz, p_not_of text[]
)
RETURNS SETOF postroom.claimed_webhook
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_look     jsonb := postroom.last_look('webhook');
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
    v_singly   boolean := false; -- a row of this priority has refused
BEGIN
    -- One look a claim, whatever its size: 1.5 us and a page or two. Whoever claims comes through here.
    IF EXISTS (
        SELECT 1
        FROM postroom.pauses AS pause
        WHERE pause.kind = 'queue' AND pause.name = 'webhook' AND COALESCE(pause.until > clock_timestamp(), true)
    ) THEN
        RETURN;
    END IF;

    LOOP
        EXIT WHEN v_leased >= p_limit;
        IF NOT v_singly THEN
            v_step := clock_timestamp();
            v_pages := v_pages - pg_stat_get_xact_blocks_fetched('public.webhook_retry_queue'::regclass);
            SELECT live.priority, live.first_at
            INTO v_priority, v_first
            FROM postroom.first_live_webhook(COALESCE(v_lowest, 2147483648), v_look, v_step) AS live;
            v_took := v_took + (clock_timestamp() - v_step);
            v_pages := v_pages + pg_stat_get_xact_blocks_fetched('public.webhook_retry_queue'::regclass);
            v_lowest := v_priority;
            EXIT WHEN v_priority IS NULL;
            v_floors := postroom.add_floor(v_floors, v_priority, v_first, v_began);
        END IF;

        BEGIN
            SELECT
                array_agg(due.id) FILTER (WHERE NOT due.crashed),
                array_agg(due.id) FILTER (WHERE due.crashed)
            INTO v_due, v_crashed
            FROM postroom.lock_due_webhooks(
                v_priority, p_limit - v_leased, p_before, p_not_of, v_first
            ) AS due;

            IF v_crashed IS NOT NULL THEN
                PERFORM postroom.settle_crashed_webhooks(v_crashed);
            END IF;

            IF v_due IS NOT NULL AND NOT v_singly THEN
                RETURN QUERY SELECT * FROM postroom.write_webhook_leases(p_worker, v_due, p_lease);
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
                    RETURN QUERY SELECT * FROM postroom.write_webhook_leases(p_worker, ARRAY[v_id], p_lease);
                    v_leased := v_leased + 1;
                EXCEPTION WHEN OTHERS OR assert_failure THEN
                    IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
                        RAISE;
                    END IF;
                    PERFORM postroom.set_aside('webhook', v_id, SQLERRM, NULL, NULL, NULL);
                END;
            END LOOP;
        END IF;
        v_singly := false;
    END LOOP;
    PERFORM postroom.keep_look('webhook', v_look, v_floors, v_lowest, v_began, v_took, v_pages);
    IF v_leased = 0 AND postroom.look_again('webhook', v_look) THEN
        RETURN QUERY SELECT * FROM postroom.lease_webhooks(p_worker, p_limit, p_lease, p_before, p_not_of);
    END IF;
END;
$$;

-- write_webhook_leases: leases some locked rows, and gives them back in the order of p_ids.
DROP FUNCTION IF EXISTS postroom.write_webhook_leases(uuid, uuid[], interval);
CREATE FUNCTION postroom.write_webhook_leases(p_worker uuid, p_ids uuid[], p_lease interval)
RETURNS SETOF postroom.claimed_webhook
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
    WITH leased AS (
        UPDATE public.webhook_retry_queue
        SET status = 'processing',
            due_at = clock_timestamp() + p_lease,
            lease_no = webhook_retry_queue.lease_no + 1,
            leased_by = p_worker,
            updated_at = clock_timestamp()
        FROM unnest(p_ids) WITH ORDINALITY AS due (id, place)
        WHERE webhook_retry_queue.id = due.id
        RETURNING
            due.place, webhook_retry_queue.id, webhook_retry_queue.lease_no, webhook_retry_queue.webhook_type,
            webhook_retry_queue.webhook_event_id, webhook_retry_queue.event_type, webhook_retry_queue.payload,
            webhook_retry_queue.headers, webhook_retry_queue.created_at, webhook_retry_queue.attempts,
            webhook_retry_queue.max_attempts, webhook_retry_queue.metadata, webhook_retry_queue.handlers_done,
            webhook_retry_queue.handlers_stopped
    )
    SELECT
        leased.id, leased.lease_no, extract(EPOCH FROM p_lease)::double precision, leased.webhook_type,
        leased.webhook_event_id, leased.event_type, leased.payload, leased.headers, leased.created_at,
        COALESCE(leased.attempts, 0), COALESCE(leased.max_attempts, 6), leased.metadata, leased.handlers_done,
        leased.handlers_stopped, request.method, request.target, request.headers, request.body
    FROM leased
    LEFT JOIN postroom.webhook_requests AS request ON request.id = leased.id
    ORDER BY leased.place;
END;
$$;

-- webhook_wait_s: seconds until there is something to claim: 0 now, NULL nothing at all. At most 1 while a look at
-- everything takes long (last_look). While the queue is paused: until that ends. p_not_of as for a claim.
CREATE OR REPLACE FUNCTION postroom.webhook_wait_s(p_not_of text[] DEFAULT '{}')
RETURNS double precision
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_look     jsonb := postroom.last_look('webhook');
    v_began    timestamptz := clock_timestamp();
    v_step     timestamptz;
    v_took     interval := '0 seconds';
    v_pages    bigint := 0;
    v_first    timestamptz;
    v_floors   jsonb := '{}';
    v_priority integer;
    v_lanes    text[];
    v_firsts   uuid[];
    v_due      timestamptz;
    v_next     timestamptz;
    v_pause_s  double precision;
BEGIN
    v_pause_s := postroom.queue_pause_s('webhook');
    IF v_pause_s IS NOT NULL THEN
        RETURN NULLIF(v_pause_s, 'Infinity');
    END IF;

    LOOP
        v_step := clock_timestamp();
        v_pages := v_pages - pg_stat_get_xact_blocks_fetched('public.webhook_retry_queue'::regclass);
        SELECT live.priority, live.first_at
        INTO v_priority, v_first
        FROM postroom.first_live_webhook(COALESCE(v_priority, 2147483648), v_look, v_step + interval '1 second') AS live;
        v_took := v_took + (clock_timestamp() - v_step);
        v_pages := v_pages + pg_stat_get_xact_blocks_fetched('public.webhook_retry_queue'::regclass);
        EXIT WHEN v_priority IS NULL;
        v_floors := postroom.add_floor(v_floors, v_priority, v_first, v_began);

        SELECT found.lanes, found.firsts
        INTO v_lanes, v_firsts
        FROM postroom.first_in_lanes(v_priority, 1, v_first, 'infinity') AS found;
        SELECT COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        INTO v_due
        FROM public.webhook_retry_queue AS live
        WHERE live.status IN ('pending', 'processing')
            AND live.priority = v_priority
            AND COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
                >= (SELECT v_first)
            AND (live.status = 'pending' OR live.due_at IS NOT NULL)
            AND live.webhook_type <> ALL (p_not_of)
            AND (live.lane IS NULL OR live.id = ANY (v_firsts) OR live.webhook_type || ' ' || live.lane <> ALL (v_lanes))
            AND (live.lane IS NULL OR NOT postroom.stands_behind(live.webhook_type, live.lane, live.lane_place, live.id))
            AND NOT EXISTS (
                SELECT 1
                FROM postroom.refused_rows AS refused
                WHERE refused.queue = 'webhook' AND refused.id = live.id
            )
        ORDER BY COALESCE(live.due_at, live.next_retry_at, '-infinity'::timestamptz)
        LIMIT 1;
        v_next := LEAST(v_next, NULLIF(v_due, 'infinity'));
    END LOOP;
    PERFORM postroom.keep_look('webhook', v_look, v_floors, NULL, v_began, v_took, v_pages);
    IF v_look IS NOT NULL THEN
        v_next := LEAST(v_next, v_began + interval '1 second');
    END IF;
    RETURN CASE
        WHEN v_next = '-infinity' THEN 0
        -- GREATEST passes over a NULL.
        WHEN v_next IS NOT NULL THEN GREATEST(extract(EPOCH FROM v_next - clock_timestamp()), 0)
    END;
END;
$$;

-- begin_webhooks: writes the start marks of attempts. Those that are no longer ours are not in the answer.
CREATE OR REPLACE FUNCTION postroom.begin_webhooks(
    p_worker         uuid,
    p_ids            uuid[],
    p_lease_nos      bigint[],
    p_begun          uuid[],
    p_begun_lease_nos bigint[]
)
RETURNS SETOF postroom.begun_row
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_lease    interval := postroom.lease_length();
    v_begun    uuid[];
    v_nos      bigint[];
    v_is_short boolean;
BEGIN
    FOR v_look IN 1..2 LOOP
        SELECT
            array_agg(asked.id), array_agg(asked.lease_no), bool_or(webhook.due_at < clock_timestamp() + v_lease / 2)
        INTO v_begun, v_nos, v_is_short
        FROM unnest(p_ids, p_lease_nos) AS asked (id, lease_no)
        JOIN public.webhook_retry_queue AS webhook ON webhook.id = asked.id
        WHERE webhook.lease_no = asked.lease_no AND webhook.leased_by = p_worker;
        EXIT WHEN v_is_short IS NOT TRUE OR v_look = 2;

        -- In the order of the ids, as settles do: the order in which an UPDATE goes through a join is the planner's.
        PERFORM 1
        FROM public.webhook_retry_queue AS webhook
        WHERE webhook.id = ANY (p_ids) AND webhook.leased_by = p_worker
        ORDER BY webhook.id
        FOR NO KEY UPDATE;
        UPDATE public.webhook_retry_queue
        SET due_at = clock_timestamp() + v_lease, updated_at = clock_timestamp()
        FROM unnest(p_ids, p_lease_nos) AS asked (id, lease_no)
        WHERE webhook_retry_queue.id = asked.id
            AND webhook_retry_queue.lease_no = asked.lease_no
            AND webhook_retry_queue.leased_by = p_worker
            AND webhook_retry_queue.due_at < clock_timestamp() + v_lease / 2;
    END LOOP;

    PERFORM postroom.mark_begun(p_worker, p_begun || v_begun, p_begun_lease_nos || v_nos);
    RETURN QUERY SELECT begun.id, 'begun', NULL::text, NULL::timestamptz FROM unnest(v_begun) AS begun (id);
END;
$$;

-- extend_webhook_leases: gives attempts that take long another lease, as extend_email_leases does.
CREATE OR REPLACE FUNCTION postroom.extend_webhook_leases(p_worker uuid, p_ids uuid[], p_lease_nos bigint[])
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
    UPDATE public.webhook_retry_queue
    SET due_at = clock_timestamp() + postroom.lease_length(), updated_at = clock_timestamp()
    WHERE webhook_retry_queue.id = ANY (ARRAY(
        SELECT webhook.id
        FROM unnest(p_ids, p_lease_nos) AS held (id, lease_no)
        JOIN public.webhook_retry_queue AS webhook ON webhook.id = held.id
        WHERE webhook.lease_no = held.lease_no AND webhook.leased_by = p_worker
        FOR NO KEY UPDATE OF webhook SKIP LOCKED
    ))
    RETURNING webhook_retry_queue.id;
END;
$$;

-- settle_webhooks: writes down what became of some claimed events; see settle_emails.
CREATE OR REPLACE FUNCTION postroom.settle_webhooks(
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
    SELECT * FROM postroom.write_webhook_outcomes(
        p_worker, p_ids, p_lease_nos, p_verdicts, p_replies, p_retry_afters, p_entries
    );
EXCEPTION WHEN OTHERS OR assert_failure THEN
    IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
        RAISE;
    END IF;
    FOR v_place IN
        SELECT ended.place::integer
        FROM unnest(p_ids) WITH ORDINALITY AS ended (id, place)
        ORDER BY ended.id
    LOOP
        BEGIN
            RETURN QUERY
            SELECT * FROM postroom.write_webhook_outcomes(
                p_worker, p_ids[v_place:v_place], p_lease_nos[v_place:v_place], p_verdicts[v_place:v_place],
                p_replies[v_place:v_place], p_retry_afters[v_place:v_place], p_entries[v_place:v_place]
            );
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
                RAISE;
            END IF;
            PERFORM postroom.set_aside(
                'webhook', p_ids[v_place], SQLERRM, p_lease_nos[v_place], p_verdicts[v_place], p_replies[v_place]
            );
        END;
    END LOOP;
END;
$$;

CREATE OR REPLACE FUNCTION postroom.write_webhook_outcomes(
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
        UPDATE public.webhook_retry_queue
        SET (
            status, attempts, error_count, crashes, last_error, last_error_at, dead_reason, waits_for,
            due_at, next_retry_at, processed_at, failed_at, attempt_log, metadata, leased_by, updated_at
        ) = (
            SELECT
                state.status,
                LEAST(COALESCE(webhook_retry_queue.attempts, 0), 2147483646) + state.counted,
                LEAST(COALESCE(webhook_retry_queue.error_count, 0), 2147483646) + state.failed,
                webhook_retry_queue.crashes + state.crashed,
                COALESCE(state.error, webhook_retry_queue.last_error),
                CASE WHEN state.error IS NULL THEN webhook_retry_queue.last_error_at ELSE clock_timestamp() END,
                state.dead_reason,
                state.waits_for,
                CASE WHEN state.status = 'pending' THEN COALESCE(
                    clock_timestamp() + state.wait,
                    webhook_retry_queue.next_retry_at, LEAST(webhook_retry_queue.created_at, clock_timestamp())
                ) END,
                CASE WHEN state.wait IS NULL THEN webhook_retry_queue.next_retry_at ELSE clock_timestamp() + state.wait END,
                CASE WHEN state.status = 'processed' THEN clock_timestamp() ELSE webhook_retry_queue.processed_at END,
                CASE WHEN state.status = 'dead_letter' THEN clock_timestamp() ELSE webhook_retry_queue.failed_at END,
                postroom.log_attempt(webhook_retry_queue.attempt_log, outcome.entry),
                CASE
                    WHEN outcome.verdict <> 'unhandled' THEN webhook_retry_queue.metadata
                    WHEN jsonb_typeof(webhook_retry_queue.metadata) = 'object'
                        THEN webhook_retry_queue.metadata || '{"unhandled": true}'
                    ELSE '{"unhandled": true}'
                END,
                NULL::uuid,
                clock_timestamp()
            FROM postroom.next_state(
                'webhook', CASE outcome.verdict WHEN 'unhandled' THEN 'done' ELSE outcome.verdict END,
                outcome.reply, outcome.retry_after,
                webhook_retry_queue.attempts, webhook_retry_queue.max_attempts, webhook_retry_queue.crashes
            ) AS state
        )
        -- In the order of the ids: a settle that is repeated may meet the first one, which still runs.
        FROM (
            SELECT ended.*
            FROM unnest(p_ids, p_lease_nos, p_verdicts, p_replies, p_retry_afters, p_entries)
                AS ended (id, lease_no, verdict, reply, retry_after, entry)
            ORDER BY ended.id
        ) AS outcome
        WHERE webhook_retry_queue.id = outcome.id
            AND webhook_retry_queue.lease_no = outcome.lease_no
            AND (
                (outcome.verdict IN ('done', 'unhandled') AND webhook_retry_queue.status IS DISTINCT FROM 'processed')
                OR (
                    webhook_retry_queue.status = 'processing'
                    AND webhook_retry_queue.leased_by IS NOT DISTINCT FROM p_worker
                )
            )
        RETURNING
            webhook_retry_queue.id, webhook_retry_queue.status, webhook_retry_queue.attempts,
            webhook_retry_queue.next_retry_at, webhook_retry_queue.created_at, webhook_retry_queue.webhook_type,
            outcome.verdict, outcome.entry
    ),
    tallied AS (
        INSERT INTO postroom.tallies (queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms)
        SELECT
            'webhook', ended.webhook_type, COALESCE(ended.entry ->> 'transport', ''), ended.verdict, ended.status,
            array_agg(CASE
                WHEN ended.attempts = 1 AND ended.verdict NOT IN ('transport_down', 'abandoned')
                    THEN GREATEST(ended.elapsed_ms - ended.ms, 0)
            END),
            array_agg(ended.ms),
            array_agg(CASE WHEN ended.status <> 'pending' THEN ended.elapsed_ms END)
        FROM (
            SELECT
                settled.*,
                postroom.elapsed_ms(settled.created_at, clock.now) AS elapsed_ms,
                CASE WHEN jsonb_typeof(settled.entry -> 'ms') = 'number' THEN (settled.entry ->> 'ms')::integer END AS ms
            FROM settled
            CROSS JOIN (SELECT clock_timestamp() AS now) AS clock
            WHERE settled.verdict <> 'released'
        ) AS ended
        GROUP BY 2, 3, 4, 5
    )
    SELECT settled.id, settled.status, settled.attempts, settled.next_retry_at, settled.created_at FROM settled;

    -- Those behind them in their lanes are free now; a sleeper would find them at its next poll only: ten events of
    -- 150 ms took 10 s.
    IF EXISTS (
        SELECT 1
        FROM public.webhook_retry_queue AS ended
        WHERE ended.id = ANY (p_ids) AND ended.lane IS NOT NULL
    ) THEN
        PERFORM postroom.wake('webhook');
    END IF;
END;
$$;

-- settle_crashed_webhooks: rows whose lease has ended with the start mark set. Called with their locks held.
CREATE OR REPLACE FUNCTION postroom.settle_crashed_webhooks(p_ids uuid[])
RETURNS void
LANGUAGE sql
SET search_path = ''
SET enable_seqscan = off
AS $$
    SELECT postroom.settle_webhooks(
        crashed.leased_by,
        array_agg(crashed.id),
        array_agg(crashed.lease_no),
        array_agg('crashed'::text),
        array_agg('the worker died during the attempt'::text),
        array_agg(NULL::double precision),
        array_agg(jsonb_build_object('at', clock_timestamp(), 'outcome', 'crashed', 'worker', crashed.leased_by))
    )
    FROM public.webhook_retry_queue AS crashed
    WHERE crashed.id = ANY (p_ids)
    GROUP BY crashed.leased_by;
$$;

-- retry_dead_webhooks: dead letters get all their attempts again; returns the ids that changed.
DROP FUNCTION IF EXISTS postroom.retry_dead_webhooks(uuid[]);
CREATE OR REPLACE FUNCTION postroom.retry_dead_webhooks(p_ids uuid[], p_by text DEFAULT NULL)
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_entry jsonb := postroom.decision('retried', p_by);
BEGIN
    RETURN QUERY
    UPDATE public.webhook_retry_queue
    SET status = 'pending', attempts = 0, crashes = 0, due_at = clock_timestamp(), next_retry_at = NULL,
        waits_for = NULL, dead_reason = NULL, failed_at = NULL, handlers_stopped = '{}', updated_at = clock_timestamp(),
        attempt_log = postroom.log_attempt(webhook_retry_queue.attempt_log, v_entry)
    WHERE webhook_retry_queue.id IN (
        SELECT chosen.id
        FROM public.webhook_retry_queue AS chosen
        WHERE chosen.id = ANY (p_ids) AND chosen.status = 'dead_letter'
        ORDER BY chosen.id
        FOR NO KEY UPDATE
    )
    RETURNING webhook_retry_queue.id;
    PERFORM postroom.wake('webhook');
END;
$$;

-- discard_dead_webhooks: a person has decided against them; returns the ids that changed.
DROP FUNCTION IF EXISTS postroom.discard_dead_webhooks(uuid[]);
CREATE OR REPLACE FUNCTION postroom.discard_dead_webhooks(
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
    UPDATE public.webhook_retry_queue
    SET status = 'failed', failed_at = clock_timestamp(), updated_at = clock_timestamp(),
        dead_reason = COALESCE(webhook_retry_queue.dead_reason, 'discarded'),  -- an old caller's failed rows have none
        attempt_log = postroom.log_attempt(webhook_retry_queue.attempt_log, v_entry)
    WHERE webhook_retry_queue.id IN (
        SELECT chosen.id
        FROM public.webhook_retry_queue AS chosen
        WHERE chosen.id = ANY (p_ids) AND chosen.status = 'dead_letter'
        ORDER BY chosen.id
        FOR NO KEY UPDATE
    )
    RETURNING webhook_retry_queue.id;
END;
$$;

-- settle_refused_webhooks: tries again to write the outcomes that a row's own trigger refused.
-- Returns how many are written now.
CREATE OR REPLACE FUNCTION postroom.settle_refused_webhooks()
RETURNS integer
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_row   record;
    v_count integer := 0;
BEGIN
    FOR v_row IN
        SELECT refused.id, refused.lease_no, refused.verdict, refused.reply, webhook.leased_by, webhook.id AS found
        FROM postroom.refused_rows AS refused
        LEFT JOIN public.webhook_retry_queue AS webhook ON webhook.id = refused.id
        WHERE refused.queue = 'webhook' AND refused.next_try_at <= clock_timestamp()
        ORDER BY refused.id
        LIMIT 100
        FOR UPDATE OF refused SKIP LOCKED
    LOOP
        IF v_row.verdict IS NOT NULL AND v_row.found IS NOT NULL THEN
            BEGIN
                PERFORM postroom.write_webhook_outcomes(
                    v_row.leased_by, ARRAY[v_row.id], ARRAY[v_row.lease_no], ARRAY[v_row.verdict],
                    ARRAY[v_row.reply], ARRAY[NULL::double precision], ARRAY[NULL::jsonb]
                );
            EXCEPTION WHEN OTHERS OR assert_failure THEN
                IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
                    RAISE;
                END IF;
                PERFORM postroom.set_aside('webhook', v_row.id, SQLERRM, NULL, NULL, NULL);
                CONTINUE;
            END;
            v_count := v_count + 1;
        END IF;
        DELETE FROM postroom.refused_rows WHERE refused_rows.queue = 'webhook' AND refused_rows.id = v_row.id;
    END LOOP;
    RETURN v_count;
END;
$$;

-- held_as_jsonb: a text as jsonb where jsonb can hold it, else {"_raw": true}.
CREATE OR REPLACE FUNCTION postroom.held_as_jsonb(p_text text)
RETURNS jsonb
LANGUAGE plpgsql
IMMUTABLE
SET search_path = ''
AS $$
BEGIN
    RETURN COALESCE(p_text::jsonb, '{"_raw": true}'::jsonb);
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN '{"_raw": true}'::jsonb;
END;
$$;

-- store_webhooks: keeps what has come, before it is answered: one row an event, the request beside it. Gives back
-- the ids that are stored; the others were there before.
--
-- An event is known by its source and the provider's id for 30 days; one without an id is always new. The ids come
-- from the caller, who can repeat a call whose answer was lost: what it stored the first time is given back again.
--
-- A payload that jsonb cannot hold (\u0000, a lone surrogate, a number of 200,000 digits) does not decide whether an
-- event is stored: where one is refused, all are tried one by one.
CREATE OR REPLACE FUNCTION postroom.store_webhooks(
    p_ids         uuid[],
    p_sources     text[],
    p_event_ids   text[],
    p_event_types text[],
    p_payloads    text[],
    p_headers     jsonb[],
    p_methods     text[],
    p_targets     text[],
    p_raw_headers jsonb[],
    p_bodies      bytea[],
    p_lanes       text[],
    p_lane_places numeric[],
    p_lane_holds  boolean[]
)
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_now      timestamptz := clock_timestamp();
    v_payloads jsonb[];
    v_new      uuid[];
BEGIN
    BEGIN
        v_payloads := p_payloads::jsonb[];
    EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
        SELECT array_agg(postroom.held_as_jsonb(payload.content) ORDER BY payload.place)
        INTO v_payloads
        FROM unnest(p_payloads) WITH ORDINALITY AS payload (content, place);
    END;

    -- In the order of the keys, and of the ids below, so that no two doors wait for each other.
    WITH asked AS (
        SELECT came.id, came.source, came.event_id, came.place
        FROM unnest(p_ids, p_sources, p_event_ids) WITH ORDINALITY AS came (id, source, event_id, place)
    ),
    noted AS (
        INSERT INTO postroom.seen_webhooks AS seen (source, event_id, id)
        SELECT DISTINCT ON (asked.source, asked.event_id) asked.source, asked.event_id, asked.id
        FROM asked
        WHERE asked.event_id IS NOT NULL
        ORDER BY asked.source, asked.event_id, asked.place
        ON CONFLICT (source, event_id) DO UPDATE
        SET id = EXCLUDED.id, seen_at = clock_timestamp()
        WHERE seen.id = EXCLUDED.id OR seen.seen_at < clock_timestamp() - interval '30 days'
        RETURNING seen.id
    )
    SELECT array_agg(fresh.id)
    INTO v_new
    FROM (
        SELECT noted.id FROM noted
        UNION ALL
        SELECT asked.id FROM asked WHERE asked.event_id IS NULL
    ) AS fresh;

    PERFORM set_config('postroom.stores', 'on', true); -- for postroom_note_seen
    INSERT INTO public.webhook_retry_queue (
        id, webhook_type, webhook_event_id, event_type, payload, headers, lane, lane_place, lane_holds, due_at
    )
    SELECT
        came.id, came.source, came.event_id, came.event_type, COALESCE(came.payload, '{"_raw": true}'), came.headers,
        came.lane,
        CASE WHEN came.lane IS NOT NULL THEN
            COALESCE(came.lane_place, extract(EPOCH FROM clock_timestamp())::numeric)
        END,
        COALESCE(came.lane_holds, false),
        -- They are stored in the order of their ids, and due in that in which they came.
        v_now + came.place * interval '1 microsecond'
    FROM unnest(
        p_ids, p_sources, p_event_ids, p_event_types, v_payloads, p_headers, p_lanes, p_lane_places, p_lane_holds
    ) WITH ORDINALITY AS came (id, source, event_id, event_type, payload, headers, lane, lane_place, lane_holds, place)
    WHERE came.id = ANY (v_new)
    ORDER BY came.id
    ON CONFLICT (id) DO NOTHING;
    PERFORM set_config('postroom.stores', '', true);

    INSERT INTO postroom.webhook_requests (id, method, target, headers, body)
    SELECT came.id, came.method, came.target, came.headers, came.body
    FROM unnest(p_ids, p_methods, p_targets, p_raw_headers, p_bodies) AS came (id, method, target, headers, body)
    WHERE came.id = ANY (v_new)
    ORDER BY came.id
    ON CONFLICT (id) DO NOTHING;

    RETURN QUERY SELECT fresh.id FROM unnest(v_new) AS fresh (id);
END;
$$;

-- forget_request: what was kept beside a row that is deleted goes with it, whoever deletes it.
--
-- SECURITY DEFINER, since whoever may delete an event has no right to schema postroom; it takes no argument.
CREATE OR REPLACE FUNCTION postroom.forget_request()
RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = ''
AS $$
BEGIN
    DELETE FROM postroom.webhook_requests WHERE webhook_requests.id = OLD.id;
    RETURN NULL;
END;
$$;

CREATE OR REPLACE TRIGGER postroom_forget_request
    AFTER DELETE ON public.webhook_retry_queue
    FOR EACH ROW EXECUTE FUNCTION postroom.forget_request();

-- note_seen_webhook: an event that an old caller writes into the queue is known to the door, as those that were there
-- before postroom are: while old and new run side by side its provider may send it again, to ours.
--
-- SECURITY DEFINER, since whoever may insert an event has no right to schema postroom; it takes no argument.
CREATE OR REPLACE FUNCTION postroom.note_seen_webhook()
RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = ''
AS $$
BEGIN
    INSERT INTO postroom.seen_webhooks (source, event_id, id)
    VALUES (NEW.webhook_type, NEW.webhook_event_id, NEW.id)
    ON CONFLICT (source, event_id) DO NOTHING;
    RETURN NULL;
END;
$$;

-- What the door stores, it has noted. Ids that are longer than any provider's fit in no index.
CREATE OR REPLACE TRIGGER postroom_note_seen
    AFTER INSERT ON public.webhook_retry_queue
    FOR EACH ROW
    WHEN (
        COALESCE(current_setting('postroom.stores', true), '') <> 'on'
        AND length(NEW.webhook_event_id) BETWEEN 1 AND 255
        AND length(NEW.webhook_type) <= 255
    )
    EXECUTE FUNCTION postroom.note_seen_webhook();

-- finish_handler: writes down that a handler is done with an event (or has refused it for good), in the transaction
-- of the handler's effect. Where the lease has passed on, or the handler is done already, it raises: the effect is
-- undone with it. This is what makes a handler's writes happen exactly once.
CREATE OR REPLACE FUNCTION postroom.finish_handler(
    p_worker uuid, p_id uuid, p_lease_no bigint, p_handler text, p_stopped boolean DEFAULT false
)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    UPDATE public.webhook_retry_queue
    SET handlers_done = webhook_retry_queue.handlers_done || CASE WHEN NOT p_stopped THEN ARRAY[p_handler] END,
        handlers_stopped = webhook_retry_queue.handlers_stopped || CASE WHEN p_stopped THEN ARRAY[p_handler] END,
        updated_at = clock_timestamp()
    WHERE webhook_retry_queue.id = p_id
        AND webhook_retry_queue.lease_no = p_lease_no
        AND webhook_retry_queue.leased_by = p_worker
        AND p_handler <> ALL (webhook_retry_queue.handlers_done || webhook_retry_queue.handlers_stopped);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of webhook % is lost', p_id USING ERRCODE = 'PR001';
    END IF;
END;
$$;

-- held_webhook: an event that a worker is to handle: `held`, or `done` where this handler is done with it already.
-- state is NULL where the lease has passed on.
CREATE OR REPLACE FUNCTION postroom.held_webhook(
    p_worker uuid, p_id uuid, p_lease_no bigint, p_handler text, OUT state text, OUT payload jsonb, OUT event_id text
)
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    SELECT
        CASE WHEN p_handler = ANY (event.handlers_done) THEN 'done' ELSE 'held' END,
        event.payload,
        event.webhook_event_id
    INTO held_webhook.state, held_webhook.payload, held_webhook.event_id
    FROM public.webhook_retry_queue AS event
    WHERE event.id = p_id AND event.lease_no = p_lease_no AND event.leased_by = p_worker;
END;
$$;

-- handle_webhooks: calls a SQL handler's function (payload jsonb, event_id text) for some begun events, each in a
-- transaction of its own: the effect and the mark that it is done commit together, or not at all. It begins no
-- further one after p_limit. It may be repeated: what is done is not done again.
--
-- p_function: schema and name, quoted as SQL needs it. It gives, each in the order of p_ids: `done`, `failed`, `lost`
-- (the lease has passed on) or NULL (it was not begun); what a function raised, by the letters of the wire protocol's
-- error fields; and how long each took, in ms.
--
-- The commits do not wait for the disk, and the last one, which has no event, waits for all of them: with a wait for each
-- an event took 131 us, without 11 (docs/decisions/0022). So what this gives as done is as durable as any commit. A crash
-- of the server before that undoes effect and mark together, and the worker hears of neither.
--
-- No SET clause: a procedure that has one may not commit. So it names everything in full, operators too, and the user's
-- function sees the search_path of the session.
CREATE OR REPLACE PROCEDURE postroom.handle_webhooks(
    p_worker       uuid,
    p_ids          uuid[],
    p_lease_nos    bigint[],
    p_handler      text,
    p_function     text,
    p_limit        interval,
    INOUT p_states text[],
    INOUT p_errors jsonb[],
    INOUT p_ms     double precision[]
)
LANGUAGE plpgsql
AS $$
DECLARE
    v_ends     timestamptz := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) p_limit;
    v_call     text := pg_catalog.format('SELECT %s($1, $2)', p_function);
    v_began    timestamptz;
    v_now      timestamptz;
    v_state    text;
    v_payload  jsonb;
    v_event_id text;
    v_code     text;
    v_message  text;
    v_detail   text;
    v_hint     text;
BEGIN
    -- Else the first one that is written would be the array's first.
    p_errors := pg_catalog.array_fill(NULL::jsonb, ARRAY[pg_catalog.cardinality(p_ids)]);
    FOR v_place IN 1 .. pg_catalog.cardinality(p_ids) LOOP
        v_began := pg_catalog.clock_timestamp();
        PERFORM pg_catalog.set_config('synchronous_commit', 'off', true);
        BEGIN
            SELECT held.state, held.payload, held.event_id
            INTO v_state, v_payload, v_event_id
            FROM postroom.held_webhook(p_worker, p_ids[v_place], p_lease_nos[v_place], p_handler) AS held;
            IF v_state OPERATOR(pg_catalog.=) 'held' THEN
                EXECUTE v_call USING v_payload, v_event_id;
                PERFORM postroom.finish_handler(p_worker, p_ids[v_place], p_lease_nos[v_place], p_handler);
            END IF;
            p_states[v_place] := CASE WHEN v_state IS NULL THEN 'lost' ELSE 'done' END;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            GET STACKED DIAGNOSTICS
                v_code = RETURNED_SQLSTATE, v_message = MESSAGE_TEXT,
                v_detail = PG_EXCEPTION_DETAIL, v_hint = PG_EXCEPTION_HINT;
            IF v_code OPERATOR(pg_catalog.=) 'PR001' THEN
                p_states[v_place] := 'lost';
            ELSE
                p_states[v_place] := 'failed';
                p_errors[v_place] := pg_catalog.jsonb_build_object(
                    'C', v_code, 'M', v_message, 'D', v_detail, 'H', v_hint
                );
            END IF;
        END;
        COMMIT;
        v_now := pg_catalog.clock_timestamp();
        p_ms[v_place] := 1000 OPERATOR(pg_catalog.*) EXTRACT(EPOCH FROM v_now OPERATOR(pg_catalog.-) v_began);
        EXIT WHEN v_now OPERATOR(pg_catalog.>) v_ends;
    END LOOP;
    -- Only a commit that has written something waits for the disk: a message that nobody reads, 60 bytes.
    PERFORM pg_catalog.pg_logical_emit_message(true, 'postroom', '');
END;
$$;

-- replay_webhooks: runs handlers again that have not been done; with p_handler also that one, with p_all all of them.
DROP FUNCTION IF EXISTS postroom.replay_webhooks(uuid[], text);
CREATE OR REPLACE FUNCTION postroom.replay_webhooks(
    p_ids uuid[], p_handler text, p_all boolean DEFAULT false, p_by text DEFAULT NULL
)
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_entry jsonb := postroom.decision('replayed', p_by, CASE WHEN p_all THEN 'all handlers' ELSE p_handler END);
BEGIN
    RETURN QUERY
    UPDATE public.webhook_retry_queue
    SET status = 'pending', attempts = 0, crashes = 0, due_at = clock_timestamp(), next_retry_at = NULL, waits_for = NULL,
        dead_reason = NULL, failed_at = NULL, processed_at = NULL, updated_at = clock_timestamp(),
        handlers_stopped = '{}',
        handlers_done = CASE WHEN p_all THEN '{}' ELSE array_remove(webhook_retry_queue.handlers_done, p_handler) END,
        attempt_log = postroom.log_attempt(webhook_retry_queue.attempt_log, v_entry),
        metadata = CASE jsonb_typeof(webhook_retry_queue.metadata)
            WHEN 'object' THEN webhook_retry_queue.metadata - 'unhandled' ELSE webhook_retry_queue.metadata
        END
    WHERE webhook_retry_queue.id IN (
        SELECT chosen.id
        FROM public.webhook_retry_queue AS chosen
        WHERE chosen.id = ANY (p_ids) AND chosen.status IN ('processed', 'dead_letter')
            AND chosen.payload <> '{"_emptied": true}'
        ORDER BY chosen.id
        FOR NO KEY UPDATE
    )
    RETURNING webhook_retry_queue.id;
    PERFORM postroom.wake('webhook');
END;
$$;

-- register_handlers: shows every worker which handlers a program brings with --app, in place of those that it
-- brought before. Gives back the other programs that have handlers of one of these sources: then nothing changes,
-- since no worker could finish an event whose handlers are in two programs.
CREATE OR REPLACE FUNCTION postroom.register_handlers(p_app text, p_sources text[], p_names text[], p_events jsonb[])
RETURNS SETOF text
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    -- A snapshot from before the lock would not show who was first.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'register_handlers must be called at READ COMMITTED' USING ERRCODE = 'active_sql_transaction';
    END IF;
    LOCK TABLE postroom.handlers IN SHARE ROW EXCLUSIVE MODE;
    RETURN QUERY
    SELECT DISTINCT handlers.app
    FROM postroom.handlers
    WHERE handlers.source = ANY (p_sources) AND handlers.app <> p_app;
    IF FOUND THEN
        RETURN;
    END IF;

    DELETE FROM postroom.handlers WHERE handlers.app = p_app;
    INSERT INTO postroom.handlers (app, source, name, events)
    SELECT p_app, brought.source, brought.name, ARRAY(SELECT jsonb_array_elements_text(brought.events))
    FROM unnest(p_sources, p_names, p_events) AS brought (source, name, events);
    PERFORM postroom.wake('webhook');
END;
$$;

-- forget_handlers: a program is gone for good, and with it the handlers that it brought; gives them back. Its events
-- are then any worker's.
CREATE OR REPLACE FUNCTION postroom.forget_handlers(p_app text)
RETURNS SETOF postroom.handlers
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    RETURN QUERY
    DELETE FROM postroom.handlers
    WHERE handlers.app = p_app
    RETURNING handlers.*;
    PERFORM postroom.wake('webhook');
END;
$$;

-- sources_of_others: the sources that have a registered handler which is none of these.
CREATE OR REPLACE FUNCTION postroom.sources_of_others(p_sources text[], p_names text[])
RETURNS SETOF text
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT DISTINCT registered.source
    FROM postroom.handlers AS registered
    WHERE NOT EXISTS (
        SELECT 1
        FROM unnest(p_sources, p_names) AS own (source, name)
        WHERE own.source = registered.source AND own.name = registered.name
    );
$$;
