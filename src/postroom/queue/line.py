"""
The line between a door and the database: what has been stored is answered, what was not is not.

Concurrent requests share one statement. There is no timer: whatever has come when the last one has ended goes
next, so a single request waits for nobody, and a thousand at once cost a few commits.

A second statement goes beside a full one alone, else both hold half: two at once took 9 webhook events each
from 32 clients in place of 15, 67 us of PostgreSQL an event in place of 53, and a tenth fewer events a second
(docs/decisions/0019). Beside a full one it keeps small ones from waiting for a body of 10 MiB.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from postroom.errors import DatabaseUnavailable, PostroomError

LINE_MAX = 2_000
LINE_BYTES_MAX = 64 * 1024 * 1024
"""What may wait; beyond, the door says so at once."""

BATCH_MAX = 200
BATCH_BYTES_MAX = 1024 * 1024
"""A batch that reaches either is full. A longer one is a batch of its own."""

STATEMENTS_MAX = 2
"""At once."""

Item = TypeVar("Item")
Stored = TypeVar("Stored")


class LineFull(PostroomError):
    """Too much waits to be stored: come again."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Stored]):
    item: Item
    size_bytes: int
    stored: asyncio.Future[Stored] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Line(Generic[Item, Stored]):
    """
    Stores what comes in batches.

    Args:
        store: Stores a batch in one statement, and returns what it has to say of each, in their order. It
            raises DatabaseUnavailable where they are not known to be stored, and anything else where one of
            them is refused: then the others are stored without it.
    """

    def __init__(self, store: Callable[[Sequence[Item]], Awaitable[Sequence[Stored]]]) -> None:
        self._store = store
        self._line: deque[_Waiting[Item, Stored]] = deque()
        self._held = 0
        self._held_bytes = 0
        self._writers: set[asyncio.Task[None]] = set()
        self._full_batches = 0

    async def put(self, item: Item, size_bytes: int) -> Stored:
        """
        Return once it is stored.

        Args:
            size_bytes: What it takes while it waits, about.

        Raises:
            LineFull: Too much waits.
            DatabaseUnavailable: It is not known to be stored.
            Whatever `store` raises of it: The database refuses it.
        """
        if self._held >= LINE_MAX or (self._held and self._held_bytes + size_bytes > LINE_BYTES_MAX):
            raise LineFull(f"{self._held:,} others wait to be stored")
        self._held += 1
        self._held_bytes += size_bytes
        waiting: _Waiting[Item, Stored] = _Waiting(item, size_bytes)
        self._line.append(waiting)
        self._begin_writing()
        # Who stops waiting takes nothing back: what is in the line is stored, and counts until then.
        return await waiting.stored

    async def close(self) -> None:
        """Store what is in the line."""
        while self._writers:
            await asyncio.wait(self._writers)

    def _begin_writing(self) -> None:
        if self._line and len(self._writers) == self._full_batches < STATEMENTS_MAX:
            self._writers.add(asyncio.create_task(self._write()))

    async def _write(self) -> None:
        writer = asyncio.current_task()
        assert writer is not None
        try:
            while batch := self._next_batch():
                size_bytes = sum([waiting.size_bytes for waiting in batch])
                is_full = len(batch) >= BATCH_MAX or size_bytes >= BATCH_BYTES_MAX
                self._full_batches += is_full
                self._begin_writing()
                try:
                    await self._keep(batch)
                finally:
                    self._full_batches -= is_full
                self._held -= len(batch)
                self._held_bytes -= size_bytes
                if len(self._writers) - 1 > self._full_batches:
                    break  # the one that is not full takes what waits
        finally:
            # In the step in which the line was seen to be empty: by a callback of the task, what comes in
            # between would find a writer, and be written by none.
            self._writers.discard(writer)

    def _next_batch(self) -> list[_Waiting[Item, Stored]]:
        batch: list[_Waiting[Item, Stored]] = []
        size_bytes = 0
        while self._line and len(batch) < BATCH_MAX:
            size_bytes += self._line[0].size_bytes
            if batch and size_bytes > BATCH_BYTES_MAX:
                break
            batch.append(self._line.popleft())
        return batch

    async def _keep(self, batch: list[_Waiting[Item, Stored]]) -> None:
        try:
            answers = await self._store([waiting.item for waiting in batch])
        except DatabaseUnavailable as error:
            for waiting in batch:
                if not waiting.stored.done():
                    # One for each: an exception gathers the traces of all who raise it.
                    waiting.stored.set_exception(type(error)(*error.args))
        except Exception as error:
            # One that the database refuses must not take the others with it.
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._keep(batch[:middle])
                await self._keep(batch[middle:])
            elif not batch[0].stored.done():
                batch[0].stored.set_exception(error)
        else:
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.stored.done():
                    waiting.stored.set_result(answer)
