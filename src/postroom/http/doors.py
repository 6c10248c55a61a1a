"""What the routes share: the room, the keys, and the workers of this process that serve requests."""

from __future__ import annotations

import asyncio
from time import monotonic

from starlette.requests import Request

from postroom import log
from postroom.email.direct import DirectSends
from postroom.errors import DatabaseUnavailable
from postroom.http.auth import Keyring
from postroom.http.readiness import Readiness
from postroom.queue.engine import Pass
from postroom.room import Room
from postroom.webhooks.intake import Intake
from postroom.webhooks.source_settings import read_sources
from postroom.webhooks.store import WebhookStore

PASS_S_MAX = 50.0
"""A pass claims no more after this time: whoever calls it each minute finds it done."""

PASS_END_S = 8.0
"""What a pass has to end in, beyond that; it goes on by itself where it takes longer."""

_log = log.get_logger()


class Doors:
    """
    One application's state.

    Attributes:
        sources: Who may send webhooks, by name.
        stopping: Set when the server is about to end: nothing new is begun.

    Raises:
        ConfigError: A source in postroom.toml is wrong.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.keyring = Keyring(room)
        self.readiness = Readiness(room)
        self.sources = read_sources(room.settings)
        self.stopping = asyncio.Event()
        self._direct: DirectSends | None = None
        self._intake: Intake | None = None
        self._making = asyncio.Lock()
        self._passing = asyncio.Lock()
        self._passes: set[asyncio.Task[Pass]] = set()
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
        if self._passes:
            await asyncio.wait(self._passes)
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

    async def intake(self) -> Intake:
        """
        What stores webhook events.

        Raises:
            DatabaseUnavailable: The database is away.
        """
        await self.room.open()
        if self._intake is None:
            self._intake = Intake(WebhookStore(self.room.database))
        return self._intake

    async def run_pass(self) -> Pass:
        """
        One pass over the e-mails that are due; one at a time.

        Raises:
            DatabaseUnavailable: The database is away; what was begun is settled when it is back.
        """
        await self.room.open()
        ends = monotonic() + PASS_S_MAX
        try:
            async with asyncio.timeout(PASS_S_MAX):
                await self._passing.acquire()
        except TimeoutError:
            return Pass(errors=["another pass is still going on"])
        engine = self.room.email_engine()
        task = asyncio.create_task(engine.run_pass(limit_s=ends - monotonic(), stop=self.stopping))
        self._passes.add(task)
        task.add_done_callback(self._passed)
        try:
            async with asyncio.timeout(PASS_S_MAX + PASS_END_S):
                return await asyncio.shield(task)
        except TimeoutError:
            raise DatabaseUnavailable("the pass does not end: the database is away") from None

    def _passed(self, task: asyncio.Task[Pass]) -> None:
        self._passes.discard(task)
        self._passing.release()
        if not task.cancelled():
            task.exception()  # somebody may have stopped waiting for it


def doors_of(request: Request) -> Doors:
    """The state of the application that serves this request."""
    doors: Doors = request.app.state.doors
    return doors
