"""The state of the house at one moment: what waits and why, who works, what is paused, what is used up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import orjson

from postroom.database.connect import Database
from postroom.database.snapshots import SnapshotHolder, read_snapshot_holders
from postroom.queue.pauses import Pause, read_pauses
from postroom.queue.table import QueueTable
from postroom.queue.transports import TransportStatus, read_transports

ALIVE = "interval '15 seconds'"
"""A worker that was seen within this time is alive: three heartbeats."""

_COUNT_DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """
    One queue.

    Attributes:
        counts: Rows by status.
        oldest_s: Age of the oldest row by status, in seconds since its created_at.
        due: Rows that could be attempted now, by their own due time.
        oldest_due_s: For how long the oldest of them has been due.
        waiting: Live rows by what they wait for: `due` (a worker), `lease` (an attempt to end),
            `limit:…`, `backoff`, `send_at`, `transport`, `refused`, `paused` (the queue to be resumed).
    """

    counts: dict[str, int]
    oldest_s: dict[str, float | None]
    due: int
    oldest_due_s: float | None
    waiting: dict[str, int]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """
    A worker as it last showed itself.

    Attributes:
        claims: Whether it works on the queue; one that serves direct e-mails alone does not.
        begun: Its attempts in flight.
    """

    id: UUID
    queue: str
    host: str
    pid: int
    version: str
    alive: bool
    claims: bool
    asleep: bool
    begun: int
    seen_s: float
    started_at: datetime
    settled: dict[str, int]


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """A limit that all rows of a queue share, or many of them; `amount` is None where it is off."""

    key: str
    setting: str
    amount: int | None
    used: int | None
    next_free_s: float | None


@dataclass(frozen=True, slots=True)
class Status:
    """
    Everything, at the database's time `now`.

    Attributes:
        paused: Queues and transports that are, by a person or since a transport is down.
        transports: Those of this process first.
        oldest_snapshot: Who keeps dead rows from being removed, and for longer than five minutes.
    """

    now: datetime
    queues: dict[str, QueueStatus]
    workers: list[WorkerStatus]
    paused: list[Pause]
    transports: list[TransportStatus]
    limits: list[LimitStatus]
    oldest_snapshot: SnapshotHolder | None


async def read_status(
    database: Database, queues: Sequence[QueueTable], *, ways: Sequence[str] = ()
) -> Status:
    """
    Read the state of these queues and of all workers.

    Counting reads each table once: seconds where millions of old rows are kept.

    Args:
        ways: The names of this process's transports.

    Raises:
        DatabaseUnavailable: No answer in time.
    """
    limits = await read_limits(database, queues)
    used_up = {limit.key for limit in limits if limit.amount is not None and limit.used == limit.amount}
    paused = await read_pauses(database)
    held = {pause.name for pause in paused if pause.kind == "queue"}
    return Status(
        now=await database.fetchval("SELECT clock_timestamp()"),
        queues={queue.name: await _read_queue(database, queue, used_up, held) for queue in queues},
        workers=await read_workers(database),
        paused=paused,
        transports=await read_transports(database, ways, paused),
        limits=limits,
        oldest_snapshot=next(iter(await read_snapshot_holders(database, count_max=1)), None),
    )


async def read_workers(database: Database) -> list[WorkerStatus]:
    """The workers, those that were seen last first; dead ones for as long as their rows are kept."""
    rows = await database.fetch(
        f"""
        SELECT
            worker.id, worker.queue, worker.host, worker.pid, worker.version,
            worker.seen_at > clock_timestamp() - {ALIVE} AS alive,
            worker.claims, worker.asleep, cardinality(worker.begun) AS begun,
            extract(EPOCH FROM clock_timestamp() - worker.seen_at)::double precision AS seen_s,
            worker.started_at, worker.settled::text AS settled
        FROM postroom.workers AS worker
        ORDER BY worker.seen_at DESC
        """  # noqa: S608 - a constant of ours
    )
    return [WorkerStatus(**{**row, "settled": orjson.loads(row["settled"])}) for row in rows]


async def read_limits(
    database: Database, queues: Sequence[QueueTable], *, waited_for: Sequence[str] = ()
) -> list[LimitStatus]:
    """
    The limits that these queues' rows share, further ones next, and how much of them is used.

    Args:
        waited_for: Keys of single recipients, domains, …, which come last.
    """
    rows = await database.fetch(
        """
        SELECT
            wanted.key, rule.written AS setting, rule.amount,
            rule.amount - book.free AS used, book.wait_s AS next_free_s
        FROM (
            SELECT each.key, min(each.place) AS place
            FROM (
                SELECT asked.key, 1 AS place FROM unnest($1::text[]) AS asked (key)
                UNION ALL
                SELECT postroom.limit_key_of(further.key), 2
                FROM postroom.settings AS further
                WHERE further.key = postroom.further_limit_key(further.key) AND cardinality($1::text[]) > 0
                UNION ALL
                SELECT waited.key, 3 FROM unnest($2::text[]) AS waited (key)
            ) AS each
            GROUP BY each.key
        ) AS wanted
        CROSS JOIN LATERAL postroom.limit_rule_of(wanted.key) AS rule
        CROSS JOIN LATERAL postroom.free_slots(wanted.key) AS book
        ORDER BY wanted.place, wanted.key
        """,
        [queue.limit_key for queue in queues if queue.limit_key is not None],
        list(waited_for),
    )
    return [LimitStatus(**row) for row in rows]


async def read_limit_waits(database: Database, keys_max: int) -> dict[str, int]:
    """The keys that most e-mails wait for, the longest line first: cheap whatever the queue holds."""
    rows = await database.fetch(
        "SELECT waits.key, waits.count FROM postroom.limit_waits($1) AS waits", keys_max
    )
    return {row["key"]: row["count"] for row in rows}


async def _read_queue(
    database: Database, queue: QueueTable, used_up: set[str], held: set[str]
) -> QueueStatus:
    counted = await database.fetch(
        f"""
        SELECT
            COALESCE(item.status, 'none') AS status,
            count(*) AS count,
            extract(
                EPOCH FROM clock_timestamp() - min(item.created_at) FILTER (WHERE isfinite(item.created_at))
            )::double precision AS oldest_s
        FROM {queue.table} AS item
        GROUP BY 1
        ORDER BY 1
        """,  # noqa: S608 - a table of ours
        deadline_s=_COUNT_DEADLINE_S,
    )
    waiting = {
        row["reason"]: row
        for row in await database.fetch(
            _LIVE.format(table=queue.table), queue.name, deadline_s=_COUNT_DEADLINE_S
        )
    }
    due = waiting.get("due")
    reasons = {reason: row["count"] for reason, row in waiting.items()}
    if due is not None and queue.name in held:
        reasons["paused"] = reasons.pop("due")
    elif due is not None and queue.limit_key in used_up:
        reasons[f"limit:{queue.limit_key}"] = reasons.get(f"limit:{queue.limit_key}", 0) + reasons.pop("due")
    return QueueStatus(
        counts={row["status"]: row["count"] for row in counted},
        oldest_s={row["status"]: row["oldest_s"] for row in counted},
        due=due["count"] if due is not None else 0,
        oldest_due_s=due["oldest_due_s"] if due is not None else None,
        waiting=dict(sorted(reasons.items())),
    )


# What each live row waits for. A lease that has ended is due like any other row.
_LIVE = """
    SELECT
        live.reason,
        count(*) AS count,
        extract(EPOCH FROM clock_timestamp() - min(live.due_at) FILTER (WHERE isfinite(live.due_at)))
            ::double precision AS oldest_due_s
    FROM (
        SELECT
            COALESCE(item.due_at, item.next_retry_at, item.created_at) AS due_at,
            CASE
                WHEN refused.id IS NOT NULL THEN 'refused'
                WHEN item.status = 'processing' AND NOT COALESCE(item.due_at <= clock_timestamp(), false)
                    THEN 'lease'
                WHEN item.waits_for = 'transport' THEN 'transport'
                WHEN COALESCE(item.due_at, item.next_retry_at, '-infinity') <= clock_timestamp() THEN 'due'
                WHEN item.waits_for LIKE 'limit:email:recipient:%' THEN 'limit:email:recipient'
                ELSE COALESCE(item.waits_for, 'next_retry_at')
            END AS reason
        FROM {table} AS item
        LEFT JOIN postroom.refused_rows AS refused ON refused.queue = $1 AND refused.id = item.id
        WHERE item.status IN ('pending', 'processing')
    ) AS live
    GROUP BY live.reason
"""
