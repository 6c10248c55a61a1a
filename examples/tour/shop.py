"""A shop's handlers: what a user's program looks like. The tour copies it beside its postroom.toml."""

from __future__ import annotations

import asyncio

import asyncpg

from postroom import Event, Room

room = Room()


@room.on("stripe", "checkout.*", name="ship")
async def ship(event: Event, db: asyncpg.Connection) -> None:
    """Note what is to be shipped, and queue the receipt: both, or neither."""
    order = event.payload["data"]["object"]["id"]
    await db.execute("INSERT INTO shipments (order_id) VALUES ($1)", order)
    await room.send(to=f"{order}@example.com", subject="Your order", text="Thank you", connection=db)
    if event.type == "checkout.flaky" and event.attempt == 1:
        raise ConnectionError("the warehouse does not answer")
    await asyncio.sleep(0.1)  # what a real handler does; here it is the middle in which it is killed
