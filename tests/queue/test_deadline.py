"""The deadline of attempts: one timer for all, and what asyncio.timeout() promises holds for each."""

from __future__ import annotations

import asyncio

import pytest

from postroom.queue.deadline import Deadline


async def _stay(deadline: Deadline, seconds: float) -> str:
    with deadline:
        await asyncio.sleep(seconds)
    return "in time"


async def test_each_block_ends_at_its_own_time() -> None:
    """Those that began earlier end earlier; one that is in time is not touched, nor what comes next."""
    deadline = Deadline(0.1)
    loop = asyncio.get_running_loop()
    ended: list[tuple[str, float]] = []

    async def late(name: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        began = loop.time()
        with pytest.raises(TimeoutError):
            await _stay(deadline, 60.0)
        ended.append((name, loop.time() - began))

    async def in_time() -> None:
        for _ in range(20):
            assert await _stay(deadline, 0.01) == "in time"
        await asyncio.sleep(0.15)

    await asyncio.gather(late("second", 0.05), late("first", 0.0), in_time())
    assert [name for name, _ in ended] == ["first", "second"]
    assert all(took_s >= 0.1 for _, took_s in ended)


async def test_a_task_goes_on_after_its_deadline() -> None:
    """The one that was ended is not cancelled any more, and may enter again."""
    deadline = Deadline(0.02)
    with pytest.raises(TimeoutError):
        await _stay(deadline, 60.0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await _stay(deadline, 0.0) == "in time"


async def test_a_cancellation_from_outside_stays_one() -> None:
    """Whoever cancels the task sees it cancelled, before the deadline and beside it."""
    deadline = Deadline(0.05)
    early = asyncio.create_task(_stay(deadline, 60.0))
    await asyncio.sleep(0)
    early.cancel()
    with pytest.raises(asyncio.CancelledError):
        await early

    async def linger() -> None:
        with deadline:
            try:
                await asyncio.sleep(60.0)
            finally:
                lingering.set()
                await asyncio.sleep(60.0)

    lingering = asyncio.Event()
    both = asyncio.create_task(linger())
    await lingering.wait()  # its deadline has cancelled it
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both


async def test_a_block_that_is_done_as_its_deadline_strikes_keeps_its_error() -> None:
    """An error of the block's own is not hidden by the deadline."""
    deadline = Deadline(0.02)
    with pytest.raises(ValueError, match="own"), deadline:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            raise ValueError("its own") from None
