"""A run that a person asks for: now, in the person's own process, and in the history like any other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

from postroom.database.audit import Actor
from postroom.errors import DatabaseUnavailable, PostroomError
from postroom.schedule.job import JobRow
from postroom.schedule.scheduler import TICK_S, attempt
from postroom.schedule.store import CronStore


async def run_by_hand(
    store: CronStore, job: JobRow, work: Callable[[], Coroutine[Any, Any, str]], *, by: Actor | None
) -> str:
    """
    Run a job; returns its message.

    Args:
        work: Begins it.
        by: The person who asks for it, for the audit trail; None where a program does.

    Raises:
        PostroomError: It runs already, or it failed.
    """
    scheduler = uuid4()
    runid = await _begin(store, scheduler, job, by)
    if runid is None:
        raise PostroomError(
            f"{job.called} runs at the moment: see `postroom cron history {job.name or job.jobid}`"
        )
    extending = asyncio.create_task(_extend(store, scheduler, runid))
    try:
        status, message = await attempt(work())
    finally:
        extending.cancel()
    await store.end(scheduler, runid, status, message)
    if status == "failed":
        raise PostroomError(f"{job.called} failed: {message}")
    return message


async def _begin(store: CronStore, scheduler: UUID, job: JobRow, by: Actor | None) -> int | None:
    try:
        return await store.begin_by_hand(scheduler, job, os.getpid(), by)
    except DatabaseUnavailable:
        # Perhaps the answer alone was lost: then the run is there, and nobody does it.
        await asyncio.sleep(TICK_S)
        return await store.begin_by_hand(scheduler, job, os.getpid(), by)


async def _extend(store: CronStore, scheduler: UUID, runid: int) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        with suppress(Exception):
            await store.extend(scheduler, [runid])
