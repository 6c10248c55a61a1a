"""
The webhook door as a contender: one `postroom serve`, with another way to keep events where the mode says so.

Settings (JSON, first argument): database_url, secret, mode: `grouped` as it is; `single` an insert for each
event; `none` answers without a database. At the word it says where it serves, until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import uvloop

from postroom import log
from postroom.cli.garbage import collect_seldom
from postroom.http import app
from postroom.http.server import serve
from postroom.room import Room
from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.store import WebhookStore

SINGLE_INSERTS_AT_ONCE = 10


class EachAlone:
    """An insert for each event, some at once."""

    def __init__(self, store: WebhookStore) -> None:
        self._store = store
        self._free = asyncio.Semaphore(SINGLE_INSERTS_AT_ONCE)

    async def keep(self, event: IncomingEvent) -> bool:
        """Store it."""
        async with self._free:
            return event.id in await self._store.keep([event])

    async def close(self) -> None:
        """Nothing is under way when the server has ended."""


class Nowhere:
    """Keeps nothing."""

    async def keep(self, event: IncomingEvent) -> bool:  # noqa: ARG002
        """Take it for new."""
        return True

    async def close(self) -> None:
        """Nothing is open."""


async def main(settings: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    room = Room(
        database_url=settings["database_url"], stripe_webhook_secret=settings["secret"], log_format="json"
    )
    log.configure(room.settings.log_format, room.settings.log_level)
    made = app(room)
    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)

    async def obey() -> None:
        await address
        collect_seldom()
        print("ready", flush=True)
        await words.readline()
        print(json.dumps({"url": await address, "pid": os.getpid()}), flush=True)
        await words.read()
        stop.set()

    obeying = asyncio.create_task(obey())
    async with room:
        if settings["mode"] == "single":
            made.state.doors._intake = EachAlone(WebhookStore(room.database))
        if settings["mode"] == "none":
            made.state.doors._intake = Nowhere()
        await serve(made, "127.0.0.1", 0, ready=address.set_result, stop=stop)
    await obeying


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
