-- Limits, exact over any sliding window as the receiver sees it.
--
-- A limit's book is one row of public.rate_limit_counters: the times at which slots were taken and how
-- many then. Only the times of the last N slots hold a sliding window: fixed windows, buckets and GCRA
-- with a burst of N all let up to 2N through. Slots of one grain (1/200 of the window) share an
-- entry, dated with the latest of them: that never lets one too many through and bounds the book.
--
-- The book's window is wider than the setting by 500 ms: a slot is good for 250 ms, and the
-- network may take 250 ms more before the receiver's clock sees the mail.

-- limit_rule_of: the setting that holds for a key; amount is NULL where there is no limit.
CREATE OR REPLACE FUNCTION postroom.limit_rule_of(p_key text)
RETURNS postroom.limit_rule
LANGUAGE plpgsql
STABLE
SET search_path = ''
AS $$
DECLARE
    v_rule postroom.limit_rule;
BEGIN
    SELECT setting.amount, setting.span, setting.value
    INTO v_rule
    FROM postroom.settings AS setting
    WHERE setting.key = CASE
        WHEN p_key = 'email:global' THEN 'email.limit.global'
        WHEN p_key LIKE 'email:recipient:%' THEN 'email.limit.recipient'
    END;
    RETURN v_rule;
END;
$$;

