-- Limits, exact over any sliding window as the receiver sees it.
--
-- A limit's book is one row of public.rate_limit_counters: the times at which slots were taken and how
-- many then. Only the times of the last N slots hold a sliding window: fixed windows, buckets and GCRA
-- with a burst of N all let up to 2N through. Slots of one grain (1/200 of the window) share an
-- entry, dated with the latest of them: that never lets one too many through and bounds the book.
--
-- The book's window is wider than the setting by 500 ms: a slot is good for 250 ms, and the
-- network may take 250 ms more before the receiver's clock sees the mail.

-- limit_setting_of: the setting that a key of the limiter goes by; NULL where it is no key of the engine.
CREATE OR REPLACE FUNCTION postroom.limit_setting_of(p_key text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT CASE
        WHEN p_key = 'email:global' THEN 'email.limit.global'
        WHEN p_key LIKE 'email:recipient:%' THEN 'email.limit.recipient'
        WHEN p_key ~ '^email:(domain|sender|type|transport):' THEN
            'email.limit.' || split_part(p_key, ':', 2) || '.' || substr(p_key, length(split_part(p_key, ':', 2)) + 8)
    END;
$$;

-- limit_key_of: the limiter's key of a setting; NULL where it is no limit of one key.
CREATE OR REPLACE FUNCTION postroom.limit_key_of(p_setting text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT CASE
        WHEN p_setting = 'email.limit.global' THEN 'email:global'
        WHEN p_setting ~ '^email\.limit\.(domain|sender|type|transport)\.' THEN
            'email:' || split_part(p_setting, '.', 3) || ':' || substr(p_setting, length(split_part(p_setting, '.', 3)) + 14)
    END;
$$;

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
    WHERE setting.key = postroom.limit_setting_of(p_key);
    RETURN v_rule;
END;
$$;

-- limit_name: a limit as rows that wait for it name it: another value is another limit. A recipient's is its value
-- alone, the same for all of them.
CREATE OR REPLACE FUNCTION postroom.limit_name(p_setting text, p_value text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT CASE WHEN p_setting = 'email.limit.recipient' THEN p_value ELSE p_setting || '=' || p_value END;
$$;

-- limit_holds: whether a limit of that name is in force.
CREATE OR REPLACE FUNCTION postroom.limit_holds(p_name text)
RETURNS boolean
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    RETURN EXISTS (
        SELECT 1
        FROM postroom.settings AS setting
        WHERE setting.key = CASE
                WHEN p_name LIKE 'email.limit.%' THEN regexp_replace(p_name, '=[^=]*$', '') ELSE 'email.limit.recipient'
            END
            AND postroom.limit_name(setting.key, setting.value) = p_name
            AND setting.amount IS NOT NULL
    );
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
        EXIT WHEN v_found = COALESCE(cardinality(v_keys), 0);

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
            LEFT JOIN postroom.settings AS rule ON rule.key = postroom.limit_setting_of(wanted.key)
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
SET enable_seqscan = off
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
    -- From the end of a range: while somebody holds an old snapshot a book has thousands of dead versions, the oldest
    -- first. Read from the front, those of 25,000 batches took 1.8 ms a claim, in place of 0.1.
    SELECT counter.taken_at, counter.taken
    INTO v_book
    FROM public.rate_limit_counters AS counter
    WHERE counter.key >= p_key AND counter.key <= p_key
    ORDER BY counter.key DESC
    LIMIT 1;
    IF v_book.taken_at IS NULL THEN
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

-- limits_of_emails: the limits that hold for each of some e-mails, in the order in which they are asked. rank says
-- which: a mail waits in the line of one limit at a time, and where its turn has come there, it stands in none
-- of a lower rank any more. The global limit comes last and has no line.
--
-- p_routes: the transports that they are about to go out by, such as smtp://host:587; its limit is by that name
-- or by its kind (smtp). p_rerouted: true where all slots but those are taken already. Both may be NULL.
CREATE OR REPLACE FUNCTION postroom.limits_of_emails(
    p_to_emails   text[],
    p_from_emails text[],
    p_email_types text[],
    p_routes      text[],
    p_rerouted    boolean[]
)
RETURNS TABLE (place integer, rank integer, key text, amount integer, span interval, name text)
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    -- Only what somebody has set is looked up for each mail.
    v_kinds text[] := ARRAY(
        SELECT split_part(setting.key, '.', 3) FROM postroom.settings AS setting WHERE setting.amount IS NOT NULL
    );
BEGIN
    RETURN QUERY
    SELECT
        mail.place::integer, wanted.rank, wanted.key, rule.amount, rule.span,
        postroom.limit_name(rule.key, rule.value)
    FROM unnest(p_to_emails, p_from_emails, p_email_types, p_routes, p_rerouted)
        WITH ORDINALITY AS mail (to_email, from_email, email_type, route, rerouted, place)
    CROSS JOIN LATERAL (
        VALUES
            (1, 'recipient', postroom.recipient_key(mail.to_email)),
            (2, 'domain', 'email:domain:' || left(lower(btrim(substring(mail.to_email FROM '@([^@]*)$'))), 500)),
            (3, 'type', 'email:type:' || left(lower(btrim(mail.email_type)), 500)),
            (4, 'sender', 'email:sender:' || left(lower(btrim(
                COALESCE(substring(mail.from_email FROM '<([^<>]*)>\s*$'), mail.from_email)
            )), 500)),
            (5, 'transport', 'email:transport:' || substring(mail.route FROM '^[a-z]+')),
            (6, 'transport', 'email:transport:' || NULLIF(left(lower(mail.route), 500), substring(mail.route FROM '^[a-z]+'))),
            (9, 'global', 'email:global')
    ) AS wanted (rank, kind, key)
    JOIN postroom.settings AS rule ON rule.key = postroom.limit_setting_of(wanted.key) AND rule.amount IS NOT NULL
    WHERE wanted.kind = ANY (v_kinds) AND (mail.rerouted IS NOT TRUE OR wanted.kind = 'transport')
    ORDER BY mail.place, wanted.rank;
END;
$$;

-- take_slots_at_once: locks some books in the order of their keys and writes slots into them, in one statement, where
-- every one of them has enough and nobody stands in its line. Otherwise it takes none and returns false.
--
-- A slot may be dated at any time of this call: whoever asked counts the 250 ms from before it.
CREATE OR REPLACE FUNCTION postroom.take_slots_at_once(
    p_keys text[], p_slots integer[], p_amounts integer[], p_spans interval[]
)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_at    timestamptz := clock_timestamp();
    v_taken integer;
BEGIN
    INSERT INTO public.rate_limit_counters AS counter (
        key, count, window_start, window_end, updated_at, taken_at, taken, taken_total
    )
    SELECT
        wanted.key, wanted.slots, v_at, v_at + postroom.book_window(wanted.span), v_at,
        ARRAY[v_at], ARRAY[wanted.slots], wanted.slots
    FROM unnest(p_keys, p_slots, p_amounts, p_spans) AS wanted (key, slots, amount, span)
    WHERE wanted.slots <= wanted.amount
    ORDER BY wanted.key
    ON CONFLICT (key) DO UPDATE
    SET (count, window_start, window_end, updated_at, taken_at, taken, taken_total) = (
        SELECT
            EXCLUDED.count + (SELECT COALESCE(sum(entry.slots), 0) FROM unnest(live.kept) AS entry (slots)),
            COALESCE(live.kept_at[1], live.at),
            live.at + live.book_window,
            live.at,
            CASE WHEN live.joins THEN live.kept_at[:cardinality(live.kept_at) - 1] ELSE live.kept_at END || live.at,
            CASE
                WHEN live.joins
                    THEN live.kept[:cardinality(live.kept) - 1] || (live.kept[cardinality(live.kept)] + EXCLUDED.count::integer)
                ELSE live.kept || EXCLUDED.count::integer  -- a hand-made table may have a bigint
            END,
            counter.taken_total + EXCLUDED.count
        FROM (
            SELECT
                span.at,
                span.book_window,
                counter.taken_at[span.gone + 1:] AS kept_at,
                counter.taken[span.gone + 1:] AS kept,
                -- Of the same grain as the last entry.
                span.gone < cardinality(counter.taken_at)
                AND date_bin(span.grain, counter.taken_at[cardinality(counter.taken_at)], 'epoch')
                = date_bin(span.grain, span.at, 'epoch') AS joins
            FROM (
                SELECT
                    wide.at, wide.book_window,
                    (wide.book_window - interval '500 milliseconds') / 200 AS grain,
                    width_bucket(wide.at - wide.book_window, counter.taken_at) AS gone
                FROM (
                    SELECT
                        GREATEST(v_at, counter.taken_at[cardinality(counter.taken_at)]) AS at,
                        EXCLUDED.window_end - EXCLUDED.window_start AS book_window
                ) AS wide
                OFFSET 0
            ) AS span
            OFFSET 0  -- each is worked out once; else the planner writes it out wherever it is used
        ) AS live
    )
    -- The first tests are cheap: a line (of those of no priority), the book of a hand-made limiter, a clock that was set back.
    WHERE counter.planned <= counter.taken_total
        AND (cardinality(counter.taken_at) = 0 OR counter.taken_at[cardinality(counter.taken_at)] < v_at + interval '1 second')
        AND (
            -- The usual book of a recipient, whether or not its one entry still counts.
            (
                cardinality(counter.taken) = 1
                AND EXCLUDED.count + counter.taken[1] <= p_amounts[array_position(p_keys, counter.key)]
            )
            OR EXCLUDED.count + (
                SELECT COALESCE(sum(entry.slots), 0)
                FROM unnest(counter.taken[width_bucket(
                    GREATEST(v_at, counter.taken_at[cardinality(counter.taken_at)])
                    - (EXCLUDED.window_end - EXCLUDED.window_start),
                    counter.taken_at
                ) + 1:]) AS entry (slots)
            ) <= p_amounts[array_position(p_keys, counter.key)]
        );
    GET DIAGNOSTICS v_taken = ROW_COUNT;
    IF v_taken < cardinality(p_keys) THEN
        RAISE EXCEPTION USING ERRCODE = 'PR001', MESSAGE = 'a limit is reached';
    END IF;
    RETURN true;
EXCEPTION WHEN SQLSTATE 'PR001' THEN
    RETURN false;
END;
$$;

-- take_slots_for_emails: takes a slot of every limit for each of some e-mails, in their order, all or
-- none for each. Returns a row for each that got none: what it waits for, and the time to come back at (NULL: its
-- old due time).
--
-- p_waits_for, p_planned_under: what the mail has waited for, and the limit that its time was planned by.
-- Where that limit still holds they are a ticket (`direct`: somebody waits for the answer, and it stands in no line).
CREATE OR REPLACE FUNCTION postroom.take_slots_for_emails(
    p_to_emails     text[],
    p_from_emails   text[],
    p_email_types   text[],
    p_priorities    integer[],
    p_waits_for     text[],
    p_planned_under text[],
    p_routes        text[],
    p_rerouted      boolean[]
)
RETURNS SETOF postroom.waiting_email
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_rules   record;
    v_keys    text[];
    v_slots   integer[];
    v_amounts integer[];
    v_spans   interval[];
    v_count   integer;
BEGIN
    -- The whole table: it is one page.
    SELECT
        max(setting.amount) FILTER (WHERE setting.key = 'email.limit.global') AS global_amount,
        max(setting.span) FILTER (WHERE setting.key = 'email.limit.global') AS global_span,
        max(setting.amount) FILTER (WHERE setting.key = 'email.limit.recipient') AS amount,
        max(setting.span) FILTER (WHERE setting.key = 'email.limit.recipient') AS span,
        bool_or(setting.key NOT IN ('email.limit.global', 'email.limit.recipient')) AS has_further
    INTO v_rules
    FROM postroom.settings AS setting
    WHERE setting.amount IS NOT NULL;

    IF v_rules.has_further THEN
        SELECT array_agg(wanted.key), array_agg(wanted.slots), array_agg(wanted.amount), array_agg(wanted.span)
        INTO v_keys, v_slots, v_amounts, v_spans
        FROM (
            SELECT hold.key, count(*)::integer AS slots, hold.amount, hold.span
            FROM postroom.limits_of_emails(p_to_emails, p_from_emails, p_email_types, p_routes, p_rerouted) AS hold
            GROUP BY hold.key, hold.amount, hold.span
        ) AS wanted;
    ELSE
        IF v_rules.amount IS NOT NULL THEN
            SELECT array_agg(wanted.key), array_agg(wanted.slots)
            INTO v_keys, v_slots
            FROM (
                SELECT mail.key, count(*)::integer AS slots
                FROM (
                    SELECT postroom.recipient_key(mail.to_email) AS key
                    FROM unnest(p_to_emails, p_rerouted) AS mail (to_email, rerouted)
                    WHERE mail.rerouted IS NOT TRUE
                ) AS mail
                GROUP BY mail.key
            ) AS wanted;
            v_amounts := array_fill(v_rules.amount, ARRAY[cardinality(v_keys)]);
            v_spans := array_fill(v_rules.span, ARRAY[cardinality(v_keys)]);
        END IF;
        v_count := cardinality(p_to_emails) - cardinality(array_positions(p_rerouted, true));
        IF v_rules.global_amount IS NOT NULL AND COALESCE(v_count, cardinality(p_to_emails)) > 0 THEN
            v_keys := v_keys || 'email:global'::text;
            v_slots := v_slots || COALESCE(v_count, cardinality(p_to_emails));
            v_amounts := v_amounts || v_rules.global_amount;
            v_spans := v_spans || v_rules.global_span;
        END IF;
    END IF;
    IF v_keys IS NULL THEN
        RETURN;
    END IF;
    -- A mail whose turn has come stands in a line.
    IF num_nonnulls(VARIADIC array_remove(p_planned_under, 'direct')) = 0
        AND postroom.take_slots_at_once(v_keys, v_slots, v_amounts, v_spans)
    THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT * FROM postroom.share_slots(
        p_to_emails, p_from_emails, p_email_types, p_priorities, p_waits_for, p_planned_under, p_routes, p_rerouted
    );
END;
$$;

-- share_slots: the same where the slots may not be enough for all.
--
-- A mail that waits for a limit gets a ticket of it: ticket t is served as slot t, and slot t frees when slot
-- t - N stops to count, so a hot recipient's mails are spread over its coming windows at once and each
-- of them is touched once, not once a window. Mails without a ticket stand behind those with one; mails
-- of a priority above 0 pass them. A ticket is kept where its mail is stopped by a limit of a lower rank, in
-- whose line it has stood before, or by the global one. A mail that waits for the global limit keeps its
-- place in the queue: claims take no more than the global book has left.
CREATE OR REPLACE FUNCTION postroom.share_slots(
    p_to_emails     text[],
    p_from_emails   text[],
    p_email_types   text[],
    p_priorities    integer[],
    p_waits_for     text[],
    p_planned_under text[],
    p_routes        text[],
    p_rerouted      boolean[]
)
RETURNS SETOF postroom.waiting_email
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    -- The limits of each mail, one after the other: the mail, the rank and the place in v_keys.
    v_of_mail  integer[];
    v_ranks    integer[];
    v_spots    integer[];
    -- The limits, by their keys.
    v_keys     text[];
    v_amounts  integer[];
    v_spans    interval[];
    v_rules    text[];
    v_free     integer[];
    v_taken    integer[];
    v_line     bigint[];     -- how many stand in it
    v_high     bigint[];     -- and in that of the higher priorities
    v_at       timestamptz;
    v_hold     integer := 1;
    v_first    integer;
    v_stop     integer;
    v_spot     integer;
    v_rank     integer;      -- of the mail's ticket; 0: it has none
    v_is_high  boolean;
    v_ticket   bigint;
    v_mail     postroom.waiting_email;
BEGIN
    -- The settings are read once: they may be changed, or gone, at the next look.
    SELECT
        array_agg(hold.place ORDER BY hold.place, hold.rank),
        array_agg(hold.rank ORDER BY hold.place, hold.rank),
        array_agg(hold.spot ORDER BY hold.place, hold.rank),
        array_agg(hold.key ORDER BY hold.spot) FILTER (WHERE hold.is_first),
        array_agg(hold.amount ORDER BY hold.spot) FILTER (WHERE hold.is_first),
        array_agg(hold.span ORDER BY hold.spot) FILTER (WHERE hold.is_first),
        array_agg(hold.name ORDER BY hold.spot) FILTER (WHERE hold.is_first)
    INTO v_of_mail, v_ranks, v_spots, v_keys, v_amounts, v_spans, v_rules
    FROM (
        SELECT
            hold.*,
            dense_rank() OVER (ORDER BY hold.key)::integer AS spot,
            row_number() OVER (PARTITION BY hold.key ORDER BY hold.place) = 1 AS is_first
        FROM postroom.limits_of_emails(p_to_emails, p_from_emails, p_email_types, p_routes, p_rerouted) AS hold
    ) AS hold;
    IF v_keys IS NULL THEN
        RETURN;
    END IF;
    v_at := postroom.lock_books(v_keys);
    PERFORM postroom.count_lines(v_keys, v_at);
    SELECT
        array_agg(
            GREATEST(
                book.amount
                - postroom.slots_used(book.taken_at, book.taken, v_at, postroom.book_window(book.span)), 0
            ) ORDER BY book.spot
        ),
        array_agg(0),
        -- Tickets that were given under another limit are void.
        array_agg(
            CASE WHEN book.planned_under = book.rule THEN GREATEST(book.planned - book.taken_total, 0) ELSE 0 END
            ORDER BY book.spot
        ),
        array_agg(
            CASE WHEN book.planned_under = book.rule THEN GREATEST(book.planned_high - book.taken_total, 0) ELSE 0 END
            ORDER BY book.spot
        )
    INTO v_free, v_taken, v_line, v_high
    FROM (
        SELECT counter.*, hold.amount, hold.span, hold.rule, hold.spot
        FROM unnest(v_keys, v_amounts, v_spans, v_rules) WITH ORDINALITY AS hold (key, amount, span, rule, spot)
        JOIN public.rate_limit_counters AS counter ON counter.key = hold.key
    ) AS book;

    FOR v_place IN 1..cardinality(p_to_emails) LOOP
        v_is_high := p_priorities[v_place] > 0;
        v_first := v_hold;
        v_rank := CASE WHEN p_planned_under[v_place] = 'direct' THEN 8 ELSE 0 END;
        WHILE v_of_mail[v_hold] = v_place LOOP
            v_spot := v_spots[v_hold];
            IF p_planned_under[v_place] = v_rules[v_spot] AND p_waits_for[v_place] = 'limit:' || v_keys[v_spot] THEN
                v_rank := v_ranks[v_hold];
            END IF;
            v_hold := v_hold + 1;
        END LOOP;

        v_stop := NULL;
        FOR v_this IN v_first..v_hold - 1 LOOP
            v_spot := v_spots[v_this];
            -- Whoever stands in line before it has slots of his own.
            IF (v_free[v_spot] <= CASE WHEN v_is_high OR v_ranks[v_this] <= v_rank THEN 0 ELSE v_line[v_spot] END) THEN
                v_stop := v_this;
                EXIT;
            END IF;
        END LOOP;
        IF v_stop IS NULL THEN
            FOR v_this IN v_first..v_hold - 1 LOOP
                v_spot := v_spots[v_this];
                v_free[v_spot] := v_free[v_spot] - 1;
                v_taken[v_spot] := v_taken[v_spot] + 1;
                v_line[v_spot] := GREATEST(v_line[v_spot] - 1, 0);
                v_high[v_spot] := GREATEST(v_high[v_spot] - 1, 0);
            END LOOP;
            CONTINUE;
        END IF;

        v_spot := v_spots[v_stop];
        v_mail.place := v_place;
        v_mail.waits_for := 'limit:' || v_keys[v_spot];
        v_mail.planned_under := NULL;
        v_mail.due_at := NULL;
        IF v_rank BETWEEN 1 AND 7 AND (v_ranks[v_stop] <= v_rank OR v_ranks[v_stop] = 9) THEN
            v_mail.waits_for := p_waits_for[v_place];
            v_mail.planned_under := p_planned_under[v_place];
        ELSIF v_ranks[v_stop] < 9 THEN
            v_mail.planned_under := v_rules[v_spot];
        END IF;
        IF v_ranks[v_stop] < 9 THEN
            -- A turn that came a little early keeps its ticket and waits for the slot that frees next.
            v_ticket := 1;
            IF v_ranks[v_stop] > v_rank THEN
                v_ticket := CASE WHEN v_is_high THEN v_high[v_spot] ELSE v_line[v_spot] END + 1;
                IF v_is_high THEN
                    v_high[v_spot] := v_ticket;
                ELSE
                    v_line[v_spot] := v_ticket;
                END IF;
            END IF;
            v_mail.due_at := postroom.turn_at(
                v_keys[v_spot], v_ticket, v_taken[v_spot], v_amounts[v_spot], v_spans[v_spot], v_at
            );
        END IF;
        RETURN NEXT v_mail;
    END LOOP;

    UPDATE public.rate_limit_counters AS counter
    SET planned = counter.taken_total + line.taken + line.planned,
        planned_high = counter.taken_total + line.taken + line.planned_high,
        planned_under = line.rule,
        checked_at = COALESCE(counter.checked_at, v_at)
    FROM unnest(v_keys, v_rules, v_taken, v_line, v_high) AS line (key, rule, taken, planned, planned_high)
    WHERE counter.key = line.key AND (line.planned > 0 OR line.planned_high > 0);

    SELECT array_agg(used.key), array_agg(used.slots)
    INTO v_keys, v_taken
    FROM unnest(v_keys, v_taken) AS used (key, slots)
    WHERE used.slots > 0;
    IF v_keys IS NOT NULL THEN
        PERFORM postroom.take_slots(v_keys, v_taken, v_at);
    END IF;
END;
$$;

-- turn_at: when a ticket of a limit comes to its turn. p_taken slots that this batch takes are not in the book yet:
-- they are dated p_at.
CREATE OR REPLACE FUNCTION postroom.turn_at(
    p_key text, p_ticket bigint, p_taken integer, p_amount integer, p_span interval, p_at timestamptz
)
RETURNS timestamptz
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_window interval := postroom.book_window(p_span);
    v_rounds bigint := (p_ticket + p_amount - 1) / p_amount;
    v_back   bigint := v_rounds * p_amount - p_ticket;
    v_frees  timestamptz := p_at + v_window;
BEGIN
    IF v_back >= p_taken THEN
        SELECT postroom.slot_frees_at(counter.taken_at, counter.taken, v_back - p_taken, p_at, v_window)
        INTO v_frees
        FROM public.rate_limit_counters AS counter
        WHERE counter.key = p_key;
    END IF;
    -- A grain of slack a round: the latest entry may still grow, and nobody is on time to the microsecond.
    RETURN COALESCE(v_frees, p_at) + (v_rounds - 1) * v_window + v_rounds * p_span / 200;
END;
$$;

-- count_lines: mails that were discarded leave holes in their lines, and those behind them would wait for slots that
-- nobody takes: each ten seconds a line that somebody comes to is counted.
CREATE OR REPLACE FUNCTION postroom.count_lines(p_keys text[], p_at timestamptz)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    UPDATE public.rate_limit_counters AS counter
    SET planned = counter.taken_total + (
            SELECT count(*)
            FROM public.email_queue AS waiting
            WHERE waiting.status = 'pending'
                AND waiting.planned_under = counter.planned_under
                AND waiting.waits_for = 'limit:' || counter.key
        ),
        checked_at = p_at
    WHERE counter.key = ANY (p_keys)
        AND counter.planned > counter.taken_total
        AND counter.checked_at < p_at - interval '10 seconds';
END;
$$;

-- forget_ended_books: looks at up to p_limit keys of the engine behind p_after, in their order, and deletes the books
-- of which nothing counts any more. Returns the last key that it looked at; NULL at the end.
--
-- A walk by the primary key: an index on the ends of windows would cost each slot that is taken an entry.
CREATE OR REPLACE FUNCTION postroom.forget_ended_books(p_after text, p_limit integer)
RETURNS text
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_keys text[];
BEGIN
    SELECT array_agg(book.key ORDER BY book.key)
    INTO v_keys
    FROM (
        SELECT counter.key FROM public.rate_limit_counters AS counter
        WHERE counter.key > p_after
        ORDER BY counter.key
        LIMIT p_limit
    ) AS book;
    DELETE FROM public.rate_limit_counters
    WHERE rate_limit_counters.key = ANY (ARRAY(
        SELECT ended.key
        FROM public.rate_limit_counters AS ended
        WHERE ended.key = ANY (v_keys)
            AND ended.taken_at IS NOT NULL
            AND ended.window_end < clock_timestamp()
            -- A line in which nobody has moved for an hour was discarded.
            AND (ended.planned <= ended.taken_total OR ended.window_end < clock_timestamp() - interval '1 hour')
        FOR UPDATE SKIP LOCKED
    ));
    RETURN CASE WHEN cardinality(v_keys) = p_limit THEN v_keys[p_limit] END;
END;
$$;

-- replan_limited_emails: rows that were planned under a limit that has changed since become due at once,
-- up to p_limit of them; they are planned anew if they must wait. Returns how many.
CREATE OR REPLACE FUNCTION postroom.replan_limited_emails(p_limit integer)
RETURNS integer
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off -- an_email_has_a_place says why
AS $$
DECLARE
    v_rule  text := '';
    v_count integer;
BEGIN
    -- Each limit that rows wait for, once: a look is a range of the index. With statistics that are not there one
    -- query for all of them was planned as a walk over all that waits.
    LOOP
        SELECT waiting.planned_under
        INTO v_rule
        FROM public.email_queue AS waiting
        WHERE waiting.status = 'pending'
            AND waiting.planned_under > v_rule
            -- NULL: an old caller has given the row another time since.
            AND waiting.waits_for IS NOT NULL
        ORDER BY waiting.planned_under
        LIMIT 1;
        IF NOT FOUND THEN
            RETURN 0;
        END IF;
        EXIT WHEN NOT postroom.limit_holds(v_rule);
    END LOOP;

    UPDATE public.email_queue
    SET due_at = LEAST(email_queue.created_at, clock_timestamp()),
        next_retry_at = NULL,
        waits_for = NULL,
        planned_under = NULL,
        updated_at = clock_timestamp()
    WHERE email_queue.id = ANY (ARRAY(
        SELECT waiting.id
        FROM public.email_queue AS waiting
        WHERE waiting.status = 'pending' AND waiting.planned_under = v_rule AND waiting.waits_for IS NOT NULL
        ORDER BY waiting.waits_for
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
