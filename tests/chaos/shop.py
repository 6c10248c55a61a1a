"""The application under test (`--app tests.chaos.shop:room`): handlers whose effects are counted."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any

from postroom import Event, Room

room = Room()

FAILS = float(os.environ.get("POSTROOM_TEST_HANDLER_FAILS", "0.02"))
SLOW = float(os.environ.get("POSTROOM_TEST_HANDLER_SLOW", "0.03"))
"""Shares of the runs that fail after their write, and that take up to a second."""


class Unlucky(Exception):
    """What a handler raises now and then: its write is undone, and it runs again."""


@room.on("stripe", name="async")
async def write(event: Event, db: Any) -> None:
    """An effect by asyncpg."""
    await db.execute("INSERT INTO chaos.effects (handler, event_id) VALUES ('async', $1)", event.event_id)
    if random.random() < SLOW:
        await asyncio.sleep(random.random())
    if random.random() < FAILS:
        raise Unlucky


@room.on("stripe", name="plain")
def write_plainly(event: Event, db: Any) -> None:
    """An effect by psycopg, in a thread."""
    db.execute("INSERT INTO chaos.effects (handler, event_id) VALUES ('plain', %s)", [event.event_id])
    if random.random() < SLOW:
        time.sleep(random.random())
    if random.random() < FAILS:
        raise Unlucky
