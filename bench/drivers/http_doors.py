"""
The HTTP doors as a contender: one `postroom serve`, with another way to store where the mode says so.

Settings (JSON, first argument): database_url, secret (of Stripe's events, and the bearer key), mode:
`grouped` as it is; `single` an insert for each; `none` answers without a database. At the word it says
where it serves, until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import uvloop

from postroom import log
from postroom.cli.garbage import collect_seldom
from postroom.http import app
from postroom.http.doors import Doors
from postroom.http.server import serve
from postroom.room import Room

SINGLE_INSERTS_AT_ONCE = 10


class EachAlone:
    """In place of a line: a statement for each, some at once."""

    def __init__(self, store: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]) -> None:
        self._store = store
        self._free = asyncio.Semaphore(SINGLE_INSERTS_AT_ONCE)

    async def put(self, item: object, size_bytes: int) -> Any:  # noqa: ARG002
        """Store it."""
        async with self._free:
            return (await self._store([item]))[0]

    async def close(self) -> None:
        """Nothing is under way when the server has ended."""


class Nowhere:
    """In place of a line: stores nothing."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def put(self, item: object, size_bytes: int) -> Any:  # noqa: ARG002
        """Take it for stored."""
        return self._answer

    async def close(self) -> None:
        """Nothing is open."""


async def replace_lines(doors: Doors, mode: str) -> None:
    """Let the doors store in another way."""
    intake: Any = await doors.intake()
    email_doors: Any = doors
    if mode == "single":
        intake._line = EachAlone(intake._store)
        email_doors.queueing = EachAlone(email_doors._enqueue)
    if mode == "none":
        intake._line = Nowhere(True)
        email_doors.queueing = Nowhere(uuid4())


async def main(settings: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    room = Room(
        database_url=settings["database_url"],
        stripe_webhook_secret=settings["secret"],
        service_key=settings["secret"],
        log_format="json",
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
        await replace_lines(made.state.doors, settings["mode"])
        await serve(made, "127.0.0.1", 0, ready=address.set_result, stop=stop)
    await obeying


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
