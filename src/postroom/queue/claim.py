"""What the engine works on, and what a queue brings to it: its SQL and its attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from postroom.queue.outcome import Outcome

T = TypeVar("T")

Held = Callable[[], bool]
"""Whether the row is still surely ours."""

Start = Callable[[], Awaitable[Held]]
"""Makes the attempt's start durable; raises NotStarted where it may not begin. See Starts.begin."""


@dataclass(slots=True, eq=False)
class Claim(Generic[T]):
    """
    One row that this worker holds.

    Attributes:
        item: What the attempt is about.
        lease_no: Names the lease; every settle must bring it.
        lease_s: How long a lease lasts, in seconds.
        leased_until: Until when the row is surely ours, by time.monotonic(): counted from before the
            statement that took the lease.
        started: Whether the start mark is durable.
        start_good_until: Until when that start may be used, by time.monotonic().
        route: The way out that the attempt is about to take, where limits depend on it: a transport's name.
        begun_route: The one that the start was made for.
    """

    id: UUID
    item: T
    lease_no: int
    lease_s: float
    leased_until: float
    started: bool = False
    start_good_until: float = 0.0
    route: str = ""
    begun_route: str = ""

    @property
    def begun_now(self) -> bool:
        """Whether its start is durable and may still be used, on the route that it was made for."""
        return self.started and monotonic() <= self.start_good_until

    def lease_left_s(self) -> float:
        """Seconds for which the row is surely ours."""
        return self.leased_until - monotonic()

    def is_held(self) -> bool:
        """Whether the row is still surely ours."""
        return monotonic() < self.leased_until


@dataclass(slots=True)
class Begun:
    """What the database said to one start: `begun`, `waits` (put back) or `late` (the lease is lost)."""

    id: UUID
    state: str
    waits_for: str | None = None
    due_at: datetime | None = None


@dataclass(slots=True)
class Settled:
    """A row after it was settled."""

    id: UUID
    status: str
    attempts: int
    next_retry_at: datetime | None


@dataclass(slots=True, eq=False)
class Settlement(Generic[T]):
    """
    How a claim ended: to be written down.

    Attributes:
        verdict: A Verdict, or `released`: it never started.
        outcome: None where it never started.
        attempt_ms: How long the attempt took.
        ended_at: When it ended, for the row's log; the database's clock decides everything else.
        recorded: Gets the row as it is once that is written down, where somebody waits for it.
    """

    claim: Claim[T]
    verdict: str
    outcome: Outcome | None = None
    attempt_ms: int = 0
    ended_at: datetime | None = None
    tries: int = 0
    recorded: asyncio.Future[Settled | None] | None = None


@dataclass(frozen=True, slots=True)
class Paused:
    """
    Why nothing of a queue can be attempted for now.

    Attributes:
        left_s: For so many seconds; infinity where a person ends it.
        verdict: What rows are given back as meanwhile: `released` where the queue is paused, `transport_down`
            where no transport may be tried.
        said: What is paused, by whom and why, as part of a sentence.
    """

    left_s: float
    verdict: str
    said: str


class Work(Protocol[T]):
    """
    One queue, as the engine sees it.

    Attributes:
        queue: `email` or `webhook`: names the channel that wakes its workers.
        start_good_s: How long a start may be used before it must be taken anew, in seconds.
    """

    queue: str
    start_good_s: float

    async def claim(self, worker: UUID, limit: int, before: datetime | None, held: int) -> list[Claim[T]]:
        """
        Lease up to `limit` due rows.

        Args:
            before: Only those that were due then.
            held: How many the worker holds that have not begun: they will want slots of the limits first.
        """
        ...

    async def begin(self, worker: UUID, asked: Sequence[Claim[T]], begun: Sequence[Claim[T]]) -> list[Begun]:
        """Make the starts of `asked` durable; `begun` are the worker's other attempts in flight."""
        ...

    async def settle(self, worker: UUID, settlements: Sequence[Settlement[T]]) -> list[Settled]:
        """Write outcomes down; rows whose lease has passed on are not among the answers."""
        ...

    async def extend(self, worker: UUID, claims: Sequence[Claim[T]]) -> set[UUID]:
        """Take another lease of rows that are held; returns those that are still ours."""
        ...

    async def wait_s(self) -> float | None:
        """Seconds until something is due: 0 now, None nothing at all."""
        ...

    async def tend(self) -> None:
        """What a worker does for its queue now and then, such as planning anew what waits for a limit."""
        ...

    async def attempt(self, claim: Claim[T], start: Start) -> str | Outcome:
        """
        Do it. Returns what the other side said where it is done, or an outcome; raises SendError, or lets
        NotStarted from `start` pass.
        """
        ...

    async def look_at_pauses(self, *, older_than_s: float = ...) -> None:
        """Learn what persons have paused, where that was not done a short while ago."""
        ...

    def paused(self) -> Paused | None:
        """What keeps all rows, as far as is known; None where they can be attempted."""
        ...

    def claim_limit(self, room: int) -> int:
        """How many to claim where there is room for `room`: one, to try a transport that was down."""
        ...

    def report(self, settlement: Settlement[T], settled: Settled | None) -> None:
        """Say in the log how an attempt ended; `settled` is None where the lease had passed on."""
        ...

    def report_put_back(self, claim: Claim[T], begun: Begun) -> None:
        """Say in the log that a claim may not begin."""
        ...
