"""Durable starts: the mark that an attempt has begun is committed before the transport is called."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from time import monotonic
from typing import Generic, TypeVar
from uuid import UUID

from postroom import log
from postroom.errors import DatabaseUnavailable, NotStarted
from postroom.failpoints import reach
from postroom.queue.claim import Begun, Claim, Held, Work

T = TypeVar("T")

BATCH_MAX = 200
"""Starts in one statement, at most."""

GATHER_S = 0.001
"""
While others are in flight, a start waits so long for company. At 2 ms, with that of settles, the CPU time of
worker and PostgreSQL went from 0.64 to 0.44 ms a mail; a full queue gave 3,000 mails/s at 4 ms, 3,600 at 2
and 4,500 at 0.5.
"""

LEASE_LEFT_MIN_S = 0.2
"""A row whose lease ends sooner is not begun: another worker may be about to take it."""

AGAIN_S_MIN, AGAIN_S_MAX = 0.1, 5.0
"""The wait before the next start, where the database answers and refuses them."""

_log = log.get_logger()


class Starts(Generic[T]):
    """
    Groups the starts of a worker: what comes within GATHER_S goes together.

    Without the mark a kill -9 would blame every mail in the buffer; with a statement for each the
    database would be the limit. Where all that are in flight wait for their start, nobody else can come.

    Args:
        in_flight: Every claim that an attempt has been made of and has not ended, as the engine keeps it.
    """

    def __init__(self, work: Work[T], worker: UUID, in_flight: Collection[Claim[T]]) -> None:
        self._work = work
        self._worker = worker
        self._in_flight = in_flight
        self._waiting: list[tuple[Claim[T], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self.begun: dict[UUID, Claim[T]] = {}
        self.statements = 0
        # What refused the last start, and how many there were since one went through.
        self.refusal: Exception | None = None
        self.refusals = 0

    async def begin(self, claim: Claim[T]) -> Held:
        """
        Return once the start of this attempt is durable and still good.

        Returns:
            Tells, at any later moment, whether the row is still surely ours.

        Raises:
            NotStarted: The row must wait for a limit, its lease is lost, or the database is away.
        """
        while not claim.begun_now or claim.route != claim.begun_route:
            if claim.lease_left_s() < LEASE_LEFT_MIN_S:
                raise NotStarted("the lease is about to end", held=True)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((claim, future))
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run())
            await future
        return claim.is_held

    async def _run(self) -> None:
        while self._waiting:
            if len(self._waiting) < len(self._in_flight):
                await asyncio.sleep(GATHER_S)
            batch = [(claim, future) for claim, future in self._waiting[:BATCH_MAX] if not future.done()]
            del self._waiting[:BATCH_MAX]
            if batch:
                await self._begin_batch(batch)

    async def _begin_batch(self, batch: list[tuple[Claim[T], asyncio.Future[None]]]) -> None:
        asked_at = monotonic()
        claims = [claim for claim, _ in batch]
        rerouted = {claim.id for claim in claims if claim.begun_now}
        self.statements += 1
        try:
            reach("begin.before")
            answers = {
                begun.id: begun
                for begun in await self._work.begin(self._worker, claims, list(self.begun.values()))
            }
            reach("begin.after")
        except Exception as error:
            # Whether the mark was written is not known; the next start writes the list anew, without it.
            reason = "the database is away" if isinstance(error, DatabaseUnavailable) else str(error)
            _log.warning("start.failed", queue=self._work.queue, rows=len(batch), error=reason)
            for _, future in batch:
                if not future.done():
                    future.set_exception(NotStarted(reason, held=True))
            if not isinstance(error, DatabaseUnavailable):
                await self._rest_after(error)
            return
        self.refusal, self.refusals = None, 0
        for claim, future in batch:
            answer = answers.get(claim.id) or Begun(claim.id, "late")
            if answer.state == "begun":
                claim.started = True
                claim.begun_route = claim.route
                if claim.id not in rerouted:  # else only a slot of the new route was taken
                    claim.start_good_until = asked_at + self._work.start_good_s
                self.begun[claim.id] = claim
                if not future.done():
                    future.set_result(None)
            else:
                # A start that has grown old and is refused the second time: nothing was handed over.
                claim.started = False
                self.begun.pop(claim.id, None)
                self._work.report_put_back(claim, answer)
                if not future.done():
                    future.set_exception(_not_started(answer))

    async def _rest_after(self, refusal: Exception) -> None:
        # The rows are given back, and are due: without a rest they would go round and round.
        again_s = min(AGAIN_S_MIN * 2**self.refusals, AGAIN_S_MAX)
        self.refusal, self.refusals = refusal, self.refusals + 1
        await asyncio.sleep(again_s)


def _not_started(answer: Begun) -> NotStarted:
    if answer.waits_for is None:
        return NotStarted("the lease is lost")
    return NotStarted(f"it waits for {answer.waits_for}", waits_for=answer.waits_for, due_at=answer.due_at)
