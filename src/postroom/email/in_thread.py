"""Statements on a caller's sync connection, in a thread, so that the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

Use = Callable[[Any], object]
"""Called with the driver's connection before a statement runs on it."""

_AGAIN_S = 0.1


async def run_in_thread(work: Callable[..., T], *arguments: object) -> T:
    """
    Run work(use, *arguments) in a thread.

    Where the caller is cancelled (a time-out, a client that has gone), the statement is cancelled too, and
    only then is the caller told: what he does next, a rollback, is on a connection that nobody else uses.
    """
    used: list[Any] = []
    running = asyncio.ensure_future(asyncio.to_thread(work, used.append, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            for connection in used:
                with suppress(Exception):  # the server is lost, and then so is the statement
                    await asyncio.to_thread(connection.cancel)
            await asyncio.wait([running], timeout=_AGAIN_S)  # it may not have begun when it was cancelled
        with suppress(Exception):
            running.result()
        raise
