"""A worker of the test's own process over a real database: its way out is given by URL, as users give it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from postroom import Room
from tests.journey.mails import SENDER
from tests.support.waiting import until

SHORT = {f"{step}_timeout_s": 1.0 for step in ("greeting", "ehlo", "mail", "rcpt", "data", "block", "final")}
UNLIMITED = {"email.limit.global": "off", "email.limit.recipient": "off", "email.backoff": "50ms"}


@dataclass
class House:
    """A database and its settings, before and while a worker works on it."""

    room: Room

    async def queue(self, subject: str, html: str = "<p>Hi</p>") -> UUID:
        """Queue one mail by a plain INSERT."""
        return UUID(
            str(
                await self.room.database.fetchval(
                    "INSERT INTO email_queue (to_email, subject, html) VALUES ($1, $2, $3) RETURNING id",
                    "ada@example.com",
                    subject,
                    html,
                )
            )
        )

    async def row(self, email_id: UUID) -> Any:
        """What the table says of one mail."""
        return await self.room.database.fetchrow("SELECT * FROM email_queue WHERE id = $1", email_id)

    async def settled(self, email_id: UUID) -> Any:
        """Wait until a mail is neither pending nor in flight; its row."""

        async def is_settled() -> bool:
            return (await self.row(email_id))["status"] not in ("pending", "processing")

        await until(is_settled)
        return await self.row(email_id)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker that attempts one mail at a time, while the block runs."""
        stop = asyncio.Event()
        task = asyncio.create_task(self.room.email_engine().run(stop))
        try:
            yield
        finally:
            stop.set()
            await task


@asynccontextmanager
async def house_of(database_url: str, transport: str, **policy: str) -> AsyncIterator[House]:
    """A house with one way out and short waits for servers."""
    settings: dict[str, Any] = {"sender": SENDER, "concurrency": 1, "smtp": SHORT}
    async with Room(database_url=database_url, transport=transport, **settings) as room:
        for key, value in {**UNLIMITED, **policy}.items():
            await room.database.execute("SELECT postroom.set_setting($1, $2)", key, value)
        yield House(room)
