"""What the routes share: the room, the keys, and the workers of this process that serve requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from starlette.requests import Request

from postroom import log
from postroom.email.direct import DirectSends
from postroom.email.enqueue import QueueableEmail, enqueue
from postroom.errors import DatabaseUnavailable
from postroom.http.auth import Keyring
from postroom.http.bodies import StrangersBodies
from postroom.http.exposition import Exposition
from postroom.http.passes import Passes
from postroom.http.readiness import Readiness
from postroom.queue.engine import Engine
from postroom.queue.line import Line
from postroom.room import Room
from postroom.webhooks.intake import Intake
from postroom.webhooks.store import WebhookStore

_log = log.get_logger()


class Doors:
    """
    One application's state.

    Attributes:
        sources: Who may send webhooks, by name.
        public_url: The address that providers call, without a slash at its end.
        stopping: Set when the server is about to end: nothing new is begun.
        queueing: Where e-mails wait to be queued together.
        strangers_bodies: How much of the events' bodies is held at once.
        exposition: What /metrics says.

    Raises:
        ConfigError: A source in postroom.toml is wrong.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.keyring = Keyring(room)
        self.readiness = Readiness(room)
        self.sources = room.sources
        self.public_url = (room.settings.public_url or "http://localhost").rstrip("/")
        self.stopping = asyncio.Event()
        self.queueing: Line[QueueableEmail, UUID] = Line(self._enqueue)
        self.strangers_bodies = StrangersBodies()
        self.exposition = Exposition(room)
        self._direct: DirectSends | None = None
        self._intake: Intake | None = None
        self._making = asyncio.Lock()
        self.email_passes = Passes(room, self._email_engine, self.stopping)
        self.webhook_passes = Passes(room, self._webhook_engine, self.stopping)
        self._opened_here = False

    async def open(self) -> None:
        """Get ready; a database that is away is no reason not to serve."""
        self._opened_here = not self.room.is_open
        try:
            await (await self.direct_sends()).start()
            await self.keyring.own_hash()
        except DatabaseUnavailable as error:
            _log.warning("database.away", queue="email", error=str(error))

    async def close(self) -> None:
        """End what was begun."""
        self.stopping.set()
        await self.email_passes.close()
        await self.webhook_passes.close()
        await self.queueing.close()
        if self._intake is not None:
            await self._intake.close()
        direct, self._direct = self._direct, None
        if direct is not None:
            await direct.close()
        if self._opened_here:
            await self.room.close()

    async def direct_sends(self) -> DirectSends:
        """What attempts e-mails at once."""
        await self.room.open()
        async with self._making:
            if self._direct is None:
                self._direct = self.room.direct_sends()
        return self._direct

    async def _enqueue(self, emails: Sequence[QueueableEmail]) -> list[UUID]:
        await self.room.open()
        return await enqueue(self.room.database, emails)

    async def _email_engine(self) -> Engine[Any]:
        return self.room.email_engine()

    async def _webhook_engine(self) -> Engine[Any]:
        await self.room.prepare_handlers()
        return self.room.webhook_engine()

    async def intake(self) -> Intake:
        """
        What stores webhook events.

        Raises:
            DatabaseUnavailable: The database is away.
        """
        if self._intake is None:
            await self.room.open()
            self._intake = Intake(WebhookStore(self.room.database))
        return self._intake


def doors_of(request: Request) -> Doors:
    """The state of the application that serves this request."""
    doors: Doors = request.app.state.doors
    return doors
