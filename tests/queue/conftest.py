"""An engine over a real database, with a transport that records what it was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from postroom.database.connect import Database
from postroom.email.delivery import Delivery
from postroom.email.message import OutgoingEmail
from postroom.email.store import EmailStore
from postroom.email.transports.base import Start
from postroom.email.transports.failover import Failover
from postroom.queue.engine import Engine
from postroom.queue.pauses import Pauses

Behaviour = Callable[[OutgoingEmail], Awaitable[str]]


@dataclass(eq=False)
class Recorder:
    """A transport that keeps a ledger; `behave` may raise, wait, or answer."""

    name: str = "recorder"
    handed_over: list[UUID] = field(default_factory=list)
    behave: Behaviour | None = None

    async def send(self, email: OutgoingEmail, start: Start) -> str:
        await start()
        self.handed_over.append(email.id)
        return await self.behave(email) if self.behave is not None else "250 2.0.0 Ok"

    async def close(self) -> None:
        return None


@dataclass
class House:
    """What a test of the engine holds."""

    database: Database
    recorder: Recorder

    def engine(self, recorder: Recorder | None = None, **options: Any) -> Engine[OutgoingEmail]:
        """One more worker."""
        delivery = Delivery(
            EmailStore(self.database, sender="shop@example.com"),
            Failover([recorder or self.recorder]),
            Pauses(self.database),
        )
        return Engine(delivery, self.database, **options)

    @asynccontextmanager
    async def working(self, *engines: Engine[OutgoingEmail]) -> AsyncIterator[asyncio.Event]:
        """Workers that run, and drain at the end of the block."""
        stop = asyncio.Event()
        tasks = [asyncio.create_task(engine.run(stop)) for engine in engines]
        try:
            yield stop
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def queue(self, count: int = 1, *, to: str = "u%s@example.com", **columns: object) -> list[UUID]:
        """Insert e-mails as a plain caller does; `%s` in `to` is their number."""
        names = "".join(f", {name}" for name in columns)
        places = "".join(f", ${place}" for place in range(3, 3 + len(columns)))
        rows = await self.database.fetch(
            f"""
            INSERT INTO email_queue (to_email, subject, html{names})
            SELECT replace($2, '%s', n::text), 'subject ' || n, '<p>Hi</p>'{places}
            FROM generate_series(1, $1) AS n
            RETURNING id
            """,
            count,
            to,
            *columns.values(),
        )
        return [row["id"] for row in rows]

    async def rows(self) -> list[Any]:
        """The whole queue, oldest first."""
        return await self.database.fetch("SELECT * FROM email_queue ORDER BY created_at, to_email")

    async def set(self, key: str, value: str) -> None:
        """Change a setting."""
        await self.database.execute("SELECT postroom.set_setting($1, $2)", key, value)

    async def until(self, condition: str, *, limit_s: float = 20.0) -> None:
        """Wait until a condition in SQL is true."""
        async with asyncio.timeout(limit_s):
            while not await self.database.fetchval(f"SELECT {condition}"):
                await asyncio.sleep(0.02)

    async def until_settled(self, *, limit_s: float = 20.0) -> None:
        """Wait until no e-mail is pending or in flight."""
        await self.until(
            "NOT EXISTS (SELECT FROM email_queue WHERE status IN ('pending', 'processing'))", limit_s=limit_s
        )


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    """A database without limits, and a recorder as the way out."""
    database = await Database.open(database_url)
    one = House(database, Recorder())
    await one.set("email.limit.global", "off")
    await one.set("email.limit.recipient", "off")
    yield one
    await database.close()
