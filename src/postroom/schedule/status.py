"""The schedule at one moment: who leads, the jobs with their last run and their next, and the history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from postroom.database.connect import Database
from postroom.schedule.times import next_due

_RECENT_RUNS = 5_000
"""A job's last run is looked for among so many: pg_cron's history may be endless."""


@dataclass(frozen=True, slots=True)
class Leader:
    """The scheduler that leads."""

    host: str
    pid: int
    version: str
    leads_since: datetime


@dataclass(frozen=True, slots=True)
class JobStatus:
    """
    A job.

    Attributes:
        builtin: One of postroom's own.
        run_by: `postroom` (its scheduler) or `pg_cron`.
        username: With whose rights its command runs.
        last_status: `running`, `succeeded` or `failed`; None before its first run.
        next_at: None where it is not active, or never comes.
    """

    jobid: int
    name: str | None
    schedule: str
    command: str
    active: bool
    builtin: bool
    run_by: str
    username: str
    last_start: datetime | None
    last_status: str | None
    last_message: str | None
    next_at: datetime | None


@dataclass(frozen=True, slots=True)
class CronStatus:
    """
    The schedule.

    Attributes:
        now: By the database's clock.
        leader: None where no scheduler runs.
    """

    now: datetime
    leader: Leader | None
    jobs: list[JobStatus]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run, in pg_cron's words."""

    jobid: int
    runid: int
    job: str | None
    status: str
    return_message: str | None
    start_time: datetime | None
    end_time: datetime | None


async def read_cron(database: Database) -> CronStatus:
    """The schedule as it is now."""
    now: datetime = await database.fetchval("SELECT clock_timestamp()")
    leader = await database.fetchrow(
        """
        SELECT leader.host, leader.pid, leader.version, leader.leads_since
        FROM postroom.cron_leader AS leader
        WHERE postroom.holds_at(leader.leads_until, clock_timestamp())
        """
    )
    rows = await database.fetch(
        """
        SELECT
            job.jobid, job.jobname AS name, job.schedule, job.command, job.active,
            job.builtin IS NOT NULL AS builtin, job.run_by,
            job.username,
            run.start_time AS last_start, run.status AS last_status, run.return_message AS last_message
        FROM postroom.read_cron_jobs() AS job
        LEFT JOIN (
            SELECT DISTINCT ON (each.jobid) each.*
            FROM postroom.read_cron_runs($1) AS each
            ORDER BY each.jobid, each.start_time DESC, each.runid DESC
        ) AS run ON run.jobid = job.jobid
        ORDER BY job.jobid
        """,
        _RECENT_RUNS,
    )
    return CronStatus(
        now,
        None if leader is None else Leader(**leader),
        [JobStatus(**row, next_at=_next(row["schedule"], now) if row["active"] else None) for row in rows],
    )


async def read_runs(database: Database, name: str | None, limit: int) -> list[RunStatus]:
    """
    The last runs, newest first.

    Args:
        name: Of a job, or its number; None stands for all.
    """
    rows = await database.fetch(
        """
        SELECT
            run.jobid, run.runid, job.jobname AS job, run.status, run.return_message,
            run.start_time, run.end_time
        FROM postroom.read_cron_runs(CASE WHEN $1::text IS NULL THEN $2::bigint END) AS run
        LEFT JOIN postroom.read_cron_jobs() AS job ON job.jobid = run.jobid
        WHERE $1::text IS NULL OR job.jobname = $1 OR run.jobid::text = $1
        ORDER BY run.start_time DESC NULLS FIRST, run.runid DESC
        LIMIT $2
        """,
        name,
        limit,
    )
    return [RunStatus(**row) for row in rows]


def _next(schedule: str, now: datetime) -> datetime | None:
    try:
        return next_due(schedule, now)
    except ValueError:
        return None
