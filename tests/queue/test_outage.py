"""The database goes away and comes back: nothing is lost, and nothing that was settled is repeated."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

from postroom.database.connect import Database
from postroom.database.migrate import migrate
from postroom.email.message import OutgoingEmail
from tests.queue.conftest import House, Recorder
from tests.support.postgres import SETTINGS, running_server

# What was acknowledged must outlive the server.
DURABLE = SETTINGS.replace("synchronous_commit = off", "synchronous_commit = on")


async def test_a_database_that_is_killed_and_started_again_loses_and_repeats_nothing() -> None:
    """
    PostgreSQL is stopped at once, twice, in the middle of 400 mails.

    A mail whose outcome was in the worker's memory is settled when the server is back; the
    transport's ledger has every mail exactly once, since the worker itself never died.
    """
    with running_server(settings=DURABLE) as server:
        url = server.url_of(server.create_database())
        await migrate(url)
        database = await Database.open(url, command_timeout_s=5)
        house = House(database, Recorder())

        async def take_a_moment(_: OutgoingEmail) -> str:
            await asyncio.sleep(0.02)
            return "250 ok"

        house.recorder.behave = take_a_moment
        await house.set("email.limit.global", "off")
        await house.set("email.limit.recipient", "off")
        await house.set("lease", "3s")
        ids = await house.queue(400)
        async with house.working(house.engine(concurrency=4)):
            for count in (80, 200):
                while len(house.recorder.handed_over) < count:
                    await asyncio.sleep(0.01)
                server.stop(signal.SIGQUIT)
                await asyncio.sleep(0.5)
                server.start()
            async with asyncio.timeout(60):
                while len(set(house.recorder.handed_over)) < 400:
                    await asyncio.sleep(0.05)
        rows = await house.rows()
        await database.close()
    assert Counter(house.recorder.handed_over) == Counter(ids)
    assert {(row["status"], row["attempts"], row["error_count"]) for row in rows} == {("sent", 1, 0)}
