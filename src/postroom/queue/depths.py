"""What monitoring asks of the queues every few seconds: cheap whatever they hold, as no history is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from postroom.database.connect import Database
from postroom.queue.pauses import Pause, read_pauses
from postroom.queue.status import LimitStatus, WorkerStatus, read_limits, read_workers
from postroom.queue.table import QueueTable

COUNTED_MAX = 10_000
"""Rows and dead letters of a queue are counted so far; what is beyond is estimated (58_monitoring.sql)."""

TRANSPORTS_MAX = 50
"""More are not shown: each is a time series of its own."""


@dataclass(frozen=True, slots=True)
class Depths:
    """
    The house at one moment.

    Attributes:
        live: Live rows by queue and state (postroom.queue_depths).
        oldest_due_s: By queue, for how long the oldest row that is due has been; 0 where none is.
        dead_letters: By queue.
        workers: Those that are alive and claim.
        helpers: Those that are alive and serve direct e-mails alone.
        transports: Whether each is paused.
        oldest_snapshot_s: Of the transactions that the database shows us.
        paused: Queues and transports that are, by a person or since a transport is down.
        paused_s: For how long persons have paused queues and transports, by kind and name.
    """

    live: dict[tuple[str, str], int]
    oldest_due_s: dict[str, float]
    dead_letters: dict[str, int]
    workers: list[WorkerStatus]
    helpers: list[WorkerStatus]
    transports: dict[str, bool]
    limits: list[LimitStatus]
    cron_leads: bool
    oldest_snapshot_s: float
    paused: list[Pause] = field(default_factory=list)
    paused_s: dict[tuple[str, ...], float] = field(default_factory=dict)

    def waiting(self, queue: str) -> int:
        """Live rows that are not in flight."""
        return sum(count for (of, state), count in self.live.items() if of == queue and state != "leased")

    def waiting_is_estimate(self, queue: str) -> bool:
        """Whether waiting() says about how many."""
        return (queue, "uncounted") in self.live

    def dead_is_estimate(self, queue: str) -> bool:
        """Whether dead_letters says about how many."""
        return self.dead_letters.get(queue, 0) > COUNTED_MAX


async def read_depths(database: Database, queues: Sequence[QueueTable]) -> Depths:
    """
    Read what the metrics of scope `database` show.

    Raises:
        DatabaseUnavailable: No answer in time.
    """
    depths = await database.fetch("SELECT queue, state, count FROM postroom.queue_depths")
    one = await database.fetchrow(_SINGLE)
    assert one is not None
    shared = [limit for limit in await read_limits(database, queues) if limit.key == "email:global"]
    workers = await read_workers(database)
    paused = await read_pauses(database)
    return Depths(
        live={(row["queue"], row["state"]): row["count"] for row in depths if row["state"] != "dead_letter"},
        oldest_due_s={"email": one["email_due_s"] or 0.0, "webhook": one["webhook_due_s"] or 0.0},
        dead_letters={row["queue"]: row["count"] for row in depths if row["state"] == "dead_letter"},
        workers=[worker for worker in workers if worker.alive and worker.claims],
        helpers=[worker for worker in workers if worker.alive and not worker.claims],
        transports={row["name"]: row["paused"] for row in await database.fetch(_TRANSPORTS, TRANSPORTS_MAX)},
        limits=[limit for limit in shared if limit.amount is not None],
        cron_leads=one["cron_leads"],
        oldest_snapshot_s=max(one["snapshot_s"], 0.0),
        paused=paused,
        paused_s={
            (pause.kind, pause.name): max((one["now"] - pause.since).total_seconds(), 0.0)
            for pause in paused[:TRANSPORTS_MAX]
            if pause.since is not None
        },
    )


_SINGLE = """
    SELECT
        clock_timestamp() AS now,
        postroom.email_due_s() AS email_due_s,
        postroom.webhook_due_s() AS webhook_due_s,
        EXISTS (
            SELECT 1
            FROM postroom.cron_leader AS leader
            WHERE postroom.holds_at(leader.leads_until, clock_timestamp())
        ) AS cron_leads,
        COALESCE(extract(EPOCH FROM clock_timestamp() - LEAST(
            (
                SELECT min(activity.xact_start)
                FROM pg_stat_activity AS activity
                WHERE activity.backend_xmin IS NOT NULL
                    AND activity.pid <> pg_backend_pid()
                    AND activity.backend_type NOT IN ('autovacuum worker', 'walsender')
            ),
            (
                SELECT min(prepared.prepared)
                FROM pg_prepared_xacts AS prepared
                WHERE prepared.database = current_database()
            )
        )), 0)::double precision AS snapshot_s
"""

_TRANSPORTS = """
    SELECT transport.name, COALESCE(transport.paused_until > clock_timestamp(), false) AS paused
    FROM postroom.transports AS transport
    ORDER BY transport.updated_at DESC
    LIMIT $1
"""
