"""
Events for a SQL handler as a contender: stored as the door stores them, then worked off as `postroom worker`.

Settings (JSON, first argument): database_url, config (a postroom.toml), count, bytes. At the word it does
both, and says how long each took.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any
from uuid import uuid4

import uvloop

from postroom import log
from postroom.cli.garbage import collect_seldom
from postroom.queue.line import BATCH_MAX
from postroom.room import Room
from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.request import Headers, WebhookRequest


def event(number: int, size: int) -> IncomingEvent:
    """A provider's event of about so many bytes."""
    filled = json.dumps({"id": f"evt_{number}", "type": "order.paid", "note": "x" * (size - 60)})
    headers = Headers([("Content-Type", "application/json")])
    request = WebhookRequest("POST", "http://localhost/webhooks/shop", headers, filled.encode())
    return IncomingEvent(uuid4(), "shop", f"evt_{number}", "order.paid", request, "/webhooks/shop")


async def main(settings: dict[str, Any]) -> None:
    """Get ready, wait for the word, work, and say how long it took."""
    os.environ["POSTROOM_CONFIG"] = settings["config"]
    room = Room(database_url=settings["database_url"], log_format="json")
    log.configure(room.settings.log_format, room.settings.log_level)
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    async with room:
        await room.prepare_handlers()
        engine = room.webhook_engine()
        events = [event(number, settings["bytes"]) for number in range(settings["count"])]
        collect_seldom()
        print("ready", flush=True)
        await words.readline()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for first in range(0, len(events), BATCH_MAX):
            await room.webhooks.keep(events[first : first + BATCH_MAX])
        stored_s = time.perf_counter()
        done = await engine.run_pass(until_nothing_due=True)
        ended_s = time.perf_counter()
        answer = {
            "store_s": stored_s - began_s,
            "work_s": ended_s - stored_s,
            "cpu_s": time.process_time() - began_cpu_s,
            "done": done.done,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
