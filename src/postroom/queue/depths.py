"""What monitoring asks of the queues every few seconds: cheap whatever they hold, as no history is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from postroom.database.connect import Database
from postroom.queue.status import LimitStatus, WorkerStatus, read_limits, read_workers
from postroom.queue.table import QueueTable

TRANSPORTS_MAX = 50
JOBS_MAX = 100
"""More are not shown: each is a time series of its own."""


@dataclass(frozen=True, slots=True)
class JobHealth:
    """
    A scheduled job.

    Attributes:
        last_success_s: When its last run that succeeded began, as a Unix time; 0 before the first.
    """

    name: str
    failing: bool
    last_success_s: float


@dataclass(frozen=True, slots=True)
class Depths:
    """
    The house at one moment.

    Attributes:
        live: Live rows by queue and state (postroom.queue_depths).
        oldest_due_s: By queue, for how long the oldest row that is due has been; 0 where none is.
        dead_letters: By queue.
        workers: Those that are alive and claim.
        transports: Whether each is paused.
        oldest_snapshot_s: Of the transactions that the database shows us.
    """

    live: dict[tuple[str, str], int]
    oldest_due_s: dict[str, float]
    dead_letters: dict[str, int]
    workers: list[WorkerStatus]
    transports: dict[str, bool]
    limits: list[LimitStatus]
    jobs: list[JobHealth]
    cron_leads: bool
    oldest_snapshot_s: float


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
    return Depths(
        live={(row["queue"], row["state"]): row["count"] for row in depths if row["state"] != "dead_letter"},
        oldest_due_s={"email": one["email_due_s"] or 0.0, "webhook": one["webhook_due_s"] or 0.0},
        dead_letters={row["queue"]: row["count"] for row in depths if row["state"] == "dead_letter"},
        workers=[worker for worker in workers if worker.alive and worker.claims],
        transports={row["name"]: row["paused"] for row in await database.fetch(_TRANSPORTS, TRANSPORTS_MAX)},
        limits=[limit for limit in shared if limit.amount is not None],
        jobs=[JobHealth(**row) for row in await database.fetch(_JOBS, JOBS_MAX)],
        cron_leads=one["cron_leads"],
        oldest_snapshot_s=max(one["snapshot_s"], 0.0),
    )


_SINGLE = """
    SELECT
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

# The history is read by its key, from its end: a week of it has ten thousand runs of each job. What a person
# runs by hand stands for no minute, and does not count.
_JOBS = """
    SELECT
        COALESCE(job.jobname, 'job ' || job.jobid) AS name,
        bool_or(COALESCE(last.status = 'failed', false)) AS failing,
        COALESCE(max(extract(EPOCH FROM job.last_succeeded_at)), 0)::double precision AS last_success_s
    FROM postroom.jobs AS job
    LEFT JOIN LATERAL (
        SELECT run.status
        FROM postroom.job_runs AS run
        WHERE run.jobid = job.jobid AND run.minute IS NOT NULL AND run.status <> 'running'
        ORDER BY run.minute DESC
        LIMIT 1
    ) AS last ON true
    WHERE job.active
    GROUP BY name
    ORDER BY min(job.jobid)
    LIMIT $1
"""
