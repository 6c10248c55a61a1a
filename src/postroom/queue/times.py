"""How long e-mails and events take and how they end, as the database counts it (docs/decisions/0014)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from postroom.database.connect import Database

BOUNDS_MS = tuple(sorted({round(2 ** (place / 2)) for place in range(62)}))
"""The upper ends of the buckets, as postroom.time_bounds_ms() has them: each 1.41 times the one before."""

WAITS = "waits"
"""The outcome of what a limit put back before its attempt began: no attempt."""

Measure = Literal["wait", "attempt", "total"]
MEASURES: tuple[Measure, ...] = ("wait", "attempt", "total")
By = Literal["email_type", "source", "transport", "handler"]

HANDLER = "handler"
"""Counted beside the queues: a run of a handler, of kind SOURCE/HANDLER; of an event there may be several."""

READ_DEADLINE_S = 60.0


class Histogram:
    """How many times fell into each bucket of BOUNDS_MS, and one beyond."""

    def __init__(self, counts: Iterable[int] = ()) -> None:
        self.counts = [0] * (len(BOUNDS_MS) + 1)
        self.include(counts)

    def include(self, counts: Iterable[int]) -> None:
        """Add another one, as the database keeps it."""
        for place, count in enumerate(counts):
            self.counts[place] += count

    def add(self, bucket: int, count: int) -> None:
        """Count some more; the first bucket is 1, as in SQL."""
        self.counts[bucket - 1] += count

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.counts)

    def percentile_ms(self, share: float) -> float | None:
        """The time that this share of all stayed within, as postroom.percentile_ms() has it; None of none."""
        wanted, before = share * self.count, 0
        for place, count in enumerate(self.counts):
            if count and before + count >= wanted:
                low = BOUNDS_MS[place - 1] if place else 0
                high = BOUNDS_MS[place] if place < len(BOUNDS_MS) else low
                return low + (high - low) * max(wanted - before, 0) / count
            before += count
        return None

    def at_most(self, bound_ms: int) -> int:
        """How many took no longer than one of BOUNDS_MS."""
        return sum(self.counts[: BOUNDS_MS.index(bound_ms) + 1])


@dataclass(frozen=True, slots=True)
class Total:
    """What there was of one kind since ever."""

    queue: str
    kind: str
    transport: str
    outcome: str
    status: str
    attempts: int
    wait: Sequence[int]
    attempt: Sequence[int]
    total: Sequence[int]
    wait_ms: int
    attempt_ms: int
    total_ms: int


@dataclass(slots=True)
class Line:
    """
    What there was of one kind in a span.

    Attributes:
        kind: An email_type, a source or a transport; empty where the rows name none.
        ended: Rows that were sent, processed, or became dead letters.
        outcomes: Attempts by how they ended.
    """

    queue: str
    kind: str
    attempts: int = 0
    ended: int = 0
    dead_letters: int = 0
    limit_waits: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    times: dict[str, Histogram] = field(default_factory=lambda: {each: Histogram() for each in MEASURES})


@dataclass(frozen=True, slots=True)
class Stats:
    """
    A span up to now.

    Attributes:
        since: Its first minute.
        attempts: How many attempts ended in each of the parts that the span is cut into, oldest first.
    """

    since: datetime
    now: datetime
    lines: list[Line]
    attempts: list[int]


async def merge_tallies(database: Database) -> None:
    """Bring the figures up to date; where another process does so at the moment, it does nothing."""
    await database.fetchval("SELECT postroom.merge_tallies()")


async def read_totals(database: Database) -> list[Total]:
    """
    Everything since ever, for counters.

    Raises:
        DatabaseUnavailable: No answer in time.
    """
    await merge_tallies(database)
    rows = await database.fetch(
        """
        SELECT
            queue, kind, transport, outcome, status, attempts, wait, attempt, total,
            wait_ms, attempt_ms, total_ms
        FROM postroom.processing_totals
        """
    )
    return [Total(**row) for row in rows]


async def read_stats(database: Database, span: timedelta, by: By | None, *, parts: int = 60) -> Stats:
    """
    What there was in a span up to now.

    Args:
        by: Which queue's kinds to tell apart: None for e-mail's types and webhooks' sources.
        parts: Into how many the span is cut for Stats.attempts.

    Raises:
        DatabaseUnavailable: No answer in time.
    """
    await merge_tallies(database)
    now: datetime = await database.fetchval("SELECT clock_timestamp()")
    since: datetime = await database.fetchval("SELECT date_trunc('minute', $1::timestamptz)", now - span)
    lines: dict[tuple[str, str], Line] = {}
    queues = {
        "email_type": ["email"],
        "transport": ["email"],
        "source": ["webhook"],
        "handler": [HANDLER],
    }
    asked = queues[by] if by is not None else ["email", "webhook"]
    label = "transport" if by == "transport" else "kind"
    counts = await database.fetch(_COUNTS.format(label=label), since, asked, deadline_s=READ_DEADLINE_S)
    for row in counts:
        line = lines.setdefault((row["queue"], row["label"]), Line(row["queue"], row["label"]))
        if row["outcome"] == WAITS:
            line.limit_waits += row["count"]
            continue
        line.attempts += row["count"]
        line.outcomes[row["outcome"]] = line.outcomes.get(row["outcome"], 0) + row["count"]
        line.ended += row["count"] if row["status"] != "pending" else 0
        line.dead_letters += row["count"] if row["status"] == "dead_letter" else 0
    for measure in MEASURES:
        sql = _BUCKETS.format(label=label, measure=measure)
        for row in await database.fetch(sql, since, asked, deadline_s=READ_DEADLINE_S):
            lines[row["queue"], row["label"]].times[measure].add(row["bucket"], row["count"])
    attempts = [0] * parts
    for row in await database.fetch(_PARTS, since, now, parts, asked, deadline_s=READ_DEADLINE_S):
        attempts[min(max(row["part"], 0), parts - 1)] += row["count"]
    shown = [line for line in lines.values() if line.attempts or line.limit_waits]
    return Stats(
        since, now, sorted(shown, key=lambda line: (line.queue, -line.attempts, line.kind)), attempts
    )


_COUNTS = """
    SELECT
        one.queue, one.{label} AS label, one.outcome, one.status, sum(one.attempts)::bigint AS count
    FROM postroom.processing_minutes AS one
    WHERE one.minute >= $1 AND one.queue = ANY ($2::text[])
    GROUP BY 1, 2, 3, 4
    ORDER BY 1, 2, 3, 4
