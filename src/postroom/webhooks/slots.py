"""Slots: how many handlers may hold a transaction open at once, where some need only a share of one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

SHARES = 50
"""Of one slot."""


class Slots:
    """
    A number of slots, each of 50 shares. Who came first gets his shares first.

    Args:
        count: How many there are.
    """

    def __init__(self, count: int) -> None:
        self._free = count * SHARES
        self._waiting: deque[tuple[Callable[[], int], asyncio.Future[int]]] = deque()

    @asynccontextmanager
    async def taken(self, shares: Callable[[], int]) -> AsyncIterator[None]:
        """
        Hold some shares during the block.

        Args:
            shares: How many, 1 to 50; asked again whenever some have become free.
        """
        count = await self._take(shares)
        try:
            yield
        finally:
            self._give(count)

    async def _take(self, shares: Callable[[], int]) -> int:
        if not self._waiting and (count := shares()) <= self._free:
            self._free -= count
            return count
        given: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((shares, given))
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self._give(given.result())
            raise

    def _give(self, count: int) -> None:
        self._free += count
        while self._waiting:
            shares, given = self._waiting[0]
            if not given.cancelled():
                if (wanted := shares()) > self._free:
                    return
                self._free -= wanted
                given.set_result(wanted)
            self._waiting.popleft()
