-- What a person does to all dead letters of a group: a thousand rows at a time, each time in a transaction of its own.

-- dead_letter_is: whether a dead letter is of a group: of one of our reasons, of none (`none`: an old caller gave it up), or
-- with this text in its last error, in any case. NULL takes all.
CREATE OR REPLACE FUNCTION postroom.dead_letter_is(p_reason text, p_dead_reason text, p_last_error text)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT CASE
        WHEN p_reason IS NULL THEN true
        WHEN p_reason = 'none' THEN p_dead_reason IS NULL
        WHEN p_reason IN ('permanent', 'exhausted', 'uncertain', 'poison', 'transport', 'stale')
            THEN p_dead_reason IS NOT DISTINCT FROM p_reason
        ELSE COALESCE(position(lower(p_reason) IN lower(p_last_error)) > 0, false)
    END;
$$;

-- lease_bulk_action: takes an action to work on it, where nobody does; false where somebody does, or it has ended.
CREATE OR REPLACE FUNCTION postroom.lease_bulk_action(p_id uuid, p_runner uuid)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    UPDATE postroom.bulk_actions
    SET runner = p_runner, leased_until = clock_timestamp() + interval '30 seconds'
    WHERE bulk_actions.id = p_id
        AND bulk_actions.ended_at IS NULL
        AND (bulk_actions.leased_until < clock_timestamp() OR bulk_actions.runner = p_runner);
    RETURN FOUND;
END;
$$;

-- continue_bulk_action: goes through the next p_rows dead letters and does it to those that are of the group. Place, counts
-- and rows change in one transaction: whatever breaks off, the next call goes on where this one ended.
--
-- state: `goes on`, `ended`, or `lost` (somebody has stopped it, or another process works on it). ids: what it has changed; refused_ids: rows whose own
-- trigger refuses, or that somebody holds: they stay dead letters, and stop no other. It waits for nobody.
CREATE OR REPLACE FUNCTION postroom.continue_bulk_action(
    p_id uuid, p_runner uuid, p_rows integer, OUT state text, OUT ids uuid[], OUT refused_ids uuid[], OUT error text
)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_action  postroom.bulk_actions;
    v_found   record;
    v_left    integer := p_rows;
    v_changed uuid[];
    v_refused uuid[];
    v_error   text;
BEGIN
    ids := '{}';
    refused_ids := '{}';
    SELECT action.* INTO v_action FROM postroom.bulk_actions AS action WHERE action.id = p_id FOR UPDATE;
    IF v_action.id IS NULL OR v_action.ended_at IS NOT NULL OR v_action.runner IS DISTINCT FROM p_runner THEN
        state := 'lost';
        RETURN;
    END IF;

    WHILE v_left > 0 AND v_action.ended_at IS NULL LOOP
        SELECT * INTO v_found FROM postroom.next_dead_letters(v_action, v_left);
        IF v_found.chosen IS NOT NULL THEN
            SELECT changed.ids, changed.refused_ids, changed.error
            INTO v_changed, v_refused, v_error
            FROM postroom.decide_dead_letters(
                v_action.place_queue, v_action.action, v_found.chosen, v_action.begun_by, v_action.note
            ) AS changed;
            ids := ids || v_changed;
            refused_ids := refused_ids || v_refused;
            error := COALESCE(error, v_error);
        END IF;
        IF v_found.looked_at = v_left THEN
            v_action.place_at := v_found.last_at;
            v_action.place_id := v_found.last_id;
        ELSIF v_action.place_at IS NOT NULL THEN
            v_action.place_at := NULL;
            v_action.place_id := '00000000-0000-0000-0000-000000000000';
        ELSIF v_action.queue IS NULL AND v_action.place_queue = 'email' THEN
            v_action.place_queue := 'webhook';
            v_action.place_at := '-infinity';
            v_action.place_id := '00000000-0000-0000-0000-000000000000';
        ELSE
            v_action.ended_at := clock_timestamp();
        END IF;
        v_left := v_left - v_found.looked_at;
    END LOOP;

    UPDATE postroom.bulk_actions
    SET place_queue = v_action.place_queue,
        place_at = v_action.place_at,
        place_id = v_action.place_id,
        done = bulk_actions.done + cardinality(continue_bulk_action.ids),
        refused = bulk_actions.refused + cardinality(refused_ids),
        why = COALESCE(bulk_actions.why, error),
        leased_until = clock_timestamp() + interval '30 seconds',
        ended_at = v_action.ended_at
    WHERE bulk_actions.id = p_id;
    state := CASE WHEN v_action.ended_at IS NULL THEN 'goes on' ELSE 'ended' END;
END;
$$;

