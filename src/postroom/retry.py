"""
Backoff for an application's own calls, by the delays of postroom's queues.

It waits in the calling process: what must survive a crash belongs into a queue.

    from postroom import retry

    rates = await retry.call(fetch_rates, delays="1s,5s,30s", on=(OSError,))
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from postroom.errors import PermanentFailure, SendError
from postroom.spans import parse_span

T = TypeVar("T")

EMAIL = "1s,5s,30s,5m,30m"
"""The default of email.backoff."""

WEBHOOK = "1m,5m,30m,2h,24h"
"""The default of webhook.backoff."""

JITTER = 0.1
"""Up to this share of a delay is added, so that those who failed together do not come back together."""


def delay_s(attempt: int, delays: str | Sequence[float] = EMAIL, *, jitter: float = JITTER) -> float:
    """
    How long to wait after an attempt has failed, in seconds: never less than the schedule says.

    Args:
        attempt: Which one has failed: 1 for the first.
        delays: As in `postroom settings get email.backoff`, or in seconds; beyond the last one, the last.
        jitter: The share that is added at most; 0 for none.

    Raises:
        ValueError: There is no such attempt, or no such schedule.
    """
    schedule = _seconds(delays)
    if attempt < 1:
        raise ValueError(f"attempt must be 1 or more, not {attempt}")
    return schedule[min(attempt, len(schedule)) - 1] * (1 + random.uniform(0, jitter))


async def call(
    function: Callable[[], Awaitable[T]],
    *,
    delays: str | Sequence[float] = EMAIL,
    on: tuple[type[Exception], ...] = (Exception,),
) -> T:
    """
    Call it until it succeeds: once, and again after each of the delays.

    PermanentFailure ends it at once. Where an error of postroom names when the other side wants to be asked
    again (`retry_after_s`), that is waited out, if it is longer than the delay.

    Args:
        on: The errors that are worth another attempt.

    Raises:
        Exception: The last attempt's, or one that is not worth another.
        ValueError: There is no such schedule.
    """
    attempts_max = len(_seconds(delays)) + 1
    for attempt in range(1, attempts_max + 1):
        try:
            return await function()
        except PermanentFailure:
            raise
        except on as error:
            if attempt == attempts_max:
                raise
            asked_s = error.retry_after_s if isinstance(error, SendError) else None
            await asyncio.sleep(max(delay_s(attempt, delays), asked_s or 0.0))
    raise AssertionError("the last attempt returns or raises")


def _seconds(delays: str | Sequence[float]) -> list[float]:
    written = delays.split(",") if isinstance(delays, str) else delays
    schedule = [parse_span(each) if isinstance(each, str) else each for each in written]
    if not schedule or any(each < 0 for each in schedule):
        raise ValueError("delays must name at least one, such as 1s,5s,30s, and none below zero")
    return schedule
