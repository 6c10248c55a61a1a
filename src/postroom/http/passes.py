"""Passes over a queue that somebody asks for by HTTP, such as a cron job: one at a time, with an end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from postroom.errors import DatabaseUnavailable
from postroom.queue.engine import Engine, Pass
from postroom.room import Room

PASS_S_MAX = 50.0
"""A pass claims no more after this time: whoever calls it each minute finds it done."""

PASS_END_S = 8.0
"""What a pass has to end in, beyond that; it goes on by itself where it takes longer."""


class Passes:
    """
    The passes over one queue.

    Args:
        make_engine: A worker for one pass.
        stopping: Once it is set, no more rows are claimed.
    """

    def __init__(
        self, room: Room, make_engine: Callable[[], Awaitable[Engine[Any]]], stopping: asyncio.Event
    ) -> None:
        self._room = room
        self._make_engine = make_engine
        self._stopping = stopping
        self._passing = asyncio.Lock()
        self._passes: set[asyncio.Task[Pass]] = set()

    async def run(self) -> Pass:
        """
        One pass over what is due.

        Raises:
            DatabaseUnavailable: The database is away; what was begun is settled when it is back.
        """
        await self._room.open()
        ends = monotonic() + PASS_S_MAX
        try:
            async with asyncio.timeout(PASS_S_MAX):
                await self._passing.acquire()
        except TimeoutError:
            return Pass(errors=["another pass is still going on"])
        task = asyncio.create_task(self._run(ends))
        self._passes.add(task)
        task.add_done_callback(self._passed)
        try:
            async with asyncio.timeout(PASS_S_MAX + PASS_END_S):
                return await asyncio.shield(task)
        except TimeoutError:
            raise DatabaseUnavailable("the pass does not end: the database is away") from None

    async def close(self) -> None:
        """Wait for those that have begun."""
        if self._passes:
            await asyncio.wait(self._passes)

    async def _run(self, ends: float) -> Pass:
        engine = await self._make_engine()
        return await engine.run_pass(limit_s=ends - monotonic(), stop=self._stopping)

    def _passed(self, task: asyncio.Task[Pass]) -> None:
        self._passes.discard(task)
        self._passing.release()
        if not task.cancelled():
            task.exception()  # somebody may have stopped waiting for it
