"""How often a login may fail: so that nobody finds a key by trying."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic

FAILURES_MAX = 5
"""Of one address within WINDOW_S; the next try has to wait."""

FAILURES_OF_ALL_MAX = 100
"""Of all addresses together: whoever has many of them finds no more either."""

WINDOW_S = 60.0
ADDRESSES_MAX = 10_000


class Throttle:
    """Counts failed logins by address, in this process."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._of_all: list[float] = []

    def wait_s(self, address: str) -> float:
        """For how long this address may not try; 0 where it may."""
        now = monotonic()
        waits = [
            _wait_s(self._failures.get(address, []), FAILURES_MAX, now),
            _wait_s(self._of_all, FAILURES_OF_ALL_MAX, now),
        ]
        return max(waits)

    def failed(self, address: str) -> None:
        """Count one more."""
        now = monotonic()
        self._failures[address] = [*_recent(self._failures.pop(address, []), now), now]
        self._of_all = [*_recent(self._of_all, now), now]
        while len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)


def _recent(failures: list[float], now: float) -> list[float]:
    return [at for at in failures if at > now - WINDOW_S]


def _wait_s(failures: list[float], failures_max: int, now: float) -> float:
    recent = _recent(failures, now)
    return recent[-failures_max] + WINDOW_S - now if len(recent) >= failures_max else 0.0