"""

_BUCKETS = """
    SELECT one.queue, one.{label} AS label, bucket.place AS bucket, sum(bucket.count)::bigint AS count
    FROM postroom.processing_minutes AS one
    CROSS JOIN LATERAL unnest(one.{measure}) WITH ORDINALITY AS bucket (count, place)
    WHERE one.minute >= $1 AND one.queue = ANY ($2::text[]) AND bucket.count > 0
    GROUP BY 1, 2, 3
"""

_PARTS = """
    SELECT
        floor(extract(EPOCH FROM one.minute - $1) / extract(EPOCH FROM $2::timestamptz - $1) * $3)::integer
            AS part,
        sum(one.attempts)::bigint AS count
    FROM postroom.processing_minutes AS one
    WHERE one.minute >= $1 AND one.outcome <> 'waits' AND one.queue = ANY ($4::text[])
    GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class Step:
    """What ended in a step of time, in one queue: rows that were done, and attempts that failed."""

    at: datetime
    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class QueueFlow:
    """
    One queue's flow.

    Attributes:
        steps: Of the whole span, oldest first; one in which nothing ended has zeros. The last one goes on.
        times: Of what ended in the span, by measure.
    """

    steps: list[Step]
    times: dict[Measure, Histogram]


@dataclass(frozen=True, slots=True)
class Flow:
    """
    What went through the queues in a span up to now, at one look.

    Attributes:
        queues: By name: `email`, `webhook`.
        transports: E-mail's attempts that were done and that failed, by transport.
    """

    queues: dict[str, QueueFlow]
    transports: dict[str, tuple[int, int]]


