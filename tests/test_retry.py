"""postroom.retry: backoff for an application's own calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from postroom import PermanentFailure, TemporaryFailure, retry


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits, in seconds, which are not waited."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waited


def _failing(*errors: Exception) -> Callable[[], Awaitable[str]]:
    left = list(errors)

    async def function() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return function


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 1), (2, 5), (3, 30), (4, 300), (5, 1800), (6, 1800)])
def test_a_delay_is_the_schedules_and_up_to_a_tenth_more(attempt: int, seconds: float) -> None:
    """Never less; beyond the last one, the last."""
    for _ in range(50):
        assert seconds <= retry.delay_s(attempt) <= seconds * 1.1
    assert retry.delay_s(attempt, jitter=0) == seconds


@pytest.mark.parametrize(("attempt", "delays"), [(0, "1s"), (1, ""), (1, "1 s"), (1, []), (1, [-1.0])])
def test_what_is_no_schedule_is_refused(attempt: int, delays: str | list[float]) -> None:
    """With a line that says what is allowed."""
    with pytest.raises(ValueError, match=r"1 or more|no span of time|at least one"):
        retry.delay_s(attempt, delays)


async def test_a_call_is_repeated_until_it_succeeds(waits: list[float]) -> None:
    """After each delay once more."""
    assert await retry.call(_failing(OSError(), OSError()), delays=[2.0, 4.0]) == "done"
    assert [2 <= waits[0] <= 2.2, 4 <= waits[1] <= 4.4, len(waits)] == [True, True, 2]


async def test_the_last_error_is_the_callers(waits: list[float]) -> None:
    """After as many attempts as there are delays, and one."""
    with pytest.raises(OSError, match="third"):
        await retry.call(_failing(OSError("1"), OSError("2"), OSError("third")), delays="1s,1s")
    assert len(waits) == 2


async def test_what_is_not_worth_another_attempt_ends_it(waits: list[float]) -> None:
    """A permanent failure, and errors that nobody has named."""
    for error in (PermanentFailure("no"), ValueError("no")):
        with pytest.raises(type(error)):
            await retry.call(_failing(error), on=(OSError, PermanentFailure))
    assert waits == []


async def test_a_time_that_the_other_side_names_is_waited_out(waits: list[float]) -> None:
    """Where it is longer than the delay."""
    await retry.call(_failing(TemporaryFailure("busy", retry_after_s=60.0)), delays="1s")
    assert waits == [60.0]
