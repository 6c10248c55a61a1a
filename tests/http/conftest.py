"""The doors on a real port, over a real database, with a transport that does as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from postroom import Room
from postroom.email.delivery import Delivery
from postroom.email.transports import Failover
from postroom.http import app
from postroom.http.doors import Doors
from postroom.http.server import serve
from tests.queue.conftest import Recorder

KEY = "service-key-of-the-tests"
MAIL: dict[str, Any] = {"to": "ada@example.com", "subject": "Your order", "html": "<p>Thank you</p>"}
SEND = "/functions/v1/send-email"
PROCESS = "/functions/v1/process-email-queue"


@dataclass
class Served:
    """What a test of the doors holds."""

    room: Room
    recorder: Recorder
    client: httpx.AsyncClient
    url: str
    stop: asyncio.Event
    doors: Doors

    async def send(self, **fields: Any) -> httpx.Response:
        """POST send-email with a whole e-mail, changed or widened by these fields; None takes one out."""
        body = {name: value for name, value in (MAIL | fields).items() if value is not ...}
        return await self.client.post(SEND, json=body)

    async def rows(self) -> list[Any]:
        """The whole queue, oldest first."""
        return await self.room.database.fetch("SELECT * FROM email_queue ORDER BY created_at")

    async def set(self, key: str, value: str) -> None:
        """Change a setting."""
        await self.room.database.execute("SELECT postroom.set_setting($1, $2)", key, value)


@asynccontextmanager
async def serving(
    room: Room, *, key: str | None = KEY, real_transport: bool = False
) -> AsyncIterator[Served]:
    """
    The doors of a room, on a free port, while the block runs.

    Args:
        key: What the client shows.
        real_transport: The one of the room's settings, not the recorder.
    """
    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    recorder = Recorder()
    await room.open()
    if not real_transport:
        room._delivery = Delivery(room.emails, Failover([recorder]), room.pauses)
    served = app(room)
    task = asyncio.create_task(serve(served, "127.0.0.1", 0, ready=address.set_result, stop=stop))
    task.add_done_callback(lambda _: address.done() or address.cancel())
    try:
        url = await address
    except asyncio.CancelledError:
        await task
        raise
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
            yield Served(room, recorder, client, url, stop, served.state.doors)
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


def settings_of(database_url: str, tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Settings of a room whose doors are tested."""
    given: dict[str, Any] = {
        "database_url": database_url,
        "service_key": KEY,
        "sender": "shop@example.com",
        "transport": f"maildir:{tmp_path / 'mail'}",
    }
    return given | more


@pytest.fixture
async def served(database_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    """The doors over a fresh database."""
    async with Room(**settings_of(database_url, tmp_path)) as room, serving(room) as one:
        yield one
