"""The first e-mails after an upgrade, under the limits that are set by default."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from postroom.database.connect import Database
from postroom.database.migrate import migrate
from tests.queue.conftest import House, Recorder
from tests.upgrade.conftest import Project


@pytest.fixture
async def upgraded(project: Project) -> AsyncIterator[House]:
    """A hand-made project after its upgrade, and a recorder as the way out."""
    await migrate(project.url)
    database = await Database.open(project.url)
    yield House(database, Recorder())
    await database.close()


async def test_the_limits_keep_their_books_in_a_hand_made_table(upgraded: House) -> None:
    """Its window_end is NOT NULL: no start could be written down, so no e-mail went out at all."""
    await upgraded.engine().run_pass(until_nothing_due=True)
    assert upgraded.recorder.handed_over
    taken = await upgraded.database.fetchval(
        "SELECT count FROM rate_limit_counters WHERE key = 'email:global' AND taken_total > 0"
    )
    assert taken == 100


async def test_a_drain_ends_with_the_error_where_the_database_refuses_each_start(upgraded: House) -> None:
    """Nothing is handed over, and the rows are given back; a drain went round and round for ever."""
    await upgraded.database.execute(
        "ALTER TABLE rate_limit_counters ADD CONSTRAINT none_today CHECK (count < 0) NOT VALID"
    )
    async with asyncio.timeout(20):
        with pytest.raises(asyncpg.CheckViolationError, match="none_today"):
            await upgraded.engine().run_pass(until_nothing_due=True)
    assert upgraded.recorder.handed_over == []
    assert (
        await upgraded.database.fetchval("SELECT count(*) FROM email_queue WHERE leased_by IS NOT NULL") == 0
    )
