"""The schedule's SQL. The time is the database's, where a caller does not bring its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from postroom.database.audit import Actor, record
from postroom.database.connect import Database
from postroom.schedule.job import JobRow

DEADLINE_S = 5.0
"""For each call: less than a lease."""


@dataclass(frozen=True, slots=True)
class Standing:
    """
    What a scheduler is at a moment.

    Attributes:
        term: Grows with each other leader.
        can_run: What the leader can run: job names, `sql:USER`.
    """

    leads: bool
    term: int
    now: datetime
    can_run: frozenset[str]


class CronStore:
    """Reads and writes postroom.jobs, job_runs and cron_leader; every call may raise DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def user(self) -> str:
        """Whose rights people's own jobs run with here."""
        user: str = await self._database.fetchval("SELECT current_user::text", deadline_s=DEADLINE_S)
        return user

    async def now(self) -> datetime:
        """The database's clock."""
        now: datetime = await self._database.fetchval("SELECT clock_timestamp()", deadline_s=DEADLINE_S)
        return now

    async def offer(self, names: Collection[str]) -> None:
        """See that postroom's own jobs of these names are in the table."""
        await self._database.execute("SELECT postroom.offer_jobs($1)", list(names), deadline_s=DEADLINE_S)

    async def lead(
        self,
        scheduler: UUID,
        host: str,
        pid: int,
        version: str,
        can_run: Collection[str],
        now: datetime | None = None,
    ) -> Standing:
        """Show a scheduler; it leads from now on where nobody else does."""
        row = await self._database.fetchrow(
            "SELECT * FROM postroom.lead_cron($1, $2, $3, $4, $5, COALESCE($6, clock_timestamp()))",
            scheduler,
            host,
            pid,
            version,
            list(can_run),
            now,
            deadline_s=DEADLINE_S,
        )
        assert row is not None
        return Standing(row["leads"], row["term"], row["at"], frozenset(row["can_run"]))

    async def resign(self, scheduler: UUID) -> None:
        """Leave the place to the next one at once."""
        await self._database.execute("SELECT postroom.resign_cron($1)", scheduler, deadline_s=DEADLINE_S)

    async def jobs(self) -> list[JobRow]:
        """The jobs that postroom's schedulers are to run."""
        rows = await self._database.fetch(f"{_JOBS} WHERE job.active AND {_OURS}", deadline_s=DEADLINE_S)
        return [JobRow(**row) for row in rows]

    async def job(self, name: str) -> JobRow | None:
        """The job of this name or number, active or not; postroom's own before others'."""
        row = await self._database.fetchrow(
            f"{_JOBS} WHERE job.jobname = $1 OR job.jobid::text = $1 ORDER BY job.builtin DESC LIMIT 1",
            name,
            deadline_s=DEADLINE_S,
        )
        return None if row is None else JobRow(**row)

    async def begin(
        self, scheduler: UUID, jobid: int, minute: datetime | None, pid: int, now: datetime | None = None
    ) -> int | None:
        """
        Begin a run for a minute (None: a person asks for it); its id, or None where it may not begin.

        Safe to repeat where the answer was lost: the same scheduler is given the same run.
        """
        runid: int | None = await self._database.fetchval(
            "SELECT postroom.begin_run($1, $2, $3, $4, COALESCE($5, clock_timestamp()))",
            scheduler,
            jobid,
            minute,
            pid,
            now,
            deadline_s=DEADLINE_S,
        )
        return runid

    async def begin_by_hand(self, scheduler: UUID, job: JobRow, pid: int, by: Actor | None) -> int | None:
        """
        Begin a run for no minute; its id, or None where it may not begin.

        Safe to repeat where the answer was lost: it is one run then, and one entry of the audit trail.

        Args:
            by: The person who asks for it; None where a program does, which is in no trail.
        """
        async with self._database.transaction() as connection:
            begun = await connection.fetchval(
                """
                SELECT EXISTS (
                    SELECT FROM postroom.job_runs AS run
                    WHERE run.jobid = $2 AND run.status = 'running' AND run.scheduler = $1
                )
                """,
                scheduler,
                job.jobid,
            )
            runid: int | None = await connection.fetchval(
                "SELECT postroom.begin_run($1, $2, NULL, $3, clock_timestamp())", scheduler, job.jobid, pid
            )
            if by is not None and runid is not None and not begun:
                await record(connection, by, "job.run", {"job": job.name or str(job.jobid), "run": runid})
        return runid

    async def extend(
        self, scheduler: UUID, runids: Sequence[int], now: datetime | None = None
    ) -> frozenset[int]:
        """Say that these runs go on; those that are still ours."""
        rows = await self._database.fetch(
            "SELECT postroom.extend_runs($1, $2, COALESCE($3, clock_timestamp())) AS runid",
            scheduler,
            list(runids),
            now,
            deadline_s=DEADLINE_S,
        )
        return frozenset(row["runid"] for row in rows)

    async def end(
        self, scheduler: UUID, runid: int, status: str, message: str, now: datetime | None = None
    ) -> bool:
        """Write down how a run ended; False where it had been given up."""
        ended: bool = await self._database.fetchval(
            "SELECT postroom.end_run($1, $2, $3, $4, COALESCE($5, clock_timestamp()))",
            scheduler,
            runid,
            status,
            message,
            now,
            deadline_s=DEADLINE_S,
        )
        return ended

    async def fail_dead(self, now: datetime | None = None) -> list[tuple[int, str]]:
        """Give up the runs of schedulers that died; run and job of each."""
        rows = await self._database.fetch(
            "SELECT * FROM postroom.fail_dead_runs(COALESCE($1, clock_timestamp()))",
            now,
            deadline_s=DEADLINE_S,
        )
        return [(row["runid"], row["job"]) for row in rows]


# What pg_cron has is not ours to run.
_OURS = """
    NOT EXISTS (
        SELECT FROM postroom.read_cron_jobs() AS theirs
        WHERE theirs.run_by = 'pg_cron' AND theirs.builtin = job.jobname AND job.builtin
    )
"""

_JOBS = """
    SELECT
        job.jobid, job.jobname AS name, job.schedule, job.command, job.builtin,
        postroom.what_runs(job) AS runs_as, job.last_minute,
        job.first_began_at, job.last_succeeded_at,
        EXISTS (
            SELECT FROM postroom.job_runs AS run WHERE run.jobid = job.jobid AND run.status = 'running'
        ) AS running
    FROM postroom.jobs AS job
"""
