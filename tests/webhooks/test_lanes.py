"""Lanes: events of one object go one after the other, in the provider's order; others beside them."""

from __future__ import annotations

from typing import Any

import pytest

from postroom import PermanentFailure, Room
from postroom.queue.explain import Explanation, explain
from postroom.queues import QUEUES
from postroom.testing import Delivered, deliver

STRIPE = {"secrets": ["whsec_of_the_tests"], "lane": "object", "lane_order": "at"}


def shop(database_url: str, **source: str) -> tuple[Room, list[str]]:
    """A room whose handler notes what it gets, and refuses what is called `bad`."""
    room = Room(database_url=database_url, webhooks={"stripe": {**STRIPE, **source}})
    handled: list[str] = []

    @room.on("stripe", name="note")
    async def note(event: Any, _: Any) -> None:
        if event.event_id == "bad":
            raise PermanentFailure("never")
        handled.append(event.event_id)

    return room, handled


async def send(room: Room, event_id: str, at: int, of: str = "order 1", attempts: int = 1) -> Delivered:
    """An event of an object."""
    return await deliver(room, "stripe", {"id": event_id, "at": at, "object": of}, attempts=attempts)


async def explained(room: Room, one: Delivered) -> Explanation:
    """What `explain` says of it while a worker is there."""
    assert one.id is not None
    await room.database.execute(
        "INSERT INTO postroom.workers (id, queue, host, pid, version) "
        "VALUES (gen_random_uuid(), 'webhook', 'here', 1, '')"
    )
    found = await explain(room.database, QUEUES, one.id)
    assert found is not None
    return found


async def test_the_providers_order_counts_not_that_of_arrival(database_url: str) -> None:
    """What came late and is older goes first."""
    room, handled = shop(database_url)
    async with room:
        for event_id, at in (("third", 3), ("first", 1)):
            assert (await send(room, event_id, at, attempts=0)).status == "pending"
        await send(room, "second", 2)
    assert handled == ["first", "second", "third"]


async def test_a_dead_letter_holds_those_behind_it_and_no_others(database_url: str) -> None:
    """Until a person has decided; `explain` names it and what to do."""
    room, handled = shop(database_url)
    async with room:
        bad = await send(room, "bad", 1)
        assert bad.status == "dead_letter"
        behind = await send(room, "behind", 2)
        assert (behind.status, behind.attempts) == ("pending", 0)
        assert (await send(room, "of another", 3, of="order 2")).status == "processed"
        found = await explained(room, behind)
        assert found.reason == "lane"
        assert f"postroom dead-letters discard {bad.id}" in "\n".join(found.why)
        await room.database.execute("SELECT postroom.discard_dead_webhooks(ARRAY[$1::uuid])", bad.id)
        assert (await send(room, "last", 4)).status == "processed"
    assert handled == ["of another", "behind", "last"]


async def test_a_dead_letter_lets_those_behind_it_pass_where_the_source_says_so(database_url: str) -> None:
    """lane_dead_letter = "pass"."""
    room, handled = shop(database_url, lane_dead_letter="pass")
    async with room:
        assert (await send(room, "bad", 1)).status == "dead_letter"
        assert (await send(room, "behind", 2)).status == "processed"
    assert handled == ["behind"]


@pytest.mark.parametrize("of", ["order 1", ""])
async def test_an_event_that_names_no_object_waits_for_nobody(database_url: str, of: str) -> None:
    """It is in no lane."""
    room, handled = shop(database_url)
    async with room:
        await send(room, "bad", 1, of=of)
        await send(room, "next", 2, of=of)
    assert handled == ([] if of else ["next"])
