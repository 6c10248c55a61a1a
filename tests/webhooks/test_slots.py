"""Slots: handlers hold as many transactions open as there are, or shares of one."""

from __future__ import annotations

import asyncio

import pytest

from postroom.webhooks.slots import SHARES, Slots


async def test_who_came_first_gets_his_shares_first() -> None:
    """One who needs a whole slot is not overtaken by those who need little; how much is asked anew."""
    slots, order, wanted = Slots(1), list[str](), {"big": SHARES, "small": 1, "later": SHARES}
    release = asyncio.Event()

    async def hold(name: str) -> None:
        async with slots.taken(lambda: wanted[name]):
            order.append(name)
            await release.wait()

    holders = [asyncio.create_task(hold(name)) for name in ("small", "big", "later")]
    await asyncio.sleep(0)
    assert order == ["small"]
    wanted["later"] = 1
    release.set()
    await asyncio.gather(*holders)
    assert order == ["small", "big", "later"]


async def test_who_gives_up_waiting_takes_nothing() -> None:
    """Whether he was still waiting, or had just been given his shares."""
    slots = Slots(1)

    async def hold() -> None:
        async with slots.taken(lambda: SHARES):
            await asyncio.sleep(0)

    async with slots.taken(lambda: SHARES):
        waiting = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
    waiting[0].cancel()  # it has its shares, and has not run since
    for cancelled in waiting[:2]:
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    await waiting[2]
    async with asyncio.timeout(5), slots.taken(lambda: SHARES):
        pass
