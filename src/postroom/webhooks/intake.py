"""The door's line of webhook events; what a line is stands in queue/line.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from postroom import log
from postroom.errors import DatabaseUnavailable, PostroomError
from postroom.failpoints import reach
from postroom.queue.line import Line, LineFull
from postroom.webhooks.event import IncomingEvent

_log = log.get_logger()


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
        self._line = Line(self._store)

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
        try:
            return await self._line.put(event, event.size_bytes)
        except (LineFull, DatabaseUnavailable):
            raise
        except Exception as error:
            name = type(error).__name__
            _log.error("webhook.not_stored", id=str(event.id), source=event.source, error=name)
            raise NotStored("the database refuses it") from None

    async def close(self) -> None:
        """Store what is in the line."""
        await self._line.close()

    async def _store(self, events: Sequence[IncomingEvent]) -> list[bool]:
        reach("store.before")
        stored = await self._keeper.keep(events)
        reach("store.after")
        return [event.id in stored for event in events]
