-- How long e-mails and events take and how they end: counted in the statement that settles them, merged by minute.
--
-- A settle only adds a row to postroom.tallies: a sixth of what it takes to add to a histogram that others add to as
-- well, and no worker waits for another. Who merges is one at a time; whoever is late finds nothing left to do.

-- time_bounds_ms: the upper ends of the buckets, in ms: powers of the root of two, 1 ms to 18 days. A time that is in
-- bucket n is at most bound n; one beyond all of them is in one bucket more.
CREATE OR REPLACE FUNCTION postroom.time_bounds_ms()
RETURNS double precision[]
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT ARRAY[
        1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048,
        2896, 4096, 5793, 8192, 11585, 16384, 23170, 32768, 46341, 65536, 92682, 131072, 185364, 262144,
        370728, 524288, 741455, 1048576, 1482910, 2097152, 2965821, 4194304, 5931642, 8388608, 11863283,
        16777216, 23726566, 33554432, 47453133, 67108864, 94906266, 134217728, 189812531, 268435456,
        379625062, 536870912, 759250125, 1073741824, 1518500250
    ]::double precision[];
$$;

-- histogram: how many times fell into each bucket, up to the last that has one.
CREATE OR REPLACE FUNCTION postroom.histogram(p_ms integer[])
RETURNS integer[]
LANGUAGE plpgsql
IMMUTABLE
SET search_path = ''
AS $$
DECLARE
    v_bounds CONSTANT double precision[] := postroom.time_bounds_ms();
BEGIN
    RETURN COALESCE((
        WITH seen AS (
            SELECT width_bucket(time.ms - 0.5, v_bounds) + 1 AS bucket, count(*)::integer AS count
            FROM unnest(p_ms) AS time (ms)
            WHERE time.ms IS NOT NULL
            GROUP BY 1
        )
        SELECT array_agg(COALESCE(seen.count, 0) ORDER BY place.bucket)
        FROM generate_series(1, (SELECT max(seen.bucket) FROM seen)) AS place (bucket)
        LEFT JOIN seen USING (bucket)
    ), '{}');
END;
$$;

-- add_histograms: bucket by bucket.
CREATE OR REPLACE FUNCTION postroom.add_histograms(p_one bigint[], p_other bigint[])
RETURNS bigint[]
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT COALESCE(array_agg(COALESCE(each.one, 0) + COALESCE(each.other, 0) ORDER BY each.bucket), '{}')
    FROM unnest(p_one, p_other) WITH ORDINALITY AS each (one, other, bucket);
$$;

-- percentile_ms: the time that a share of all stayed within, interpolated in its bucket; NULL of an empty histogram.
CREATE OR REPLACE FUNCTION postroom.percentile_ms(p_histogram bigint[], p_share double precision)
RETURNS double precision
LANGUAGE plpgsql
IMMUTABLE
SET search_path = ''
AS $$
DECLARE
    v_bounds CONSTANT double precision[] := postroom.time_bounds_ms();
    v_wanted double precision := p_share * (SELECT sum(bucket.count) FROM unnest(p_histogram) AS bucket (count));
    v_before double precision := 0;
    v_low    double precision;
    v_high   double precision;
BEGIN
    FOR v_bucket IN 1..cardinality(p_histogram) LOOP
        IF p_histogram[v_bucket] > 0 AND v_before + p_histogram[v_bucket] >= v_wanted THEN
            v_low := CASE WHEN v_bucket = 1 THEN 0 ELSE v_bounds[v_bucket - 1] END;
            v_high := COALESCE(v_bounds[v_bucket], v_low);
            RETURN v_low + (v_high - v_low) * GREATEST(v_wanted - v_before, 0) / p_histogram[v_bucket];
        END IF;
        v_before := v_before + p_histogram[v_bucket];
    END LOOP;
    RETURN NULL;
END;
$$;

-- elapsed_ms: milliseconds since a moment, 0 where it is to come, 24 days at most (in hours: for days the time zone is
-- asked); whatever an old caller has written there. Not by CASE: where a moment is known to the planner, it works out the arms that are not taken, too, and fails.
CREATE OR REPLACE FUNCTION postroom.elapsed_ms(p_since timestamptz, p_now timestamptz)
RETURNS integer
LANGUAGE sql
STABLE
AS $$
    SELECT (
        date_part('epoch', p_now - GREATEST(LEAST(p_since, p_now), p_now - interval '576 hours')) * 1000
    )::integer;
$$;

