"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

LIMIT_S = 30.0


async def until(
    condition: Callable[[], bool | Awaitable[bool]], *, limit_s: float = LIMIT_S, look_s: float = 0.01
) -> None:
    """Return when the condition holds, looked at so often; fail when it still does not after the limit."""
    ends = time.monotonic() + limit_s
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        assert time.monotonic() < ends, f"not true within {limit_s:g} s: {inspect.getsource(condition)}"
        await asyncio.sleep(look_s)


def until_now(condition: Callable[[], bool], *, limit_s: float = LIMIT_S) -> None:
    """The same where there is no event loop."""
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends, f"not true within {limit_s:g} s: {inspect.getsource(condition)}"
        time.sleep(0.01)
