"""Doors that strangers knock at, with no key, over a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from postroom import Room
from tests.http.conftest import Served, serving, settings_of

STRIPE_SECRET = "whsec_of_the_hostile_tests"

SOURCES: dict[str, Any] = {
    "stripe": {"scheme": "stripe", "secrets": [STRIPE_SECRET]},
    "orders": {"scheme": "github", "secrets": ["a secret"], "lane": "order.id", "lane_order": "order.at"},
}


@pytest.fixture
async def served(database_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    """The doors over a fresh database, with a source that signs."""
    settings = settings_of(database_url, tmp_path, webhooks=SOURCES)
    async with Room(**settings) as room, serving(room, key=None) as one:
        yield one


async def connection(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of a stranger."""
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def raw(served: Served, request: bytes, *, limit_s: float = 20.0) -> bytes:
    """What the doors answer to these bytes, until they close or have nothing more to say for a while."""
    reader, writer = await connection(served)
    writer.write(request)
    answer = b""
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(limit_s):
            while more := await reader.read(65536):
                answer += more
    writer.close()
    return answer


async def taken_until_closed(served: Served, beginning: bytes, piece: bytes, *, bytes_max: int) -> int:
    """How many bytes the doors take of a stranger who does not stop, before they close; at most bytes_max."""
    reader, writer = await connection(served)
    writer.write(beginning)
    sent = 0
    closed = asyncio.create_task(reader.read())
    with suppress(ConnectionError):
        while sent < bytes_max and not closed.done():
            writer.write(piece)
            sent += len(piece)
            await asyncio.wait([asyncio.ensure_future(writer.drain()), closed], return_when="FIRST_COMPLETED")
    with suppress(ConnectionError):
        await asyncio.wait_for(closed, 20)
    writer.close()
    assert sent < bytes_max, f"{sent:,} bytes were taken"
    return sent