-- tally_of_waits: the tallies of e-mails that a limit put back before their attempt began, by the kind of limit.
CREATE OR REPLACE FUNCTION postroom.tally_of_waits(p_waits_for text[])
RETURNS TABLE (
    queue text, kind text, transport text, outcome text, status text,
    wait_ms integer[], attempt_ms integer[], total_ms integer[]
)
LANGUAGE plpgsql
IMMUTABLE
SET search_path = ''
AS $$
BEGIN
    RETURN QUERY
    SELECT 'email', '', '', 'waits', waits.state, waits.no_time, waits.no_time, waits.no_time
    FROM (
        SELECT
            postroom.depth_state(waiting.waits_for) AS state,
            array_fill(NULL::integer, ARRAY[count(*)::integer]) AS no_time
        FROM unnest(p_waits_for) AS waiting (waits_for)
        GROUP BY 1
    ) AS waits;
END;
$$;

-- merge_tallies: moves up to 10,000 tallies into their minutes and totals; returns how many. One at a time; where
-- another merges, it does nothing.
--
-- A queue has 50 kinds and 20 transports of its own, and `other` for what comes beyond, or has an @ in it: each is a
-- time series of whoever watches.
CREATE OR REPLACE FUNCTION postroom.merge_tallies()
RETURNS integer
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_merged integer;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7305512000003) THEN
        RETURN 0;
    END IF;
    WITH gone AS (
        DELETE FROM postroom.tallies
        WHERE tallies.ctid = ANY (ARRAY(
            SELECT tally.ctid FROM postroom.tallies AS tally LIMIT 10000 FOR UPDATE SKIP LOCKED
        ))
        RETURNING tallies.*
    ),
    kinds AS (
        SELECT
            new.queue,
            new.kind,
            new.kind !~ '@' AND length(new.kind) <= 100 AND (
                new.is_known
                OR row_number() OVER (PARTITION BY new.queue, new.is_known ORDER BY new.kind)
                + (SELECT count(DISTINCT known.kind) FROM postroom.processing_totals AS known WHERE known.queue = new.queue)
                <= 50
            ) AS keeps
        FROM (
            SELECT DISTINCT
                gone.queue,
                gone.kind,
                EXISTS (
                    SELECT 1
                    FROM postroom.processing_totals AS known
                    WHERE known.queue = gone.queue AND known.kind = gone.kind
                ) AS is_known
            FROM gone
        ) AS new
    ),
    transports AS (
        SELECT
            new.queue,
            new.transport,
            new.transport !~ '@' AND length(new.transport) <= 100 AND (
                new.is_known
                OR row_number() OVER (PARTITION BY new.queue, new.is_known ORDER BY new.transport)
                + (
                    SELECT count(DISTINCT known.transport)
                    FROM postroom.processing_totals AS known
                    WHERE known.queue = new.queue
                ) <= 20
            ) AS keeps
        FROM (
            SELECT DISTINCT
                gone.queue,
                gone.transport,
                EXISTS (
                    SELECT 1
                    FROM postroom.processing_totals AS known
                    WHERE known.queue = gone.queue AND known.transport = gone.transport
                ) AS is_known
            FROM gone
        ) AS new
    ),
    ended AS (
        SELECT
            date_trunc('minute', gone.at) AS minute,
            gone.queue,
            CASE WHEN kinds.keeps THEN gone.kind ELSE 'other' END AS kind,
            CASE WHEN transports.keeps THEN gone.transport ELSE 'other' END AS transport,
            gone.outcome,
            gone.status,
            each.wait_ms,
            each.attempt_ms,
            each.total_ms
        FROM gone
        JOIN kinds USING (queue, kind)
        JOIN transports USING (queue, transport)
        CROSS JOIN LATERAL unnest(gone.wait_ms, gone.attempt_ms, gone.total_ms) AS each (wait_ms, attempt_ms, total_ms)
    ),
    minutes AS (
        INSERT INTO postroom.processing_minutes AS old (
            minute, queue, kind, transport, outcome, status, attempts, wait, attempt, total
        )
        SELECT
            ended.minute, ended.queue, ended.kind, ended.transport, ended.outcome, ended.status,
            count(*),
            postroom.histogram(array_agg(ended.wait_ms)),
            postroom.histogram(array_agg(ended.attempt_ms)),
            postroom.histogram(array_agg(ended.total_ms))
        FROM ended
        GROUP BY ended.minute, ended.queue, ended.kind, ended.transport, ended.outcome, ended.status
        ON CONFLICT ON CONSTRAINT processing_minutes_pkey DO UPDATE
        SET attempts = old.attempts + EXCLUDED.attempts,
            wait = postroom.add_histograms(old.wait, EXCLUDED.wait)::integer[],
            attempt = postroom.add_histograms(old.attempt, EXCLUDED.attempt)::integer[],
            total = postroom.add_histograms(old.total, EXCLUDED.total)::integer[]
    ),
    totals AS (
        INSERT INTO postroom.processing_totals AS old (
            queue, kind, transport, outcome, status, attempts, wait, attempt, total, wait_ms, attempt_ms, total_ms
        )
        SELECT
            ended.queue, ended.kind, ended.transport, ended.outcome, ended.status,
            count(*),
            postroom.histogram(array_agg(ended.wait_ms)),
            postroom.histogram(array_agg(ended.attempt_ms)),
            postroom.histogram(array_agg(ended.total_ms)),
            COALESCE(sum(ended.wait_ms), 0),
            COALESCE(sum(ended.attempt_ms), 0),
            COALESCE(sum(ended.total_ms), 0)
        FROM ended
        GROUP BY ended.queue, ended.kind, ended.transport, ended.outcome, ended.status
        ON CONFLICT ON CONSTRAINT processing_totals_pkey DO UPDATE
        SET attempts = old.attempts + EXCLUDED.attempts,
            wait = postroom.add_histograms(old.wait, EXCLUDED.wait),
            attempt = postroom.add_histograms(old.attempt, EXCLUDED.attempt),
            total = postroom.add_histograms(old.total, EXCLUDED.total),
            wait_ms = old.wait_ms + EXCLUDED.wait_ms,
            attempt_ms = old.attempt_ms + EXCLUDED.attempt_ms,
            total_ms = old.total_ms + EXCLUDED.total_ms,
            updated_at = clock_timestamp()
    )
    SELECT count(*) INTO v_merged FROM gone;
    RETURN v_merged;