async def read_flow(database: Database, steps: int, step: timedelta) -> Flow:
    """
    Read so many steps up to now. What is read grows with the span and with the kinds, not with history.

    Args:
        step: Whole minutes, a divisor of a day.

    Raises:
        DatabaseUnavailable: No answer in time.
    """
    await merge_tallies(database)
    began: datetime = await database.fetchval(_FLOW_BEGAN, step, steps)
    queues = {name: QueueFlow([], {each: Histogram() for each in MEASURES}) for name in FLOW_QUEUES}
    for row in await database.fetch(_FLOW, began, step, steps, FLOW_QUEUES, deadline_s=READ_DEADLINE_S):
        queues[row["queue"]].steps.append(Step(row["at"], row["done"], row["failed"]))
    for row in await database.fetch(_FLOW_TIMES, began, FLOW_QUEUES, deadline_s=READ_DEADLINE_S):
        queues[row["queue"]].times[row["measure"]].add(row["bucket"], row["count"])
    sent = await database.fetch(_FLOW_TRANSPORTS, began, deadline_s=READ_DEADLINE_S)
    return Flow(queues, {row["transport"]: (row["done"], row["failed"]) for row in sent})


async def read_last_minute(database: Database) -> dict[str, int]:
    """
    How many rows each queue had done in the last whole minute, as far as workers have merged it.

    Raises:
        DatabaseUnavailable: No answer in time.
    """
    rows = await database.fetch(_LAST_MINUTE)
    return {row["queue"]: row["done"] for row in rows}


FLOW_QUEUES = ("email", "webhook")

_FLOW_BEGAN = "SELECT date_bin($1, clock_timestamp(), '2000-01-01') - ($2::integer - 1) * $1"

_WELL = "one.status IN ('sent', 'processed')"

_FLOW = f"""
    SELECT
        queue.name AS queue, step.at, COALESCE(sum(ended.done), 0)::bigint AS done,
        COALESCE(sum(ended.failed), 0)::bigint AS failed
    FROM unnest($4::text[]) AS queue (name)
    CROSS JOIN generate_series(0, $3::integer - 1) AS number (place)
    CROSS JOIN LATERAL (SELECT $1::timestamptz + number.place * $2::interval AS at) AS step
    LEFT JOIN (
        SELECT
            one.queue, date_bin($2::interval, one.minute, $1) AS at,
            sum(one.attempts) FILTER (WHERE {_WELL}) AS done,
            sum(one.attempts) FILTER (WHERE NOT {_WELL}) AS failed
        FROM postroom.processing_minutes AS one
        WHERE one.minute >= $1 AND one.outcome <> 'waits' AND one.queue = ANY ($4::text[])
        GROUP BY 1, 2
    ) AS ended ON ended.queue = queue.name AND ended.at = step.at
    GROUP BY 1, 2
    ORDER BY 1, 2
"""  # noqa: S608 - a constant of ours

_FLOW_TIMES = """
    SELECT one.queue, time.measure, bucket.place AS bucket, sum(bucket.count)::bigint AS count
    FROM postroom.processing_minutes AS one
    CROSS JOIN LATERAL (
        VALUES ('wait', one.wait), ('attempt', one.attempt), ('total', one.total)
    ) AS time (measure, histogram)
    CROSS JOIN LATERAL unnest(time.histogram) WITH ORDINALITY AS bucket (count, place)
    WHERE one.minute >= $1 AND one.queue = ANY ($2::text[]) AND bucket.count > 0
    GROUP BY 1, 2, 3
"""

_FLOW_TRANSPORTS = f"""
    SELECT
        one.transport, COALESCE(sum(one.attempts) FILTER (WHERE {_WELL}), 0)::bigint AS done,
        COALESCE(sum(one.attempts) FILTER (WHERE NOT {_WELL}), 0)::bigint AS failed
    FROM postroom.processing_minutes AS one
    WHERE one.minute >= $1 AND one.queue = 'email' AND one.outcome <> 'waits' AND one.transport <> ''
    GROUP BY 1
    ORDER BY 1
"""  # noqa: S608 - a constant of ours

_LAST_MINUTE = f"""
    SELECT one.queue, sum(one.attempts)::bigint AS done
    FROM postroom.processing_minutes AS one
    WHERE one.minute >= date_trunc('minute', (SELECT clock_timestamp())) - interval '1 minute'
        AND one.minute < date_trunc('minute', (SELECT clock_timestamp()))
        AND {_WELL}
    GROUP BY 1
"""  # noqa: S608 - a constant of ours
