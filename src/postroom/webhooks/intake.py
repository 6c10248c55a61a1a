"""
The line between the door and the database: what has been kept is answered, what was not is not.

Concurrent requests share one insert. There is no timer: whatever has come when the last insert has ended goes
next, so a single request waits for nobody, and a thousand at once cost a few commits.

A second insert goes beside a full one alone, else both hold half: two at once took 9 events each from 32
clients in place of 15, 67 us of PostgreSQL an event in place of 53, and a tenth fewer events a second
(docs/decisions/0019). Beside a full one it keeps small events from waiting for a body of 10 MiB.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from postroom import log
from postroom.errors import DatabaseUnavailable, PostroomError
from postroom.failpoints import reach
from postroom.webhooks.event import IncomingEvent

LINE_EVENTS_MAX = 2_000
LINE_BYTES_MAX = 64 * 1024 * 1024
"""What may wait; beyond, the door answers 503 and the provider comes again."""

BATCH_EVENTS_MAX = 200
BATCH_BYTES_MAX = 1024 * 1024
"""A batch that reaches either is full. A longer event is a batch of its own."""

WRITERS_MAX = 2
"""Inserts at once."""

_log = log.get_logger()


Waiting = tuple[IncomingEvent, asyncio.Future[bool]]


class LineFull(PostroomError):
    """Too much waits to be stored: answer 503."""


class NotStored(PostroomError):
    """The database refuses this event, such as by a trigger of the application's own: answer 503."""


class Keeper(Protocol):
    """What stores a batch; see WebhookStore.keep."""

    async def keep(self, events: Sequence[IncomingEvent]) -> set[UUID]:
        """Store a batch in one statement; returns the ids that are stored, without those seen before."""
        ...


class Intake:
    """
    Stores events in batches.

    Args:
        keeper: Where to.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._line: deque[Waiting] = deque()
        self._held = 0
        self._held_bytes = 0
        self._writers: set[asyncio.Task[None]] = set()
        self._full_batches = 0

    async def keep(self, event: IncomingEvent) -> bool:
        """
        Return once the event is safe.

        Returns:
            Whether it is new; False for one that was stored before.

        Raises:
            LineFull: Too much waits.
            DatabaseUnavailable: It is not known to be stored.
            NotStored: The database refuses it.
        """
        if self._held >= LINE_EVENTS_MAX or (
            self._held and self._held_bytes + event.size_bytes > LINE_BYTES_MAX
        ):
            raise LineFull(f"{self._held} events wait to be stored")
        self._held += 1
        self._held_bytes += event.size_bytes
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._line.append((event, future))
        self._begin_writing()
        # Who stops waiting takes nothing back: what is in the line is stored, and counts until then.
        return await future

    async def close(self) -> None:
        """Store what is in the line."""
        while self._writers:
            await asyncio.wait(self._writers)

    def _begin_writing(self) -> None:
        if self._line and len(self._writers) == self._full_batches < WRITERS_MAX:
            self._writers.add(asyncio.create_task(self._write()))

    async def _write(self) -> None:
        writer = asyncio.current_task()
        assert writer is not None
        try:
            while batch := self._next_batch():
                size_bytes = sum(event.size_bytes for event, _ in batch)
                is_full = len(batch) >= BATCH_EVENTS_MAX or size_bytes >= BATCH_BYTES_MAX
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
            # In the step in which the line was seen to be empty: by a callback of the task, an event that
            # comes in between would find a writer, and be written by none.
            self._writers.discard(writer)

    def _next_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size_bytes = 0
        while self._line and len(batch) < BATCH_EVENTS_MAX:
            size_bytes += self._line[0][0].size_bytes
            if batch and size_bytes > BATCH_BYTES_MAX:
                break
            batch.append(self._line.popleft())
        return batch

    async def _keep(self, batch: list[Waiting]) -> None:
        try:
            reach("store.before")
            stored = await self._keeper.keep([event for event, _ in batch])
            reach("store.after")
        except DatabaseUnavailable as error:
            _fail(batch, error)
        except Exception as error:
            # One that the database refuses must not take the others with it.
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._keep(batch[:middle])
                await self._keep(batch[middle:])
                return
            event = batch[0][0]
            _log.error(
                "webhook.not_stored", id=str(event.id), source=event.source, error=type(error).__name__
            )
            _fail(batch, NotStored("the database refuses it"))
        else:
            for event, future in batch:
                if not future.done():
                    future.set_result(event.id in stored)


def _fail(batch: list[Waiting], error: PostroomError) -> None:
    for _, future in batch:
        if not future.done():
            # One for each: an exception gathers the traces of all who raise it.
            future.set_exception(type(error)(*error.args))