-- recipient_key: the limiter's key of an address. No address has more than 254 characters; what a plain INSERT may
-- hold instead must fit into an index entry (2,704 bytes), or it would stop the batch that it is in.
CREATE OR REPLACE FUNCTION postroom.recipient_key(p_to_email text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT 'email:recipient:' || left(lower(btrim(p_to_email)), 500);
$$;

-- book_window: how long a slot counts.
CREATE OR REPLACE FUNCTION postroom.book_window(p_span interval)
RETURNS interval
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT COALESCE(p_span, interval '60 seconds') + interval '500 milliseconds';
$$;

-- slots_used: how many slots of a book still count at p_at. The entries are in order, so
-- width_bucket finds the first that counts by binary search.
CREATE OR REPLACE FUNCTION postroom.slots_used(
    p_taken_at timestamptz[], p_taken integer[], p_at timestamptz, p_window interval
)
RETURNS integer
LANGUAGE plpgsql
IMMUTABLE
SET search_path = ''
AS $$
BEGIN
    RETURN (
        SELECT COALESCE(sum(entry.slots), 0)
        FROM unnest(p_taken[width_bucket(p_at - p_window, p_taken_at) + 1:]) AS entry (slots)
    );
END;
$$;

-- slot_frees_at: when the slot that lies p_back slots behind the latest one stops to count; NULL where
-- it has already.
CREATE OR REPLACE FUNCTION postroom.slot_frees_at(
    p_taken_at timestamptz[], p_taken integer[], p_back bigint, p_at timestamptz, p_window interval
)
RETURNS timestamptz
LANGUAGE plpgsql
IMMUTABLE
SET search_path = ''
AS $$
BEGIN
    RETURN (
        SELECT entry.taken_at + p_window
        FROM (
            SELECT
                slot.taken_at,
                sum(slot.taken) OVER (ORDER BY slot.place DESC) AS newer_and_these
            FROM unnest(p_taken_at, p_taken) WITH ORDINALITY AS slot (taken_at, taken, place)
            WHERE slot.taken_at > p_at - p_window
        ) AS entry
        WHERE entry.newer_and_these > p_back
        ORDER BY entry.newer_and_these
        LIMIT 1
    );
END;
$$;

-- lock_books: locks the books of some keys, in the order of the keys, makes those that are missing, and
-- gives the time from which on they are ours.
--
-- Everyone locks in this order, so no two can wait for each other. A row of a hand-made limiter becomes a
-- book with one entry of its present count. Times in the future (the clock was set back) count
-- from now on, so that a clock costs one window at most.
CREATE OR REPLACE FUNCTION postroom.lock_books(p_keys text[])
RETURNS timestamptz
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_keys  text[];
    v_found integer;
    v_at    timestamptz;
    v_last  timestamptz;
BEGIN
    SELECT array_agg(DISTINCT wanted.key ORDER BY wanted.key) INTO v_keys FROM unnest(p_keys) AS wanted (key);
    LOOP
        SELECT count(*), max(book.last_at)
        INTO v_found, v_last
        FROM (
            SELECT counter.taken_at[cardinality(counter.taken_at)] AS last_at
            FROM public.rate_limit_counters AS counter
            WHERE counter.key = ANY (v_keys) AND counter.taken_at IS NOT NULL
            ORDER BY counter.key
            FOR UPDATE
        ) AS book;
        EXIT WHEN v_found = cardinality(v_keys);

        -- A hand-made table may want its window NOT NULL: that of an empty book has ended.
        INSERT INTO public.rate_limit_counters AS counter (
            key, count, window_start, window_end, updated_at, taken_at, taken
        )
        SELECT missing.key, 0, clock_timestamp(), clock_timestamp(), clock_timestamp(), '{}', '{}'
        FROM unnest(v_keys) AS missing (key)
        ORDER BY missing.key
        ON CONFLICT (key) DO UPDATE
        SET taken_at = CASE
                WHEN counter.window_end > clock_timestamp() AND counter.count > 0
                    THEN ARRAY[LEAST(COALESCE(counter.updated_at, clock_timestamp()), clock_timestamp())]
                ELSE '{}'
            END,
            taken = CASE
                WHEN counter.window_end > clock_timestamp() AND counter.count > 0 THEN ARRAY[counter.count]
                ELSE '{}'
            END
        WHERE counter.taken_at IS NULL;
    END LOOP;

    v_at := clock_timestamp();
    IF v_last > v_at + interval '1 second' THEN
        UPDATE public.rate_limit_counters AS counter
        SET taken_at = (
            SELECT array_agg(LEAST(entry.taken_at, v_at) ORDER BY entry.place)
            FROM unnest(counter.taken_at) WITH ORDINALITY AS entry (taken_at, place)
        )
        WHERE counter.key = ANY (v_keys) AND cardinality(counter.taken_at) > 0;
        RETURN v_at;
    END IF;
    RETURN GREATEST(v_at, v_last);
END;
$$;

-- take_slots: writes slots into books that are locked.
CREATE OR REPLACE FUNCTION postroom.take_slots(p_keys text[], p_slots integer[], p_at timestamptz)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    UPDATE public.rate_limit_counters AS counter
    SET taken_at = next.taken_at,
        taken = next.taken,
        taken_total = next.taken_total,
        count = next.count,
        window_start = next.taken_at[1],
        window_end = p_at + next.book_window,
        updated_at = p_at
    FROM (
        SELECT
            book.key,
            CASE WHEN book.joins THEN kept_at[:cardinality(kept_at) - 1] || p_at ELSE kept_at || p_at END AS taken_at,
            CASE
                WHEN book.joins
                    THEN kept[:cardinality(kept) - 1] || (kept[cardinality(kept)] + book.slots)
                ELSE kept || book.slots
            END AS taken,
            book.taken_total + book.slots AS taken_total,
            book.slots + (SELECT COALESCE(sum(entry.slots), 0)::integer FROM unnest(kept) AS entry (slots)) AS count,
            book.book_window
        FROM (
            SELECT
                old.key,
                wanted.slots,
                old.taken_total,
                live.kept_at,
                live.kept,
                span.book_window,
                -- Of the same grain as the last entry.
                COALESCE(
                    floor(extract(EPOCH FROM live.kept_at[cardinality(live.kept_at)]) / span.grain_s)
                    = floor(extract(EPOCH FROM p_at) / span.grain_s),
                    false
                ) AS joins
            FROM unnest(p_keys, p_slots) AS wanted (key, slots)
            JOIN public.rate_limit_counters AS old ON old.key = wanted.key
            -- limit_rule_of, joined: called for each key it took 8 of 75 us a mail.
            LEFT JOIN postroom.settings AS rule
                ON rule.key = CASE
                    WHEN wanted.key = 'email:global' THEN 'email.limit.global'
                    WHEN wanted.key LIKE 'email:recipient:%' THEN 'email.limit.recipient'
                END
            CROSS JOIN LATERAL (
                SELECT
                    postroom.book_window(rule.span) AS book_window,
                    extract(EPOCH FROM COALESCE(rule.span, interval '60 seconds')) / 200 AS grain_s
            ) AS span
            CROSS JOIN LATERAL (
                SELECT
                    old.taken_at[width_bucket(p_at - span.book_window, old.taken_at) + 1:] AS kept_at,
                    old.taken[width_bucket(p_at - span.book_window, old.taken_at) + 1:] AS kept
            ) AS live
        ) AS book
    ) AS next
    WHERE counter.key = next.key;
END;
$$;

-- free_slots: how many slots a key has left now, and in how many seconds the next one frees where it has
-- none. NULL, NULL where there is no limit. It locks nothing and promises nothing.
CREATE OR REPLACE FUNCTION postroom.free_slots(p_key text, OUT free integer, OUT wait_s double precision)
LANGUAGE plpgsql
STABLE
SET search_path = ''
AS $$
DECLARE
    v_rule   postroom.limit_rule := postroom.limit_rule_of(p_key);
    v_book   record;
    v_at     timestamptz := clock_timestamp();
    v_window interval;
BEGIN
    IF v_rule.amount IS NULL THEN
        RETURN;
    END IF;
    v_window := postroom.book_window(v_rule.span);
    SELECT counter.taken_at, counter.taken
    INTO v_book
    FROM public.rate_limit_counters AS counter
    WHERE counter.key = p_key AND counter.taken_at IS NOT NULL;
    IF NOT FOUND THEN
        free := v_rule.amount;
        RETURN;
    END IF;
    IF v_book.taken_at[cardinality(v_book.taken_at)] > v_at + interval '1 second' THEN
        -- The clock was set back. Whoever takes slots mends the book (lock_books); to say that there are none
        -- would keep everybody from trying until the old time has come round again.
        free := v_rule.amount;
        RETURN;
    END IF;
    v_at := GREATEST(v_at, v_book.taken_at[cardinality(v_book.taken_at)]);
    free := GREATEST(v_rule.amount - postroom.slots_used(v_book.taken_at, v_book.taken, v_at, v_window), 0);
    IF free = 0 THEN
        wait_s := GREATEST(extract(
            EPOCH FROM postroom.slot_frees_at(v_book.taken_at, v_book.taken, v_rule.amount - 1, v_at, v_window) - v_at
        ), 0.001);
    END IF;
END;
$$;

-- take_for_emails: takes a slot of every limit for each of some e-mails, in their order, all or
-- none for each; says of those that got none what they wait for.
--
-- A mail that waits for its recipient gets a ticket: ticket t is served as slot t, and slot t frees when slot
-- t - N stops to count, so a hot recipient's mails are spread over its coming windows at once and each
-- of them is touched once, not once a window. Mails without a ticket stand behind those with one; mails
-- of a priority above 0 pass them. A mail that waits for the global limit keeps its place in the
-- queue: claims take no more than the global book has left.
--
-- Returns one row an e-mail: taken, or the key, and the time to come back at (NULL: its old due time).
CREATE OR REPLACE FUNCTION postroom.take_for_emails(
    p_to_emails  text[],
    p_priorities integer[],
    p_tickets    boolean[],
    OUT place     integer,
    OUT taken     boolean,
    OUT waits_for text,
    OUT due_at    timestamptz,
    OUT taken_at  timestamptz
)
RETURNS SETOF record
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_global    postroom.limit_rule := postroom.limit_rule_of('email:global');
    v_recipient postroom.limit_rule := postroom.limit_rule_of('email:recipient:');
    v_window    interval := postroom.book_window(v_recipient.span);
    v_keys      text[];
    v_free      integer[];
    v_taken     integer[];
    v_waiting   bigint[];
    v_at        timestamptz := clock_timestamp();
    v_free_all  integer;
    v_taken_all integer := 0;
    v_book      record;
    v_spot      integer;
    v_ticket    bigint;
    v_rounds    bigint;
    v_high      boolean;
BEGIN
    IF v_recipient.amount IS NOT NULL THEN
        SELECT array_agg(DISTINCT postroom.recipient_key(mail.to_email))
        INTO v_keys
        FROM unnest(p_to_emails) AS mail (to_email);
    END IF;
    IF v_global.amount IS NOT NULL THEN
        v_keys := v_keys || 'email:global'::text;
    END IF;
    IF v_keys IS NOT NULL THEN
        v_at := postroom.lock_books(v_keys);
    END IF;
    IF v_global.amount IS NOT NULL THEN
        SELECT GREATEST(
            v_global.amount
            - postroom.slots_used(counter.taken_at, counter.taken, v_at, postroom.book_window(v_global.span)), 0
        )
        INTO v_free_all
        FROM public.rate_limit_counters AS counter
        WHERE counter.key = 'email:global';
        v_keys := array_remove(v_keys, 'email:global');
    END IF;
    IF v_recipient.amount IS NOT NULL THEN
        SELECT
            array_agg(counter.key ORDER BY counter.key),
            array_agg(
                GREATEST(v_recipient.amount - postroom.slots_used(counter.taken_at, counter.taken, v_at, v_window), 0)
                ORDER BY counter.key
            ),
            array_agg(0 ORDER BY counter.key),
            -- Tickets that were given under another limit are void.
            array_agg(
                CASE WHEN counter.planned_under = v_recipient.written
                    THEN GREATEST(counter.planned - counter.taken_total, 0) ELSE 0 END
                ORDER BY counter.key
            )
        INTO v_keys, v_free, v_taken, v_waiting
        FROM public.rate_limit_counters AS counter
        WHERE counter.key = ANY (v_keys);
    END IF;

    taken_at := v_at;
    FOR v_mail IN 1..cardinality(p_to_emails) LOOP
        place := v_mail;
        due_at := NULL;
        waits_for := NULL;
        v_high := p_priorities[v_mail] > 0;
        IF v_recipient.amount IS NOT NULL THEN
            v_spot := array_position(v_keys, postroom.recipient_key(p_to_emails[v_mail]));
            -- A ticket's turn: whoever stands in line before it has slots of his own.
            IF (v_free[v_spot] <= CASE WHEN v_high OR p_tickets[v_mail] THEN 0 ELSE v_waiting[v_spot] END) THEN
                waits_for := 'limit:' || v_keys[v_spot];
            END IF;
        END IF;
        IF waits_for IS NULL AND v_free_all = 0 THEN
            waits_for := 'limit:email:global';
        END IF;
        taken := waits_for IS NULL;

        IF taken THEN
            v_taken_all := v_taken_all + 1;
            v_free_all := v_free_all - 1;
            IF v_recipient.amount IS NOT NULL THEN
                v_free[v_spot] := v_free[v_spot] - 1;
                v_taken[v_spot] := v_taken[v_spot] + 1;
                IF v_waiting[v_spot] > 0 THEN
                    v_waiting[v_spot] := v_waiting[v_spot] - 1;
                END IF;
            END IF;
        ELSIF waits_for <> 'limit:email:global' THEN
            SELECT
                counter.key, counter.taken_at, counter.taken, counter.taken_total, counter.checked_at,
                CASE WHEN counter.planned_under = v_recipient.written
                    THEN GREATEST(counter.planned, counter.taken_total) ELSE counter.taken_total END AS planned,
                CASE WHEN counter.planned_under = v_recipient.written
                    THEN GREATEST(counter.planned_high, counter.taken_total) ELSE counter.taken_total END AS planned_high
            INTO v_book
            FROM public.rate_limit_counters AS counter
            WHERE counter.key = v_keys[v_spot];

            -- Mails that were discarded leave holes in the line: now and then it is counted.
            IF v_book.planned - v_book.taken_total > v_recipient.amount
                AND COALESCE(v_book.checked_at < v_at - interval '10 seconds', true)
            THEN
                v_book.planned := v_book.taken_total + (
                    SELECT count(*)
                    FROM public.email_queue AS waiting
                    WHERE waiting.status = 'pending'
                        AND waiting.planned_under = v_recipient.written
                        AND waiting.waits_for = take_for_emails.waits_for
                );
                v_book.checked_at := v_at;
            END IF;

            -- Slots that this batch takes are not in the book yet: they are dated v_at. A turn that came
            -- a little early keeps its ticket and waits for the slot that frees next.
            v_ticket := CASE
                WHEN p_tickets[v_mail] THEN 1
                ELSE GREATEST(
                    CASE WHEN v_high THEN v_book.planned_high ELSE v_book.planned END
                    - v_book.taken_total - v_taken[v_spot] + 1, 1
                )
            END;
            v_rounds := (v_ticket + v_recipient.amount - 1) / v_recipient.amount;
            -- A grain of slack a round: the latest entry may still grow, and nobody is on time to the microsecond.
            due_at := CASE
                WHEN v_rounds * v_recipient.amount - v_ticket < v_taken[v_spot] THEN v_at + v_window
                ELSE COALESCE(
                    postroom.slot_frees_at(
                        v_book.taken_at, v_book.taken,
                        v_rounds * v_recipient.amount - v_ticket - v_taken[v_spot], v_at, v_window
                    ),
                    v_at
                )
            END + (v_rounds - 1) * v_window + v_rounds * v_recipient.span / 200;
            IF p_tickets[v_mail] THEN
                RETURN NEXT;
                CONTINUE;
            END IF;

            UPDATE public.rate_limit_counters AS counter
            SET planned = CASE WHEN v_high THEN v_book.planned ELSE v_book.taken_total + v_taken[v_spot] + v_ticket END,
                planned_high = CASE WHEN v_high THEN v_book.taken_total + v_taken[v_spot] + v_ticket ELSE v_book.planned_high END,
                planned_under = v_recipient.written,
                checked_at = COALESCE(v_book.checked_at, v_at)
            WHERE counter.key = v_book.key;
            v_waiting[v_spot] := v_waiting[v_spot] + CASE WHEN v_high THEN 0 ELSE 1 END;
        END IF;
        RETURN NEXT;
    END LOOP;

    IF v_taken_all > 0 THEN
        IF v_recipient.amount IS NOT NULL THEN
            SELECT array_agg(used.key), array_agg(used.slots)
            INTO v_keys, v_taken
            FROM unnest(v_keys, v_taken) AS used (key, slots)
            WHERE used.slots > 0;
        ELSE
            v_keys := '{}';
            v_taken := '{}';
        END IF;
        IF v_global.amount IS NOT NULL THEN
            v_keys := v_keys || 'email:global'::text;
            v_taken := v_taken || v_taken_all;
        END IF;
        PERFORM postroom.take_slots(v_keys, v_taken, v_at);
    END IF;
END;
$$;

-- replan_limited_emails: rows that were planned under a limit that has changed since become due at once,
-- up to p_limit of them; they are planned anew if they must wait. Returns how many.
CREATE OR REPLACE FUNCTION postroom.replan_limited_emails(p_limit integer)
RETURNS integer
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_written text := (postroom.limit_rule_of('email:recipient:')).written;
    v_old     text;
    v_count   integer;
BEGIN
    -- A limit that holds no longer: each look is a range of the index. `<>` is none, and with statistics that are not
    -- there the ranges in one query were planned as a walk over all that waits for a limit.
    SELECT waiting.planned_under
    INTO v_old
    FROM public.email_queue AS waiting
    WHERE waiting.status = 'pending'
        AND waiting.planned_under < v_written
        -- NULL: an old caller has given the row another time since.
        AND waiting.waits_for IS NOT NULL
    ORDER BY waiting.planned_under
    LIMIT 1;
    IF NOT FOUND THEN
        SELECT waiting.planned_under
        INTO v_old
        FROM public.email_queue AS waiting
        WHERE waiting.status = 'pending'
            AND waiting.planned_under > v_written
            AND waiting.waits_for IS NOT NULL
        ORDER BY waiting.planned_under
        LIMIT 1;
    END IF;
    IF v_old IS NULL THEN
        RETURN 0;
    END IF;

    UPDATE public.email_queue
    SET due_at = LEAST(email_queue.created_at, clock_timestamp()),
        next_retry_at = NULL,
        waits_for = NULL,
        planned_under = NULL,
        updated_at = clock_timestamp()
    WHERE email_queue.id = ANY (ARRAY(
        SELECT waiting.id
        FROM public.email_queue AS waiting
        WHERE waiting.status = 'pending' AND waiting.planned_under = v_old AND waiting.waits_for IS NOT NULL
        LIMIT p_limit
        FOR NO KEY UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS v_count = ROW_COUNT;
    IF v_count > 0 THEN
        PERFORM postroom.wake('email');
    END IF;
    RETURN v_count;
END;
$$;