-- next_dead_letters: the next p_rows dead letters behind an action's place, and which of them it is about.
CREATE OR REPLACE FUNCTION postroom.next_dead_letters(
    p_action postroom.bulk_actions, p_rows integer,
    OUT chosen uuid[], OUT looked_at integer, OUT last_at timestamptz, OUT last_id uuid
)
LANGUAGE plpgsql
STABLE
SET search_path = ''
SET enable_seqscan = off
AS $$
BEGIN
    EXECUTE format(
        $query$
            SELECT
                array_agg(letter.id) FILTER (
                    WHERE postroom.dead_letter_is($4, letter.dead_reason, letter.last_error)
                        -- An old caller's clock may be ahead.
                        AND (letter.failed_at BETWEEN $5 AND (SELECT clock_timestamp())) IS NOT TRUE
                ),
                count(*)::integer,
                (array_agg(letter.failed_at ORDER BY letter.failed_at DESC, letter.id DESC))[1],
                (array_agg(letter.id ORDER BY letter.failed_at DESC, letter.id DESC))[1]
            FROM (
                SELECT item.id, item.failed_at, item.dead_reason, item.last_error
                FROM %s AS item
                WHERE item.status = 'dead_letter' AND %s
                ORDER BY item.failed_at, item.id
                LIMIT $3
            ) AS letter
        $query$,
        CASE p_action.place_queue WHEN 'email' THEN 'public.email_queue' ELSE 'public.webhook_retry_queue' END,
        CASE
            WHEN p_action.place_at IS NULL THEN 'item.failed_at IS NULL AND $1 IS NULL AND item.id > $2'
            ELSE 'item.failed_at >= $1 AND (item.failed_at > $1 OR item.id > $2)'
        END
    )
    INTO chosen, looked_at, last_at, last_id
    USING p_action.place_at, p_action.place_id, p_rows, p_action.reason, p_action.asked_at;
END;
$$;

-- decide_dead_letters: retries or discards these, as far as they are dead letters; what refuses or is held is left out.
CREATE OR REPLACE FUNCTION postroom.decide_dead_letters(
    p_queue text, p_action text, p_ids uuid[], p_by text, p_note text,
    OUT ids uuid[], OUT refused_ids uuid[], OUT error text
)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_free uuid[];
BEGIN
    SELECT COALESCE(array_agg(dead.id) FILTER (WHERE dead.is_free), '{}'),
        COALESCE(array_agg(dead.id) FILTER (WHERE NOT dead.is_free), '{}')
    INTO v_free, refused_ids
    FROM postroom.lock_dead_letters(p_queue, p_ids) AS dead;
    IF refused_ids <> '{}' THEN
        error := 'another transaction holds it';
    END IF;
    BEGIN
        ids := ARRAY(SELECT changed.id FROM postroom.change_dead_letters(p_queue, p_action, v_free, p_by, p_note) AS changed (id));
        RETURN;
    EXCEPTION WHEN OTHERS OR assert_failure THEN
        IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
            RAISE;
        END IF;
    END;
    -- A row's own trigger or constraint refuses: one by one, and the others are done.
    ids := '{}';
    FOR v_at IN 1..cardinality(v_free) LOOP
        BEGIN
            ids := ids || ARRAY(
                SELECT changed.id
                FROM postroom.change_dead_letters(p_queue, p_action, v_free[v_at:v_at], p_by, p_note) AS changed (id)
            );
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            IF NOT postroom.is_the_rows_own(SQLSTATE) THEN
                RAISE;
            END IF;
            refused_ids := refused_ids || v_free[v_at];
            error := COALESCE(error, SQLERRM);
        END;
    END LOOP;
END;
$$;

-- lock_dead_letters: which of these are dead letters, and whether they are free: then they are locked.
CREATE OR REPLACE FUNCTION postroom.lock_dead_letters(p_queue text, p_ids uuid[])
RETURNS TABLE (id uuid, is_free boolean)
LANGUAGE plpgsql
SET search_path = ''
SET enable_seqscan = off
AS $$
DECLARE
    v_free uuid[];
BEGIN
    IF p_queue = 'email' THEN
        v_free := ARRAY(
            SELECT free.id
            FROM public.email_queue AS free
            WHERE free.id = ANY (p_ids) AND free.status = 'dead_letter'
            ORDER BY free.id
            FOR NO KEY UPDATE SKIP LOCKED
        );
        RETURN QUERY
        SELECT dead.id, dead.id = ANY (v_free)
        FROM public.email_queue AS dead
        WHERE dead.id = ANY (p_ids) AND dead.status = 'dead_letter';
    ELSE
        v_free := ARRAY(
            SELECT free.id
            FROM public.webhook_retry_queue AS free
            WHERE free.id = ANY (p_ids) AND free.status = 'dead_letter'
            ORDER BY free.id
            FOR NO KEY UPDATE SKIP LOCKED
        );
        RETURN QUERY
        SELECT dead.id, dead.id = ANY (v_free)
        FROM public.webhook_retry_queue AS dead
        WHERE dead.id = ANY (p_ids) AND dead.status = 'dead_letter';
    END IF;
END;
$$;

-- change_dead_letters: the function of a queue and an action.
CREATE OR REPLACE FUNCTION postroom.change_dead_letters(
    p_queue text, p_action text, p_ids uuid[], p_by text, p_note text
)
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    CASE p_action || ' ' || p_queue
        WHEN 'retry email' THEN
            RETURN QUERY SELECT * FROM postroom.retry_dead_emails(p_ids, p_by);
        WHEN 'retry webhook' THEN
            RETURN QUERY SELECT * FROM postroom.retry_dead_webhooks(p_ids, p_by);
        WHEN 'discard email' THEN
            RETURN QUERY SELECT * FROM postroom.discard_dead_emails(p_ids, p_by, p_note);
        WHEN 'discard webhook' THEN
            RETURN QUERY SELECT * FROM postroom.discard_dead_webhooks(p_ids, p_by, p_note);
    END CASE;
END;
$$;
