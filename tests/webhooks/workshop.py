"""A room with handlers over a real database, and events for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import orjson

from postroom import Room
from postroom.queue.engine import Pass
from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.request import Headers, WebhookRequest

SECRET = "whsec_of_the_tests"
EFFECTS = (
    "CREATE TABLE public.effects (handler text, event_id text, at timestamptz DEFAULT clock_timestamp())"
)
ON_EVENT = """
    CREATE FUNCTION public.on_event(payload jsonb, event_id text) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO public.effects (handler, event_id) VALUES ('sql', event_id) $$
"""


@dataclass
class Workshop:
    """What a test of handlers holds."""

    room: Room

    async def keep(
        self,
        event_id: str = "evt_1",
        event_type: str | None = "checkout.done",
        *,
        source: str = "stripe",
        body: bytes | None = None,
        headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),),
        lane: str | None = None,
        lane_place: str | None = None,
        method: str = "POST",
        query: str = "",
    ) -> UUID:
        """Store an event as the door does."""
        if body is None:
            body = orjson.dumps({"id": event_id, "type": event_type})
        target = f"/webhooks/{source}{query and f'?{query}'}"
        request = WebhookRequest(method, f"https://shop.example{target}", Headers(headers), body)
        event = IncomingEvent(uuid4(), source, event_id, event_type, request, target, lane, lane_place, True)
        await self.room.webhooks.keep([event])
        return event.id

    async def run(self) -> Pass:
        """One pass of a new worker over what is due."""
        await self.room.prepare_handlers()
        return await self.room.webhook_engine().run_pass()

    async def run_again(self) -> Pass:
        """The same after the wait for the next attempt."""
        await self.room.database.execute(
            "UPDATE webhook_retry_queue SET next_retry_at = NULL, due_at = NULL WHERE status = 'pending'"
        )
        return await self.run()

    async def row(self, event_id: str = "evt_1") -> Mapping[str, Any]:
        """An event's row."""
        row = await self.room.database.fetchrow(
            "SELECT * FROM webhook_retry_queue WHERE webhook_event_id = $1", event_id
        )
        assert row is not None
        return dict(row)

    async def effects(self) -> list[tuple[str, str]]:
        """What handlers wrote, in order: (handler, event_id)."""
        rows = await self.room.database.fetch("SELECT handler, event_id FROM effects ORDER BY at")
        return [(row["handler"], row["event_id"]) for row in rows]


@asynccontextmanager
async def open_workshop(database_url: str, *handlers: Mapping[str, Any]) -> AsyncIterator[Workshop]:
    """A workshop whose source `stripe` has these handlers in postroom.toml."""
    source = {"secrets": [SECRET], "handlers": [dict(handler) for handler in handlers]}
    async with Room(database_url=database_url, webhooks={"stripe": source}) as room:
        await room.database.execute(EFFECTS)
        await room.database.execute(ON_EVENT)
        yield Workshop(room)
