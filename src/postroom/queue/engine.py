"""
The engine: claim, attempt, settle. It knows neither e-mail nor webhooks.

A worker keeps a small buffer of claimed rows filled while it works, attempts as many at once as its
concurrency says, and settles behind them in batches. Whatever happens to it, the rows tell the truth: a lease
that ends unstarted counts in nothing, and one that ends started is an uncertain outcome.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Generic, TypeVar
from uuid import uuid4

import orjson

from postroom import log
from postroom.database.connect import Database
from postroom.errors import DatabaseUnavailable, NotStarted
from postroom.failpoints import reach
from postroom.queue.claim import Claim, Held, Paused, Settlement, Work
from postroom.queue.deadline import Deadline
from postroom.queue.outcome import Outcome, Verdict, outcome_of
from postroom.queue.pauses import LOOK_S
from postroom.queue.settles import Settles
from postroom.queue.starts import Starts
from postroom.queue.times import merge_tallies

T = TypeVar("T")

POLL_S_MAX = 1.0
"""A sleeping worker looks for work at least this often: correctness rests on it, not on NOTIFY."""

LIE_DOWN_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""
The first looks after lying down: an insert that was open meanwhile did not see the sleeper. Most are open for
as long as a commit takes, some milliseconds. Each look takes 0.2 ms.
"""

HEARTBEAT_S = 5.0
TEND_S = 1.0
BUFFER_PER_ATTEMPT = 4
"""Rows in the buffer for each attempt that may be in flight: enough to hide a claim's time."""

UNSETTLED_MAX = 2_000
"""Outcomes that may wait for the database; beyond, nothing new is attempted."""

REFUSED_STARTS_MAX = 3
"""A pass ends with the error when so many starts, one after the other, were refused by the database."""

_log = log.get_logger()


@dataclass
class Pass:
    """
    What one pass over what is due came to.

    Attributes:
        began_at: By the database's clock; None where the pass goes on until nothing is due.
        put_back: Rows that were put back to wait until a later time, such as for a limit.
        errors: What failed, the first twenty.
        paused: Why what is due was left: what is paused, by whom and why.
    """

    began_at: datetime | None = None
    done: int = 0
    failed: int = 0
    put_back: int = 0
    errors: list[str] = field(default_factory=list)
    paused: str | None = None


