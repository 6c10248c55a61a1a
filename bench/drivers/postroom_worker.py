"""
postroom as a contender: one worker process, as `postroom worker --queues email` runs it.

Settings (JSON, first argument): database_url, transport (`none` does nothing), sender, concurrency, mode:
`drain` does what is due when the word comes, `wait` works until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

from postroom import log
from postroom.cli.garbage import collect_seldom
from postroom.email.message import OutgoingEmail
from postroom.email.transports.base import Start
from postroom.room import Room


class Nothing:
    """A transport that begins each attempt and does nothing."""

    name = "maildir:none"

    async def send(self, email: OutgoingEmail, start: Start) -> str:  # noqa: ARG002
        await start()
        return "250 ok"

    async def close(self) -> None:
        pass


async def main(settings: dict[str, Any]) -> None:
    """Get ready, wait for the word, work, and say what came of it."""
    room = Room(
        database_url=settings["database_url"],
        transport="maildir:none" if settings["transport"] == "none" else settings["transport"],
        sender=settings["sender"],
        concurrency=settings["concurrency"],
        log_format="json",
    )
    log.configure(room.settings.log_format, room.settings.log_level)
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    async with room:
        engine = room.email_engine()
        if settings["transport"] == "none":
            room.delivery.transport.transports = (Nothing(),)
        collect_seldom()
        print("ready", flush=True)
        await words.readline()
        began_cpu_s = time.process_time()
        if settings["mode"] == "drain":
            done = await engine.run_pass(until_nothing_due=True)
            cpu_s = time.process_time() - began_cpu_s
            print(json.dumps({"sent": done.done, "cpu_s": cpu_s}), flush=True)
        else:
            stop = asyncio.Event()
            working = asyncio.create_task(engine.run(stop))
            print("{}", flush=True)
            await words.read()
            stop.set()
            await working


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
