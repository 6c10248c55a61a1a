"""Connections to a migrated database, without limits unless a test sets one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from tests.sql.session import QUEUES, Queue, Session

Connect = Callable[[], Awaitable[Session]]


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    """Opens one more connection to the test's database."""
    opened: list[Session] = []

    async def open_one() -> Session:
        opened.append(Session(await asyncpg.connect(database_url)))
        return opened[-1]

    yield open_one
    for session in opened:
        session.connection.terminate()


@pytest.fixture
async def sql(connect: Connect) -> Session:
    """A connection to a fresh database whose limits are off."""
    session = await connect()
    await session.no_limits()
    return session


@pytest.fixture(params=QUEUES, ids=str)
def queue(request: pytest.FixtureRequest) -> Queue:
    """Both queues, one after the other: what holds for e-mails holds for webhooks."""
    chosen: Queue = request.param
    return chosen