class Engine(Generic[T]):
    """
    One worker of one queue.

    Args:
        work: The queue's SQL and its attempt.
        concurrency: Attempts in flight at once.
        buffered_max: Rows that are claimed ahead of them; default: 4 for each.
        attempt_deadline_s: After this many seconds an attempt is given up; its outcome is uncertain
            where it had started.
        version: Of the program, for the table of workers.
    """

    def __init__(
        self,
        work: Work[T],
        database: Database,
        *,
        concurrency: int = 20,
        buffered_max: int | None = None,
        attempt_deadline_s: float = 600.0,
        version: str = "",
    ) -> None:
        self.id = uuid4()
        self.work = work
        self.registered = asyncio.Event()
        self._database = database
        self._concurrency = concurrency
        self._buffered_max = buffered_max or concurrency * BUFFER_PER_ATTEMPT
        self._deadline_s = attempt_deadline_s
        self._deadline = Deadline(attempt_deadline_s)
        self._version = version
        self._claims = True
        self._buffer: deque[Claim[T]] = deque()
        self._in_flight: set[Claim[T]] = set()
        self._starts = Starts(work, self.id, self._in_flight)
        self._settles = Settles(work, self.id, self._starts.begun)
        self._attempters: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._woken = asyncio.Event()
        self._stopping = False
        self._paused = False
        self._unmarked = False
        self._pass = Pass()

    async def run(self, stop: asyncio.Event) -> None:
        """
        Work until `stop` is set, then drain: no new leases, attempts in flight are finished and settled, rows
        in the buffer are given back.
        """
        await self._register(patient=True)
        listener = self._database.listen([f"postroom_{self.work.queue}"], lambda *_: self._woken.set())
        helpers = [asyncio.create_task(self._beat()), asyncio.create_task(self._extend())]
        helpers.append(asyncio.create_task(self._tend()))
        fetcher = asyncio.create_task(self._fetch())
        _log.info("worker.started", queue=self.work.queue, worker=str(self.id), concurrency=self._concurrency)
        try:
            stopper = asyncio.create_task(stop.wait())
            await asyncio.wait([stopper, fetcher], return_when=asyncio.FIRST_COMPLETED)
            stopper.cancel()
            if fetcher.done():
                fetcher.result()
        finally:
            # Not cancelled: a claim that is on its way would be leased to nobody.
            self._stopping = True
            self._woken.set()
            self._room.set()
            await asyncio.gather(fetcher, return_exceptions=True)
            await self._drain()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await listener.close()
            await self._forget()
            _log.info("worker.stopped", queue=self.work.queue, worker=str(self.id))

    async def run_pass(
        self,
        *,
        until_nothing_due: bool = False,
        limit_s: float = 3_600.0,
        stop: asyncio.Event | None = None,
    ) -> Pass:
        """
        Attempt what is due now, once, and return what came of it.

        Args:
            until_nothing_due: Also what becomes due meanwhile, as `worker --drain` wants it.
            limit_s: After this many seconds no more rows are claimed.
            stop: Once it is set, no more rows are claimed.

        Raises:
            DatabaseUnavailable: The database is away; what was begun is settled when it is back.
            asyncpg.PostgresError: It refuses what the engine writes.
        """
        await self._register(patient=False)
        before = None if until_nothing_due else await self._database.fetchval("SELECT clock_timestamp()")
        self._pass = Pass(before)
        helpers = [asyncio.create_task(self._beat()), asyncio.create_task(self._extend())]
        ends = monotonic() + limit_s
        try:
            while monotonic() < ends and not self._stopping and not (stop and stop.is_set()):
                await self.work.look_at_pauses()
                if (paused := self.work.paused()) is not None:
                    await self._give_back_buffer(paused.verdict)
                    break
                if self._starts.refusal is not None and self._starts.refusals >= REFUSED_STARTS_MAX:
                    raise self._starts.refusal
                # Asked before the claim: what is settled during it may have held others up.
                at_work = bool(self._buffer or self._in_flight or self._settles.open)
                if claims := await self._claim(self._space(), before):
                    self._put(claims)
                    await self._wait_for_room()
                elif at_work:
                    await asyncio.sleep(0.002)
                else:
                    break
        finally:
            self._stopping = True
            await self._drain()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await self._forget()
        if (paused := self.work.paused()) is not None:
            self._pass.paused = paused.said
        return self._pass

    async def attempt_now(self, claim: Claim[T], *, settle_s: float = 5.0) -> Outcome:
        """
        Attempt a row that was leased to this worker, and settle it.

        A transport that is down makes it a dead letter: somebody waits for the answer.

        Args:
            settle_s: After so many seconds the outcome is given back though it could not be recorded yet.

        Raises:
            NotStarted: The row waits for a limit, or another worker has taken it.
        """
        self._in_flight.add(claim)
        try:
            with suppress(DatabaseUnavailable):
                await self.work.look_at_pauses()
            ended = await self._attempt(claim)
        finally:
            self._in_flight.discard(claim)
        if isinstance(ended, NotStarted):
            if not ended.held:
                raise ended
            outcome = Outcome(Verdict.TEMPORARY, str(ended))
            ended = Settlement(claim, "abandoned", outcome, ended_at=datetime.now(UTC))
        elif ended.verdict == Verdict.TRANSPORT_DOWN:
            ended.verdict = "abandoned"
        assert ended.outcome is not None
        ended.recorded = asyncio.get_running_loop().create_future()
        self._settles.settle(ended)
        await asyncio.wait([ended.recorded], timeout=settle_s)
        return ended.outcome

    def begun(self) -> list[Claim[T]]:
        """The attempts that have begun and are not settled."""
        return list(self._starts.begun.values())

    async def stand_by(self, stop: asyncio.Event) -> None:
        """Hold a worker's row and its leases, for attempt_now(), without claiming anything."""
        self._claims = False
        await self._register(patient=True)
        self.registered.set()
        helpers = [asyncio.create_task(self._beat()), asyncio.create_task(self._extend())]
        try:
            await stop.wait()
        finally:
            while self._in_flight:
                await asyncio.sleep(0.01)
            await self._settles.flush()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await self._forget()

    # Claiming

    async def _fetch(self) -> None:
        again_s = 0.1
        while not self._stopping:
            try:
                await self._fetch_once()
                again_s = 0.1
            except DatabaseUnavailable as error:
                _log.warning(
                    "database.away", queue=self.work.queue, error=str(error), again_s=round(again_s, 1)
                )
                await self._back_off(again_s)
                again_s = min(again_s * 2, 5.0)
            except Exception as error:
                # Ours, or a person's in the database: it must not end the worker.
                _log.error("claim.failed", queue=self.work.queue, error=f"{type(error).__name__}: {error}")
                await self._back_off(again_s)
                again_s = min(again_s * 2, 5.0)

    async def _fetch_once(self) -> None:
        await self.work.look_at_pauses(older_than_s=0.0 if self._paused and self._woken.is_set() else LOOK_S)
        if (paused := self.work.paused()) is not None:
            await self._rest_while(paused)
            return
        self._paused = self._unmarked = False
        await self._wait_for_room()
        self._woken.clear()
        if self._stopping:
            return
        space = self._space()
        claims = await self._claim(space, None)
        self._put(claims)
        if len(claims) < space:  # there was no more
            await self._sleep()

    async def _rest_while(self, paused: Paused) -> None:
        if not self._paused:
            # An insert need not call whoever may claim nothing; from here on only a resume does.
            await self._register(patient=False)
            self._paused = True
        self._woken.clear()
        await self._give_back_buffer(paused.verdict)
        if not self._in_flight and not self._unmarked:
            # Else the last attempt's mark would say that it is still in flight. Nothing begins meanwhile:
            # only this loop brings rows.
            await self.work.begin(self.id, [], list(self._starts.begun.values()))
            self._unmarked = True
        await self._rest(min(paused.left_s, POLL_S_MAX))

    async def _claim(self, space: int, before: datetime | None) -> list[Claim[T]]:
        if space <= 0:
            return []
        held = len(self._buffer) + sum(not claim.started for claim in self._in_flight)
        reach("claim.before")
        claims = await self.work.claim(self.id, self.work.claim_limit(space), before, held)
        reach("claim.after")
        return claims

    async def _sleep(self) -> None:
        """Lie down: say so, look once more, and wait to be woken, for the next due row, or to poll."""
        wait_s = await self.work.wait_s()
        if wait_s is not None and wait_s <= 0.002:
            if self._in_flight:  # what is due has to wait for what is about to begin
                await asyncio.sleep(0.005)
            return
        await self._register(patient=False, asleep=True)
        for look_s in (0.0, *LIE_DOWN_S, POLL_S_MAX):
            await self._rest(look_s if wait_s is None else min(look_s, wait_s))
            if self._stopping or self._woken.is_set():
                return
            wait_s = await self.work.wait_s()
            if wait_s is not None and wait_s <= 0.002:
                return

    async def _rest(self, limit_s: float) -> None:
        """Sleep, until somebody wakes us."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._woken.wait()

    async def _back_off(self, limit_s: float) -> None:
        """Sleep, whoever calls meanwhile: else each insert would be one more try, and one call many."""
        ends = monotonic() + limit_s
        while not self._stopping and (left_s := ends - monotonic()) > 0:
            self._woken.clear()
            await self._rest(left_s)

    def _space(self) -> int:
        return self._buffered_max - len(self._buffer)

    async def _wait_for_room(self) -> None:
        while not self._stopping and (
            self._space() < self._buffered_max // 2 or self._settles.open > UNSETTLED_MAX
        ):
            self._room.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._room.wait()

    def _put(self, claims: list[Claim[T]]) -> None:
        self._buffer.extend(claims)
        for _ in range(min(len(claims), self._concurrency - len(self._attempters))):
            self._attempters.add(asyncio.create_task(self._attempter()))

    async def _give_back_buffer(self, verdict: str) -> None:
        while self._buffer:
            claim = self._buffer.popleft()
            if claim.lease_left_s() > 0:
                self._settles.settle(Settlement(claim, verdict))
        await self._settles.flush()

    # Attempting

    async def _attempter(self) -> None:
        """Attempt one row after the other, until the buffer is empty."""
        this = asyncio.current_task()
        assert this is not None
        try:
            while self._buffer:
                claim = self._buffer.popleft()
                # In flight from here on: nobody may see it in neither place.
                self._in_flight.add(claim)
                self._room.set()
                await self._attempt_and_settle(claim)
        finally:
            # Not in a callback, which comes later: what is put into the buffer meanwhile would lie there.
            self._attempters.discard(this)

    async def _attempt_and_settle(self, claim: Claim[T]) -> None:
        try:
            ended = await self._attempt(claim)
            reach("attempt.ended")
            if isinstance(ended, Settlement):
                self._count(ended)
                self._settles.settle(ended)
            elif ended.held:
                self._settles.settle(Settlement(claim, "released"))
            else:
                self._count_put_back(ended)
        except Exception as error:
            # Nobody would miss an attempter that is gone, and its row would be extended for ever.
            outcome = outcome_of(error, started=claim.started)
            self._settles.settle(self._ended(claim, outcome, monotonic()))
        finally:
            self._in_flight.discard(claim)

    async def _attempt(self, claim: Claim[T]) -> Settlement[T] | NotStarted:
        """One attempt, or why it did not begin."""
        began = monotonic()
        try:
            with self._deadline:
                reach("attempt.before")
                answer = await self.work.attempt(claim, lambda: self._begin(claim))
                reach("attempt.after")
            outcome = answer if isinstance(answer, Outcome) else Outcome(Verdict.DONE, answer)
        except NotStarted as error:
            return error
        except TimeoutError:
            reason = f"no end after {self._deadline_s:g} s"
            outcome = Outcome(Verdict.UNCERTAIN if claim.started else Verdict.TEMPORARY, reason)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            outcome = outcome_of(error, started=claim.started)  # what it waited for was cancelled, and not we
        except Exception as error:
            outcome = outcome_of(error, started=claim.started)
        return self._ended(claim, outcome, began)

    async def _begin(self, claim: Claim[T]) -> Held:
        """
        Its start, unless a person has paused the queue meanwhile: an attempt that waits for a connection or
        for a slot of handlers has not begun, and may wait for minutes.
        """
        paused = self.work.paused() if self._claims and not claim.started else None
        if paused is not None and paused.verdict == "released":
            raise NotStarted(paused.said, held=True)
        return await self._starts.begin(claim)

    def _ended(self, claim: Claim[T], outcome: Outcome, began: float) -> Settlement[T]:
        took_ms = round((monotonic() - began) * 1000)
        return Settlement(claim, str(outcome.verdict), outcome, took_ms, datetime.now(UTC))

    def _count(self, settlement: Settlement[T]) -> None:
        if settlement.verdict in (Verdict.DONE, Verdict.UNHANDLED):
            self._pass.done += 1
        elif settlement.outcome is not None:
            if settlement.verdict != Verdict.TRANSPORT_DOWN:
                self._pass.failed += 1
            if len(self._pass.errors) < 20:
                self._pass.errors.append(f"{settlement.claim.id}: {settlement.outcome.reply}")

    def _count_put_back(self, refused: NotStarted) -> None:
        # What waits with its old due time is still due: whoever counts that counts it there.
        began_at = self._pass.began_at
        if refused.due_at is not None and (began_at is None or refused.due_at > began_at):
            self._pass.put_back += 1

    # Ending

    async def _drain(self) -> None:
        reach("drain.before")
        await self._give_back_buffer("released")
        await asyncio.gather(*self._attempters, return_exceptions=True)
        await self._settles.flush()

    # Staying alive

    async def _register(self, *, patient: bool, asleep: bool = False) -> None:
        while True:
            try:
                reach("worker.register.before")
                await self._database.execute(
                    # Lost in a crash, that it sleeps costs one poll: no reason to wait for the disk.
                    """
                    SELECT postroom.register_worker($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb)
                    FROM set_config(
                        'synchronous_commit',
                        CASE WHEN $7 THEN 'off' ELSE current_setting('synchronous_commit') END,
                        true
                    )
                    """,
                    self.id,
                    self.work.queue,
                    socket.gethostname(),
                    os.getpid(),
                    self._version,
                    self._claims,
                    asleep,
                    orjson.dumps(self._settles.counts).decode(),
                )
                reach("worker.register.after")
                return
            except DatabaseUnavailable as error:
                if not patient:
                    raise
                _log.warning("database.away", queue=self.work.queue, error=str(error))
                await asyncio.sleep(1.0)

    async def _forget(self) -> None:
        with suppress(Exception):
            await merge_tallies(self._database)
        with suppress(Exception):
            reach("worker.forget.before")
            await self._database.execute("SELECT postroom.forget_worker($1)", self.id)
            reach("worker.forget.after")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with suppress(Exception):  # the fetcher says what is wrong with the database
                await merge_tallies(self._database)
            try:
                reach("worker.heartbeat.before")
                tag = await self._database.execute(
                    """
                    UPDATE postroom.workers
                    SET seen_at = clock_timestamp(), settled = $2::text::jsonb
                    WHERE id = $1
                    """,
                    self.id,
                    orjson.dumps(self._settles.counts).decode(),
                )
                reach("worker.heartbeat.after")
                if tag == "UPDATE 0":  # somebody has deleted it: without it nothing can be begun
                    await self._register(patient=False)
            except DatabaseUnavailable:
                pass
            except Exception as error:
                # Its leases go on, but others take it for dead.
                _log.error("tend.failed", queue=self.work.queue, error=f"{type(error).__name__}: {error}")

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(TEND_S)
            try:
                reach("tend.before")
                await self.work.look_at_pauses()
                if (paused := self.work.paused()) is not None:  # the fetcher may wait for room
                    await self._give_back_buffer(paused.verdict)
                await self.work.tend()
                reach("tend.after")
            except DatabaseUnavailable:
                pass
            except Exception as error:
                _log.error("tend.failed", queue=self.work.queue, error=f"{type(error).__name__}: {error}")

    async def _extend(self) -> None:
        """Take another lease of what is held for longer than half of one."""
        while True:
            held = [*self._buffer, *self._in_flight, *self._starts.begun.values()]
            shortest_s = min((claim.lease_s for claim in held), default=1.0)
            await asyncio.sleep(min(shortest_s / 5, 1.0))
            old = {claim.id: claim for claim in held if claim.lease_left_s() < claim.lease_s / 2}
            if not old:
                continue
            asked_at = monotonic()
            try:
                reach("extend.before")
                ours = await self.work.extend(self.id, list(old.values()))
                reach("extend.after")
            except Exception as error:
                _log.warning("lease.not_extended", queue=self.work.queue, rows=len(old), error=str(error))
                continue
            for claim in old.values():
                if claim.id in ours:
                    claim.leased_until = asked_at + claim.lease_s
                else:
                    claim.leased_until = 0.0
                    if claim in self._buffer:
                        self._buffer.remove(claim)
