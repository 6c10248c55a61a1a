"""
The scheduler: any number of processes run one, and one of them leads.

Each looks at the clock of the database once a second. The leader begins what is due; what may begin is
decided there, in the transaction that writes the run down (docs/decisions/0012). A run is a task of its own:
a slow job holds up no other.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any
from uuid import uuid4

from postroom import log
from postroom.errors import DatabaseUnavailable, PostroomError
from postroom.failpoints import reach
from postroom.schedule.job import Job, JobRow, Run
from postroom.schedule.store import CronStore, Standing
from postroom.schedule.times import latest_due

TICK_S = 1.0
AGAIN_S_MAX = 2.0
END_S_MAX = 30.0
"""What runs when the process is told to end may take this long; then it is broken off."""

NOBODY_S = 10.0
"""A job that no scheduler has begun so long after its time can be run by none: that is a failed run."""

RECORD_S_MAX = 60.0
RECORD_ENDING_S_MAX = 5.0
RECORD_AGAIN_S_MAX = 5.0
MESSAGE_MAX = 1_000

_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class _Running:
    job: JobRow
    task: asyncio.Task[None]


class Scheduler:
    """
    One of the schedulers of a database.

    Args:
        jobs: Those of postroom's own that this process can run.
        run_sql: Runs a person's own job; gets its command, returns what came of it.
    """

    def __init__(
        self,
        store: CronStore,
        jobs: Sequence[Job],
        run_sql: Callable[[str], Coroutine[Any, Any, str]],
        *,
        version: str = "",
    ) -> None:
        self.id = uuid4()
        self._store = store
        self._jobs = {job.name: job for job in jobs}
        self._run_sql = run_sql
        self._version = version
        self._can_run: frozenset[str] = frozenset()
        self._leads_since: datetime | None = None
        self._runs: dict[int, _Running] = {}
        self._unanswered: dict[int, tuple[JobRow, datetime]] = {}  # asked for, and the answer was lost
        self._stop = asyncio.Event()
        self._no_schedule: set[tuple[int, str]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the schedule until `stop` is set; what runs then is told to end, and waited for."""
        stopping = asyncio.create_task(self._stop_with(stop))
        again_s = 0.1
        _log.info("scheduler.started", scheduler=str(self.id), jobs=sorted(self._jobs))
        try:
            while not self._stop.is_set():
                try:
                    await self.tick()
                    again_s = 0.1
                    await self._rest(TICK_S)
                except DatabaseUnavailable as error:
                    _log.warning("database.away", scheduler=str(self.id), error=str(error), again_s=again_s)
                    await self._rest(again_s)
                    again_s = min(again_s * 2, AGAIN_S_MAX)
                except Exception as error:
                    # Ours, or a person's in the database: it must not end the schedule.
                    _log.error("scheduler.failed", error=f"{type(error).__name__}: {error}")
                    await self._rest(AGAIN_S_MAX)
        finally:
            self._stop.set()
            stopping.cancel()
            await self._end()
            _log.info("scheduler.stopped", scheduler=str(self.id))

    async def tick(self, now: datetime | None = None) -> Standing:
        """
        Look at the clock once, and begin what is due.

        Args:
            now: Instead of the database's time.

        Raises:
            DatabaseUnavailable: Nothing more was begun.
        """
        if not self._can_run:
            reach("cron.offer.before")
            await self._store.offer(self._jobs)
            reach("cron.offer.after")
            self._can_run = frozenset({*self._jobs, f"sql:{await self._store.user()}"})
        reach("cron.lead.before")
        standing = await self._store.lead(
            self.id, socket.gethostname(), os.getpid(), self._version, self._can_run, now
        )
        reach("cron.lead.after")
        self._tell(standing)
        if self._runs:
            reach("cron.extend.before")
            await self._store.extend(self.id, list(self._runs), now)
            reach("cron.extend.after")
        # Before the leader gives up what nobody has extended: a run of ours may be among it.
        await self._ask_again(standing, now)
        if standing.leads:
            reach("cron.give_up.before")
            given_up = await self._store.fail_dead(now)
            reach("cron.give_up.after")
            for runid, job in given_up:
                _log.warning("cron.given_up", job=job, run=runid)
        if standing.leads or not self._can_run <= standing.can_run:
            for row in await self._store.jobs():
                await self._begin_if_due(row, standing, now)
        return standing

    async def settled(self) -> None:
        """Wait for the end of what runs now."""
        while tasks := self._tasks():
            await asyncio.wait(tasks)

    # Beginning

    async def _begin_if_due(self, row: JobRow, standing: Standing, now: datetime | None) -> None:
        ours = row.runs_as in self._can_run and (standing.leads or row.runs_as not in standing.can_run)
        if row.running or not (ours or standing.leads) or self._goes_on(row):
            return
        due = self._due(row, standing.now)
        if due is not None and (ours or self._nobody_came(due, standing)):
            await self._begin(row, due, standing, now)

    async def _begin(self, row: JobRow, due: datetime, standing: Standing, now: datetime | None) -> None:
        try:
            reach("cron.begin.before")
            runid = await self._store.begin(self.id, row.jobid, due, os.getpid(), now)
            reach("cron.begin.after")
        except DatabaseUnavailable:
            self._unanswered[row.jobid] = (row, due)
            raise
        if runid is None:
            return
        run = run_of(row, standing.now, self._stop)
        task = asyncio.create_task(self._run(row, runid, run, now))
        self._runs[runid] = _Running(row, task)

    async def _ask_again(self, standing: Standing, now: datetime | None) -> None:
        """Begin what may have begun without our knowing; who asks twice is given the same run."""
        while self._unanswered:
            _jobid, (row, due) = self._unanswered.popitem()
            await self._begin(row, due, standing, now)

    def _due(self, row: JobRow, now: datetime) -> datetime | None:
        """The latest moment for which a run is wanting: of a hundred missed ones, one is caught up."""
        try:
            due = latest_due(row.schedule, now)
        except ValueError as error:
            if (row.jobid, row.schedule) not in self._no_schedule:
                self._no_schedule.add((row.jobid, row.schedule))
                _log.error("cron.no_schedule", job=row.name or row.jobid, error=str(error))
            return None
        clock_went_back = row.last_minute > now + timedelta(minutes=1)
        return due if due is not None and (due > row.last_minute or clock_went_back) else None

    def _goes_on(self, row: JobRow) -> bool:
        """Whether a run of it goes on here that was given up meanwhile, such as while we were stopped."""
        return any(running.job.jobid == row.jobid for running in self._runs.values())

    def _nobody_came(self, due: datetime, standing: Standing) -> bool:
        waited_since = max(due, self._leads_since or standing.now)
        return standing.now - waited_since > timedelta(seconds=NOBODY_S)

    def _tell(self, standing: Standing) -> None:
        if not standing.leads:
            self._leads_since = None
        elif self._leads_since is None:
            self._leads_since = standing.now
            _log.info("scheduler.leads", scheduler=str(self.id), term=standing.term)

    # Running

    async def _run(self, row: JobRow, runid: int, run: Run, now: datetime | None) -> None:
        began = monotonic()
        try:
            reach("cron.run.before")
            status, message = await attempt(self._work(row, run))
            took_ms = round((monotonic() - began) * 1000)
            name = row.name or str(row.jobid)
            if not await self._record(runid, status, message, now):
                _log.warning("cron.late", job=name, run=runid, status=status, message=message)
            elif status == "failed":
                _log.error("cron.failed", job=name, run=runid, error=message, took_ms=took_ms)
            else:
                _log.info("cron.succeeded", job=name, run=runid, message=message, took_ms=took_ms)
        except Exception as error:
            # Ours: the run is given up when its lease ends, and the job runs again.
            _log.error("scheduler.failed", error=f"{type(error).__name__}: {error}")
        finally:
            del self._runs[runid]

    def _work(self, row: JobRow, run: Run) -> Coroutine[Any, Any, str]:
        if row.builtin and row.name in self._jobs:
            return self._jobs[row.name].run(run)
        if row.runs_as in self._can_run:
            return self._run_sql(row.command)
        return _nobody(row)

    async def _record(self, runid: int, status: str, message: str, now: datetime | None) -> bool:
        ends = monotonic() + (RECORD_ENDING_S_MAX if self._stop.is_set() else RECORD_S_MAX)
        again_s = 0.5
        while True:
            try:
                reach("cron.end.before")
                is_recorded = await self._store.end(self.id, runid, status, message, now)
                reach("cron.end.after")
                return is_recorded
            except Exception as error:
                if not isinstance(error, DatabaseUnavailable):
                    _log.error("scheduler.failed", error=f"{type(error).__name__}: {error}")
                if monotonic() > ends:
                    return False
                await asyncio.sleep(again_s)
                again_s = min(again_s * 2, RECORD_AGAIN_S_MAX)

    # Ending

    async def _end(self) -> None:
        with suppress(Exception):
            reach("cron.resign.before")
            await self._store.resign(self.id)
            reach("cron.resign.after")
        ends = monotonic() + END_S_MAX
        while self._runs and monotonic() < ends:
            with suppress(Exception):
                await self._store.extend(self.id, list(self._runs))
            if tasks := self._tasks():
                await asyncio.wait(tasks, timeout=TICK_S)
        for task in (tasks := self._tasks()):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [running.task for running in self._runs.values()]

    async def _rest(self, limit_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._stop.wait()

    async def _stop_with(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stop.set()


def run_of(row: JobRow, began_at: datetime, stop: asyncio.Event) -> Run:
    """What a job that begins now is told."""
    return Run(began_at, row.first_began_at, row.last_succeeded_at, stop)


async def attempt(work: Coroutine[Any, Any, str]) -> tuple[str, str]:
    """Do it; the status of the run, and its message."""
    try:
        return "succeeded", (await work)[:MESSAGE_MAX]
    except asyncio.CancelledError:
        return "failed", "broken off: the process was told to end"
    except PostroomError as error:
        return "failed", str(error)[:MESSAGE_MAX]
    except Exception as error:
        # The first line: PostgreSQL's details hold the values of rows.
        return "failed", f"{type(error).__name__}: {error}".partition("\n")[0][:MESSAGE_MAX]


async def _nobody(row: JobRow) -> str:
    if row.builtin:
        raise PostroomError("no scheduler that runs has what this job needs: see `postroom cron list`")
    raise PostroomError(
        f"no scheduler runs as {row.runs_as.removeprefix('sql:')}, who has scheduled this job"
    )