END;
$$;

-- cleanup_times: minutes that are older than retention.stats, and the totals of kinds that are not seen any more.
CREATE OR REPLACE FUNCTION postroom.cleanup_times(p_from tid, p_to tid, p_dry_run boolean)
RETURNS TABLE (rule text, count bigint)
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_kept_since timestamptz := postroom.kept_since('stats');
    v_gone       tid[];
BEGIN
    v_gone := ARRAY(
        SELECT old.ctid
        FROM postroom.processing_minutes AS old
        WHERE old.ctid >= p_from AND old.ctid < p_to AND old.minute < v_kept_since
        FOR UPDATE SKIP LOCKED
    );
    IF NOT p_dry_run THEN
        DELETE FROM postroom.processing_minutes WHERE processing_minutes.ctid = ANY (v_gone);
        -- Passes over what is being merged into: no cleanup waits.
        DELETE FROM postroom.processing_totals
        WHERE processing_totals.ctid = ANY (ARRAY(
            SELECT old.ctid
            FROM postroom.processing_totals AS old
            WHERE old.updated_at < v_kept_since
            FOR UPDATE SKIP LOCKED
        ));
    END IF;
    RETURN QUERY SELECT 'stats', cardinality(v_gone)::bigint;
END;
$$;

-- processing_times: by minute and kind, how many attempts ended and how long they took. wait: until the first attempt
-- began; total: until it was sent, processed or a dead letter. Rows of outcome `waits` are no attempts: a limit put an
-- e-mail back before its attempt began.
CREATE OR REPLACE VIEW postroom.processing_times AS
SELECT
    one.minute,
    one.queue,
    one.kind,
    one.transport,
    one.outcome,
    one.status,
    one.attempts,
    postroom.percentile_ms(one.wait, 0.5) AS wait_p50_ms,
    postroom.percentile_ms(one.wait, 0.95) AS wait_p95_ms,
    postroom.percentile_ms(one.wait, 0.99) AS wait_p99_ms,
    postroom.percentile_ms(one.attempt, 0.5) AS attempt_p50_ms,
    postroom.percentile_ms(one.attempt, 0.95) AS attempt_p95_ms,
    postroom.percentile_ms(one.attempt, 0.99) AS attempt_p99_ms,
    postroom.percentile_ms(one.total, 0.5) AS total_p50_ms,
    postroom.percentile_ms(one.total, 0.95) AS total_p95_ms,
    postroom.percentile_ms(one.total, 0.99) AS total_p99_ms
FROM postroom.processing_minutes AS one;
