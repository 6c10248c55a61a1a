"""
postroom as a contender: one worker process, as `postroom worker --queues email` runs it.

Settings (JSON, first argument): database_url, transport (`none` does nothing), sender, concurrency, mode:
`drain` does what is due when the word comes, `wait` works until its standard input ends. With `workers` it is
so many of them, and this process only passes the word on.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
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
            await words.read()  # whoever asked may look at the process now
        else:
            stop = asyncio.Event()
            working = asyncio.create_task(engine.run(stop))
            print("{}", flush=True)
            await words.read()
            stop.set()
            await working


def main_of_several(settings: dict[str, Any]) -> None:
    """The same with several workers: ready when all are, and done when all are."""
    command = [sys.executable, __file__, json.dumps(settings | {"workers": 1})]
    pipe = subprocess.PIPE
    workers = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(settings["workers"])
    ]

    def lines() -> list[str]:
        return [worker.stdout.readline() for worker in workers if worker.stdout is not None]

    lines()
    print("ready", flush=True)
    word = sys.stdin.readline()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(word)
        worker.stdin.flush()
    said = [json.loads(line) for line in lines()]
    print(json.dumps({key: sum(each[key] for each in said) for key in said[0]}), flush=True)
    sys.stdin.read()
    for worker in workers:
        worker.communicate()


if __name__ == "__main__":
    settings_given = json.loads(sys.argv[1])
    if settings_given.get("workers", 1) > 1:
        main_of_several(settings_given)
    else:
        uvloop.run(main(settings_given))
