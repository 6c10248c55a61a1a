"""One deadline for many attempts: each ends after so many seconds, whatever it waits for."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Deadline:
    """
    Ends the block of any task that is in it for too long, with TimeoutError.

        deadline = Deadline(600.0)
        with deadline:
            await something()

    asyncio.timeout() does the same with a timer for each block: 3.2 us a block, this 1.0. Since all have the
    same limit, those that began first end first, and one timer will do. A task may be in it once at a time.

    Args:
        limit_s: How long a block may take.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ends: dict[asyncio.Task[Any], float] = {}  # by the loop's time; the first is the next to end
        self._overdue: dict[asyncio.Task[Any], int] = {}  # with its number of cancellations before ours
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task not in self._ends
        loop = asyncio.get_running_loop()
        self._ends[task] = loop.time() + self._limit_s
        if self._timer is None:
            self._timer = loop.call_later(self._limit_s, self._look)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._ends.pop(task, None)
        before = self._overdue.pop(task, None)
        # Where somebody else has cancelled it as well, that goes on.
        if before is not None and task.uncancel() <= before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for task, ends in list(self._ends.items()):
            if ends > loop.time():
                self._timer = loop.call_at(ends, self._look)
                return
            del self._ends[task]
            self._overdue[task] = task.cancelling()
            task.cancel()
