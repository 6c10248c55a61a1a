"""The line between a door and the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from postroom.errors import DatabaseUnavailable
from postroom.queue.line import BATCH_BYTES_MAX, BATCH_MAX, LINE_MAX, Line, LineFull

BYTES = 2_000


class Store:
    """Stores numbers when it is told to, and notes the sizes of the batches that it got."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.sizes: list[int] = []
        self.stored: list[int] = []
        self.line: Line[int, str] = Line(self._store)

    async def put(self, number: int = 1, size_bytes: int = BYTES) -> str:
        """Put one in line."""
        return await self.line.put(number, size_bytes)

    async def put_soon(self, count: int, size_bytes: int = BYTES) -> list[asyncio.Task[str]]:
        """Put some in line, and let the line do what it can."""
        waiting = [asyncio.create_task(self.put(1, size_bytes)) for _ in range(count)]
        await asyncio.sleep(0.01)
        return waiting

    async def _store(self, numbers: Sequence[int]) -> list[str]:
        self.sizes.append(len(numbers))
        await self.may.wait()
        if 0 in numbers:
            raise DatabaseUnavailable("away")
        if 13 in numbers:
            raise ValueError("no thirteen")
        self.stored += numbers
        return [f"stored {number}" for number in numbers]


async def test_a_full_line_takes_no_more_though_nobody_waits_any_longer() -> None:
    """Clients that hang up take nothing back: what they sent is held, counts, and is stored."""
    store = Store()
    waiting = [asyncio.create_task(store.put()) for _ in range(LINE_MAX)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    with pytest.raises(LineFull):
        await store.put()
    store.may.set()
    await store.line.close()
    assert len(store.stored) == LINE_MAX
    assert await store.put(7) == "stored 7"


async def test_what_comes_just_when_the_writers_end_is_stored() -> None:
    """It waits for no other to come: 1 of 10 runs of 5,000 posts had some that were never answered."""
    store = Store()

    async def client(times: int) -> None:
        for _ in range(times):
            await store.put()

    clients = [asyncio.create_task(client(2))]
    await asyncio.sleep(0.01)
    clients.append(asyncio.create_task(client(1)))
    await asyncio.sleep(0.01)
    store.may.set()
    await asyncio.wait_for(asyncio.gather(*clients), 5)
    await store.line.close()
    assert len(store.stored) == 3


async def test_a_second_statement_goes_beside_a_full_one_alone() -> None:
    """What comes while one is stored gathers; a full one, or a long body, lets the next go beside it."""
    store = Store()
    waiting = await store.put_soon(3)
    waiting += await store.put_soon(BATCH_MAX + 7)
    assert store.sizes == [3]
    store.may.set()
    await asyncio.gather(*waiting)
    assert store.sizes == [3, BATCH_MAX, 7]

    store.may.clear()
    waiting = await store.put_soon(1, BATCH_BYTES_MAX)
    waiting += await store.put_soon(2)
    waiting += await store.put_soon(1)
    assert store.sizes[3:] == [1, 2]
    store.may.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    await store.line.close()
    assert store.sizes[3:] == [1, 2, 1]


async def test_one_that_is_refused_takes_no_other_with_it() -> None:
    """Each gets its own answer; the refused one gets the error."""
    store = Store()
    store.may.set()
    answers = await asyncio.gather(*(store.put(n) for n in range(1, 41)), return_exceptions=True)
    assert [n for n, answer in enumerate(answers, 1) if not isinstance(answer, str)] == [13]
    assert isinstance(answers[12], ValueError)
    assert answers[13] == "stored 14"


async def test_a_database_that_is_away_is_told_to_all_of_a_batch() -> None:
    """Nothing is tried one by one, and each has an error of its own, for its own trace."""
    store = Store()
    store.may.set()
    answers = await asyncio.gather(*(store.put(n) for n in range(5)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {DatabaseUnavailable}
    assert len({id(answer) for answer in answers}) == 5
    assert store.sizes == [5]
