"""
Runs SQL handlers: whatever waits for the same function goes in one statement, each event in a transaction
of its own (postroom.handle_webhooks).

So events share a round trip and nothing else: no lock is held for another one, an error is its own event's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

import asyncpg

from postroom.database.connect import Database
from postroom.errors import DatabaseUnavailable
from postroom.failpoints import reach
from postroom.queue.claim import Claim
from postroom.webhooks.slots import SHARES
from postroom.webhooks.store import ClaimedEvent, Handled, WebhookStore

CALL_S = 0.025
"""A call gets as many events as are handled in about this time; of a function that takes longer, one."""

CALL_S_MAX = 0.1
"""After so long a call begins no further event: those that are left go in others, beside it."""

CALL_S_HELD_UP = 2.0
"""A call of several that takes so long is undone where it stands, and those that are left go alone."""

COMPANY_S = 0.02
"""An event waits no longer for the end of a call that is not full, which may be held up by a lock."""

AWAY_S_MAX = 10.0
"""So long an event that has begun waits for a database that was lost during its call."""


@dataclass(slots=True, eq=False)
class _Waiting:
    claim: Claim[ClaimedEvent]
    handled: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class SqlHandler:
    """
    One SQL handler.

    Args:
        database: Where its calls go; not the connections that claim and settle.
        name: The handler's.
        function: Schema and name, quoted as SQL needs it.
        calls_max: How many calls there may be at once.
        deadline_s: How long a call may take.
    """

    def __init__(
        self, database: Database, name: str, function: str, *, calls_max: int, deadline_s: float
    ) -> None:
        self._database = database
        self._store = WebhookStore(database)
        self._name = name
        self._function = function
        self._calls_max = calls_max
        self._deadline_s = deadline_s
        self._event_s = CALL_S  # how long one takes, by the last calls
        self._waiting: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._full_calls = 0
        self._impatient: asyncio.TimerHandle | None = None

    def shares(self, claim: Claim[ClaimedEvent]) -> int:
        """Its shares of a slot: as many events may have begun as go into the calls that may run."""
        return SHARES if _goes_alone(claim) else -(-SHARES // self._events_a_call())

    async def run(self, claim: Claim[ClaimedEvent]) -> None:
        """
        Handle an event that has begun, and return once that is committed.

        Raises:
            NotStarted: The lease has passed to another worker; the effect is undone.
            asyncpg.PostgresError: What the function raised; the effect is undone.
            DatabaseUnavailable: It is not known to be done.
        """
        waiting = _Waiting(claim)
        if _goes_alone(claim):
            await self._call([waiting])
        else:
            self._waiting.append(waiting)
            self._begin_calls()
        await waiting.handled

    def _events_a_call(self) -> int:
        return max(1, min(SHARES, int(CALL_S / self._event_s)))

    def _begin_calls(self, *, impatient: bool = False) -> None:
        """Begin a call where all that run are full, or where somebody has waited long enough for them."""
        if not self._waiting or len(self._calls) >= self._calls_max:
            return
        if impatient or len(self._calls) == self._full_calls:
            self._calls.add(asyncio.create_task(self._call_waiting()))
        if self._impatient is None:
            self._impatient = asyncio.get_running_loop().call_later(COMPANY_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self._impatient = None
        self._begin_calls(impatient=True)

    async def _call_waiting(self) -> None:
        call = asyncio.current_task()
        assert call is not None
        try:
            while batch := self._next_batch():
                is_full = len(batch) >= self._events_a_call()
                self._full_calls += is_full
                self._begin_calls()
                try:
                    await self._call(batch)
                finally:
                    self._full_calls -= is_full
                if len(self._calls) - 1 > self._full_calls:
                    break  # the one that is not full takes what waits
        finally:
            self._calls.discard(call)
            self._begin_calls()

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._events_a_call():
            waiting = self._waiting.popleft()
            if not waiting.handled.done():  # else its attempt was given up
                batch.append(waiting)
        return batch

    async def _call(self, batch: list[_Waiting]) -> None:
        try:
            reach("sql_handler.before")
            handled = await self._handle(batch)
            reach("sql_handler.after")
        except Exception as error:
            if len(batch) == 1 and _is_the_events_own(error):
                _end(batch[0], error)
                return
            # One of them may have taken its connection along: each goes by itself, and who is to blame shows.
            if isinstance(error, DatabaseUnavailable):
                await self._until_database_is_there()
            await asyncio.gather(*map(self._call_alone, batch))
            return
        not_begun = [waiting for waiting, one in zip(batch, handled, strict=True) if not _ended(waiting, one)]
        self._learn([one.took_s for one in handled if one is not None])
        self._waiting.extendleft(reversed(not_begun))

    async def _call_alone(self, waiting: _Waiting) -> None:
        if waiting.handled.done():
            return
        try:
            (handled,) = await self._handle([waiting])
        except Exception as error:
            _end(waiting, error)
        else:
            _ended(waiting, handled)

    async def _handle(self, batch: Sequence[_Waiting]) -> list[Handled | None]:
        claims = [waiting.claim for waiting in batch]
        return await self._store.handle(
            claims[0].item.worker,
            claims,
            self._name,
            self._function,
            limit_s=CALL_S_MAX,
            deadline_s=self._deadline_s if len(claims) == 1 else min(CALL_S_HELD_UP, self._deadline_s),
        )

    async def _until_database_is_there(self) -> None:
        ends = monotonic() + AWAY_S_MAX
        while monotonic() < ends:
            try:
                await self._database.execute("SELECT", deadline_s=AWAY_S_MAX)
                return
            except DatabaseUnavailable:
                await asyncio.sleep(0.1)

    def _learn(self, took_s: Sequence[float]) -> None:
        """What takes long is believed at once: those behind it would wait."""
        of_this_call = max(sum(took_s) / len(took_s), 1e-6)
        self._event_s = max(of_this_call, (self._event_s + of_this_call) / 2)


def _goes_alone(claim: Claim[ClaimedEvent]) -> bool:
    """One that has failed before, or whose worker died: if it is poison, no other is blamed for it."""
    return claim.item.event.attempt > 1


def _is_the_events_own(error: Exception) -> bool:
    """What the database says of the one event of a call; also that it took too long."""
    if isinstance(error, DatabaseUnavailable):
        return isinstance(error.__cause__, asyncpg.QueryCanceledError | TimeoutError)
    return isinstance(error, asyncpg.PostgresError)


def _ended(waiting: _Waiting, handled: Handled | None) -> bool:
    if handled is not None:
        _end(waiting, handled.error)
    return handled is not None


def _end(waiting: _Waiting, error: Exception | None) -> None:
    if waiting.handled.done():
        return
    if error is None:
        waiting.handled.set_result(None)
    else:
        waiting.handled.set_exception(error)
