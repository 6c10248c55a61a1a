"""Settling in the background: outcomes are written down in batches of whatever has ended."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar
from uuid import UUID

from postroom import log
from postroom.errors import DatabaseUnavailable
from postroom.failpoints import reach
from postroom.queue.claim import Claim, Settled, Settlement, Work

T = TypeVar("T")

BATCH_MAX = 500
"""Outcomes in one statement, at most."""

GATHER_S = 0.005
"""While others are in flight, an outcome waits so long for company."""

AGAIN_S_MIN, AGAIN_S_MAX = 0.1, 5.0
"""The wait before a settle is repeated, where the database is away."""

_log = log.get_logger()


class Settles(Generic[T]):
    """
    Writes outcomes down, in order, until each is recorded.

    A settle whose answer was lost is repeated: the lease number makes the second one change nothing.

    Args:
        begun: The attempts in flight, as Starts keeps them; a settled one is taken out.
    """

    def __init__(self, work: Work[T], worker: UUID, begun: dict[UUID, Claim[T]]) -> None:
        self._work = work
        self._worker = worker
        self._begun = begun
        self._waiting: list[Settlement[T]] = []
        self._task: asyncio.Task[None] | None = None
        self.counts: dict[str, int] = {}

    @property
    def open(self) -> int:
        """How many outcomes are not recorded yet."""
        return len(self._waiting)

    def settle(self, settlement: Settlement[T]) -> None:
        """Take an outcome; it is recorded soon, and surely before `flush` returns."""
        self._waiting.append(settlement)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def flush(self) -> None:
        """Return once every outcome that was taken is recorded."""
        while self._task is not None and not self._task.done():
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        again_s = AGAIN_S_MIN
        while self._waiting:
            if len(self._begun) > len(self._waiting):
                await asyncio.sleep(GATHER_S)
            batch = self._waiting[:BATCH_MAX]
            try:
                reach("settle.before")
                rows = {row.id: row for row in await self._work.settle(self._worker, batch)}
                reach("settle.after")
            except Exception as error:
                # The row is kept in memory: it must not be attempted again while its outcome is known.
                if not isinstance(error, DatabaseUnavailable) or again_s == AGAIN_S_MIN:
                    _log.warning("settle.repeated", queue=self._work.queue, rows=len(batch), error=str(error))
                for settlement in batch:
                    settlement.tries += 1
                await asyncio.sleep(again_s)
                again_s = min(again_s * 2, AGAIN_S_MAX)
                continue
            again_s = AGAIN_S_MIN
            del self._waiting[: len(batch)]
            for settlement in batch:
                self._record(settlement, rows.get(settlement.claim.id))

    def _record(self, settlement: Settlement[T], settled: Settled | None) -> None:
        claim = settlement.claim
        if self._begun.get(claim.id) is claim:
            del self._begun[claim.id]
        verdict = str(settlement.verdict)  # a Verdict as a key is no JSON
        self.counts[verdict] = self.counts.get(verdict, 0) + 1
        if settlement.outcome is not None:
            self._report(settlement, settled)
        if settlement.recorded is not None and not settlement.recorded.done():
            settlement.recorded.set_result(settled)

    def _report(self, settlement: Settlement[T], settled: Settled | None) -> None:
        try:
            reach("report.before")
            self._work.report(settlement, settled)
        except Exception as error:
            # What cannot be told must not keep the rest of the batch from being recorded.
            said = f"{type(error).__name__}: {error}"
            _log.error("report.failed", queue=self._work.queue, id=str(settlement.claim.id), error=said)
