"""The line between the door and the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import pytest

from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.intake import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, LINE_EVENTS_MAX, Intake, LineFull
from postroom.webhooks.request import Headers, WebhookRequest


class SlowKeeper:
    """Stores when it is told to."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.kept: list[UUID] = []

    async def keep(self, events: Sequence[IncomingEvent]) -> set[UUID]:
        """All of them are new."""
        await self.may.wait()
        self.kept += [event.id for event in events]
        return {event.id for event in events}


def event(body: bytes = b"{}") -> IncomingEvent:
    """One as small as can be."""
    request = WebhookRequest("POST", "http://localhost/webhooks/x", Headers(), body)
    return IncomingEvent(uuid4(), "x", None, None, request, "/webhooks/x")


async def test_a_full_line_takes_no_more_though_nobody_waits_any_longer() -> None:
    """Providers that hang up take nothing back: their events are held, count, and are stored."""
    keeper = SlowKeeper()
    intake = Intake(keeper)
    waiting = [asyncio.create_task(intake.keep(event())) for _ in range(LINE_EVENTS_MAX)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    with pytest.raises(LineFull):
        await intake.keep(event())
    keeper.may.set()
    await intake.close()
    assert len(keeper.kept) == LINE_EVENTS_MAX
    assert await intake.keep(event())


async def test_an_event_that_comes_just_when_the_writers_end_is_stored() -> None:
    """It waits for no other event to come: 1 of 10 runs of 5,000 posts had some that were never answered."""
    keeper = SlowKeeper()
    intake = Intake(keeper)

    async def provider(events: int) -> None:
        for _ in range(events):
            await intake.keep(event())

    providers = [asyncio.create_task(provider(2))]
    await asyncio.sleep(0.01)  # each event has a writer of its own
    providers.append(asyncio.create_task(provider(1)))
    await asyncio.sleep(0.01)
    keeper.may.set()
    await asyncio.wait_for(asyncio.gather(*providers), 5)
    await intake.close()
    assert len(keeper.kept) == 3


class SizedKeeper:
    """Notes how many batches there are at once, and of which sizes."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.sizes: list[int] = []

    async def keep(self, events: Sequence[IncomingEvent]) -> set[UUID]:
        """All of them are new."""
        self.sizes.append(len(events))
        await self.may.wait()
        return {event.id for event in events}


async def test_a_second_insert_goes_beside_a_full_one_alone() -> None:
    """What comes while one is stored gathers; a full one, or a long body, lets the next go beside it."""
    keeper = SizedKeeper()
    intake = Intake(keeper)
    waiting = [asyncio.create_task(intake.keep(event())) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting += [asyncio.create_task(intake.keep(event())) for _ in range(BATCH_EVENTS_MAX + 7)]
    await asyncio.sleep(0.01)
    assert keeper.sizes == [3]
    keeper.may.set()
    await asyncio.gather(*waiting)
    assert keeper.sizes == [3, BATCH_EVENTS_MAX, 7]

    keeper.may.clear()
    waiting = [asyncio.create_task(intake.keep(event(b"x" * BATCH_BYTES_MAX)))]
    await asyncio.sleep(0.01)
    waiting += [asyncio.create_task(intake.keep(event())) for _ in range(2)]
    await asyncio.sleep(0.01)
    waiting.append(asyncio.create_task(intake.keep(event())))
    await asyncio.sleep(0.01)
    assert keeper.sizes[3:] == [1, 2]
    keeper.may.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    await intake.close()
    assert keeper.sizes[3:] == [1, 2, 1]
