"""How the scheduled jobs fare: cheap, since monitoring asks every few seconds; whoever runs them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from postroom.database.connect import Database
from postroom.schedule.times import next_due

JOBS_MAX = 100
"""More are not shown: each is a time series of its own."""

_RECENT_RUNS = 2_000
"""A run of pg_cron's is looked for among so many: its history has no index by job."""


@dataclass(frozen=True, slots=True)
class JobHealth:
    """
    A job that is switched on.

    Attributes:
        failing: Its last run that was due failed.
        last_success_s: When its last run that succeeded began, as a Unix time; 0 before the first.
        overdue_s: For how long it has been due, and nobody has begun it; 0 while it runs.
    """

    name: str
    failing: bool
    last_success_s: float
    overdue_s: float


async def read_job_health(database: Database) -> list[JobHealth]:
    """
    The jobs of our schedulers, and pg_cron's where it is installed and may be used.

    Raises:
        DatabaseUnavailable: No answer in time.
    """
    now: datetime = await database.fetchval("SELECT clock_timestamp()")
    rows = await database.fetch(_OWN, JOBS_MAX)
    if await database.fetchval("SELECT postroom.may_use_pg_cron()"):
        rows += await database.fetch(_OF_PG_CRON, _RECENT_RUNS, JOBS_MAX)
    jobs: dict[str, JobHealth] = {}
    for row in rows[:JOBS_MAX]:
        job = JobHealth(row["name"], row["failing"], row["last_success_s"], _overdue_s(row, now))
        other = jobs.get(job.name, job)  # two users may each have one of that name
        jobs[job.name] = JobHealth(
            job.name,
            job.failing or other.failing,
            max(job.last_success_s, other.last_success_s),
            max(job.overdue_s, other.overdue_s),
        )
    return list(jobs.values())


def _overdue_s(row: asyncpg.Record, now: datetime) -> float:
    if row["running"] or row["done_until"] is None:
        return 0.0
    try:
        due = next_due(row["schedule"], row["done_until"])
    except ValueError:
        return 0.0
    return 0.0 if due is None else max((now - due).total_seconds(), 0.0)


# The history is read by its key, from its end: a week of it has ten thousand runs of each job. What a person
# runs by hand stands for no minute, and does not count.
_OWN = """
    SELECT
        COALESCE(job.jobname, 'job ' || job.jobid) AS name,
        job.schedule,
        COALESCE(last.status = 'failed', false) AS failing,
        COALESCE(extract(EPOCH FROM job.last_succeeded_at), 0)::double precision AS last_success_s,
        -- The net's first moment is long ago, so that it begins at once: nobody has waited since then.
        CASE WHEN job.last_minute > '2001-01-01' THEN job.last_minute END AS done_until,
        EXISTS (
            SELECT FROM postroom.job_runs AS run WHERE run.jobid = job.jobid AND run.status = 'running'
        ) AS running
    FROM postroom.jobs AS job
    LEFT JOIN LATERAL (
        SELECT run.status
        FROM postroom.job_runs AS run
        WHERE run.jobid = job.jobid AND run.minute IS NOT NULL AND run.status <> 'running'
        ORDER BY run.minute DESC
        LIMIT 1
    ) AS last ON true
    WHERE job.active AND NOT (job.pg_cron_jobid IS NOT NULL AND postroom.may_use_pg_cron())
    ORDER BY job.jobid
    LIMIT $1
"""

# What of pg_cron's no run is known of is not called overdue: it may have been scheduled just now.
_OF_PG_CRON = """
    WITH run AS MATERIALIZED (
        SELECT each.jobid, each.status, each.start_time
        FROM postroom.read_cron_runs($1) AS each
        WHERE each.start_time IS NOT NULL
    )
    SELECT
        COALESCE(job.jobname, 'job ' || job.jobid) AS name,
        job.schedule,
        COALESCE(
            (
                SELECT run.status = 'failed'
                FROM run
                WHERE run.jobid = job.jobid AND run.status IN ('succeeded', 'failed')
                ORDER BY run.start_time DESC
                LIMIT 1
            ),
            false
        ) AS failing,
        COALESCE(
            (
                SELECT extract(EPOCH FROM max(run.start_time))
                FROM run
                WHERE run.jobid = job.jobid AND run.status = 'succeeded'
            ),
            0
        )::double precision AS last_success_s,
        (SELECT max(run.start_time) FROM run WHERE run.jobid = job.jobid) AS done_until,
        EXISTS (
            SELECT FROM run WHERE run.jobid = job.jobid AND run.status NOT IN ('succeeded', 'failed')
        ) AS running
    FROM postroom.read_cron_jobs() AS job
    WHERE job.active AND job.run_by = 'pg_cron'
    ORDER BY job.jobid
    LIMIT $2
"""
