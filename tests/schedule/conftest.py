"""Schedulers whose time is what a test says it is, over a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from postroom.database.connect import Database
from postroom.errors import DatabaseUnavailable
from postroom.schedule.job import Job, Run
from postroom.schedule.scheduler import Scheduler
from postroom.schedule.store import CronStore

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
"""When these tests begin."""


class MortalStore(CronStore):
    """A store that says nothing any more once its scheduler is dead: as after a kill -9."""

    dead = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("lead", "begin", "extend", "end", "jobs", "fail_dead", "resign") and self.dead:
            raise DatabaseUnavailable("killed")
        return super().__getattribute__(name)


class Clockwork:
    """
    The schedulers of a test.

    Attributes:
        ran: What has run: the job, and the time as the test has it.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = NOON
        self.ran: list[tuple[str, datetime]] = []
        self.hold = asyncio.Event()
        self._stores: dict[Scheduler, MortalStore] = {}

    def scheduler(self, names: Sequence[str] = ("process-email-queue",)) -> Scheduler:
        """One that can run these of postroom's own jobs; `slow` hangs until `hold` is set."""
        store = MortalStore(self.database)
        scheduler = Scheduler(store, [Job(name, self._work(name)) for name in names], self._sql)
        self._stores[scheduler] = store
        return scheduler

    async def kill(self, scheduler: Scheduler) -> None:
        """It does nothing any more, and what ran in it is gone."""
        self._stores[scheduler].dead = True
        for running in list(scheduler._runs.values()):
            running.task.cancel()

    async def tick(self, scheduler: Scheduler, **later: float) -> bool:
        """Let time pass, and let a scheduler look at its clock; whether it leads."""
        self.now += timedelta(**later)
        standing = await scheduler.tick(self.now)
        return standing.leads

    async def history(self) -> list[tuple[str, str, datetime | None]]:
        """Job, status and minute of each run, in their order."""
        rows = await self.database.fetch(
            """
            SELECT job.jobname, run.status, run.minute
            FROM postroom.job_runs AS run JOIN postroom.jobs AS job USING (jobid)
            ORDER BY run.runid
            """
        )
        return [tuple(row) for row in rows]

    def _work(self, name: str) -> Callable[[Run], Any]:
        async def work(run: Run) -> str:
            self.ran.append((name, self.now))
            if self.hold.is_set():
                await asyncio.Event().wait()
            return f"{name} done"

        return work

    async def _sql(self, command: str) -> str:
        self.ran.append((command, self.now))
        if command == "fail":
            raise ValueError("as it was told")
        return "1 row"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh migrated database."""
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
async def clockwork(database: Database) -> AsyncIterator[Clockwork]:
    """Time stands at noon of 2026-01-01; all jobs were done then, and the every-minute one alone is on."""
    await database.execute("SELECT postroom.offer_jobs('{reconcile}')")
    await database.execute("UPDATE postroom.jobs SET active = jobid = 19")
    await set_last_minute(database)
    one = Clockwork(database)
    yield one
    for scheduler in one._stores:
        await one.kill(scheduler)


async def set_last_minute(database: Database, at: datetime = NOON) -> None:
    """All jobs have done what was due until then."""
    await database.execute("UPDATE postroom.jobs SET last_minute = $1", at)


async def add_job(
    database: Database, name: str, schedule: str = "* * * * *", command: str = "SELECT 1"
) -> int:
    """A person's own job, scheduled at noon; its id."""
    jobid: int = await database.fetchval("SELECT cron.schedule($1, $2, $3)", name, schedule, command)
    await database.execute("UPDATE postroom.jobs SET last_minute = $1 WHERE jobid = $2", NOON, jobid)
    return jobid


Racer = Callable[[asyncpg.Connection], Awaitable[Any]]
