"""Webhooks' part of the engine: what a claim, an attempt and its end are for an event."""

from __future__ import annotations

import asyncio
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import monotonic
from uuid import UUID

from postroom import log
from postroom.errors import NotStarted, PermanentFailure, SendError
from postroom.failpoints import reach
from postroom.queue.claim import Begun, Claim, Paused, Settled, Settlement, Start
from postroom.queue.outcome import Outcome, Verdict
from postroom.queue.pauses import LOOK_S as LOOK_PAUSES_S
from postroom.queue.pauses import Pauses
from postroom.webhooks.event import Event
from postroom.webhooks.handlers import Handlers, Runnable
from postroom.webhooks.slots import Slots
from postroom.webhooks.store import ClaimedEvent, Ran, WebhookStore

START_GOOD_S = 60.0
"""Nothing is taken with a start here; it only has to be there."""

LOOK_S = 5.0
"""How often a worker looks which handlers the programs have registered."""

_NOT_THE_USERS = (
    "<",
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
)
"""Where frames are that say nothing of a handler: Python's own, libraries', and postroom's."""

_log = log.get_logger()


class Delivery:
    """
    The webhook queue, as the engine sees it (postroom.queue.claim.Work).

    Args:
        slots: How many handlers may have a transaction open at once; shared by all engines of the process.
        posts: How many events may be at handlers that have none, which are URLs; the same.
        pauses: What persons have paused.

    Attributes:
        on_error: Gets what a handler raises, with its trace.
    """

    queue = "webhook"
    start_good_s = START_GOOD_S

    def __init__(
        self,
        store: WebhookStore,
        handlers: Handlers,
        slots: Slots,
        posts: asyncio.Semaphore,
        pauses: Pauses,
    ) -> None:
        self.store = store
        self.handlers = handlers
        self.on_error: Callable[[BaseException], None] = _ignore
        self._slots = slots
        self._posts = posts
        self._pauses = pauses
        self._unknown: set[str] = set()
        self._looked_at = -LOOK_S
        self._ran: dict[UUID, list[Ran]] = {}

    async def claim(
        self,
        worker: UUID,
        limit: int,
        before: datetime | None,
        held: int,  # noqa: ARG002
    ) -> list[Claim[ClaimedEvent]]:
        await self._look()
        return await self.store.claim(worker, limit, before)

    async def begin(
        self, worker: UUID, asked: Sequence[Claim[ClaimedEvent]], begun: Sequence[Claim[ClaimedEvent]]
    ) -> list[Begun]:
        return await self.store.begin(worker, asked, begun)

    async def settle(self, worker: UUID, settlements: Sequence[Settlement[ClaimedEvent]]) -> list[Settled]:
        ran = [one for settlement in settlements for one in self._ran.get(settlement.claim.id, ())]
        settled = await self.store.settle(worker, settlements, ran)
        for settlement in settlements:
            self._ran.pop(settlement.claim.id, None)
        return settled

    async def extend(self, worker: UUID, claims: Sequence[Claim[ClaimedEvent]]) -> set[UUID]:
        return await self.store.extend(worker, claims)

    async def wait_s(self) -> float | None:
        return await self.store.wait_s()

    async def tend(self) -> None:
        await self.store.tend()

    async def attempt(self, claim: Claim[ClaimedEvent], start: Start) -> str | Outcome:
        """
        Run the handlers that want the event and are not done with it, one after the other.

        Each is finished in the transaction of its effect, so whatever ends this, a later attempt runs only
        the others.
        """
        item = claim.item
        if item.event.source in self.store.not_of or not self.handlers.knows(item.event.source):
            self._leave_alone(item.event.source)
            raise NotStarted(f"the handlers of {item.event.source} are elsewhere", held=True)
        event = self.handlers.typed(item.event)
        wanting = self.handlers.of(event)
        if not wanting:
            return Outcome(Verdict.UNHANDLED, f"no handler wants it; its type is {event.type!r}"[:200])
        to_run = [one for one in wanting if one.name not in item.done and one.name not in item.stopped]
        ended = _Ended(stopped=[f"{one.name}: refused before" for one in wanting if one.name in item.stopped])
        # The slot comes first: what waits for one has not begun, and no crash is blamed on it.
        async with self._slot_for(to_run, claim), self._post_for(to_run):
            if to_run:
                await start()
            for one in to_run:
                began, failed, stopped = monotonic(), len(ended.failed), len(ended.stopped)
                await self._run(one, claim, event, ended)
                if ended.lost:
                    break
                verdict = (
                    Verdict.TEMPORARY
                    if len(ended.failed) > failed
                    else Verdict.PERMANENT
                    if len(ended.stopped) > stopped
                    else Verdict.DONE
                )
                took_ms = round((monotonic() - began) * 1000)
                self._ran.setdefault(claim.id, []).append(
                    Ran(claim.id, event.source, one.name, str(verdict), took_ms)
                )
        return ended.outcome([one.name for one in wanting])

    async def look_at_pauses(self, *, older_than_s: float = LOOK_PAUSES_S) -> None:
        await self._pauses.look(older_than_s=older_than_s)

    def paused(self) -> Paused | None:
        return self._pauses.of_queue(self.queue)

    def claim_limit(self, room: int) -> int:
        return room

    def report(self, settlement: Settlement[ClaimedEvent], settled: Settled | None) -> None:
        event, outcome = self.handlers.typed(settlement.claim.item.event), settlement.outcome
        facts: dict[str, object] = {
            "id": str(event.id),
            "source": event.source,
            "event_id": event.event_id,
            "event_type": event.type,
        }
        if outcome is not None:
            facts |= {
                "outcome": settlement.verdict,
                "reply": outcome.reply,
                "attempt_ms": settlement.attempt_ms,
            }
        if settled is None:
            _log.warning("webhook.late", lease_no=settlement.claim.lease_no, **facts)
            return
        facts["attempts"] = settled.attempts
        if settled.status == "processed":
            if settlement.ended_at is not None and event.received_at is not None:
                facts["total_ms"] = round((settlement.ended_at - event.received_at).total_seconds() * 1000)
            if settlement.verdict == Verdict.UNHANDLED:
                _log.info("webhook.unhandled", **facts)
            else:
                _log.info("webhook.processed", **facts)
        elif settled.status == "dead_letter":
            _log.error("webhook.dead_letter", **facts)
        else:
            next_at = settled.next_retry_at.isoformat() if settled.next_retry_at else None
            _log.warning("webhook.put_back", next_retry_at=next_at, **facts)

    def report_put_back(self, claim: Claim[ClaimedEvent], begun: Begun) -> None:  # noqa: ARG002  only one state
        _log.info("webhook.lease_lost", id=str(claim.id), source=claim.item.event.source)

    def _slot_for(
        self, to_run: Sequence[Runnable], claim: Claim[ClaimedEvent]
    ) -> AbstractAsyncContextManager[None]:
        shares = [one.shares for one in to_run if one.shares is not None]
        return self._slots.taken(lambda: max(of(claim) for of in shares)) if shares else nullcontext()

    def _post_for(self, to_run: Sequence[Runnable]) -> AbstractAsyncContextManager[None]:
        return self._posts if any(one.shares is None for one in to_run) else nullcontext()

    async def _run(self, one: Runnable, claim: Claim[ClaimedEvent], event: Event, ended: _Ended) -> None:
        try:
            try:
                reach("handler.before")
                await one.run(claim, event)
                reach("handler.after")
            except PermanentFailure as error:
                self.on_error(error)
                reach("handler.stop.before")
                await self.store.finish_handler(claim.item.worker, claim, one.name, stopped=True)
                reach("handler.stop.after")
                ended.stopped.append(f"{one.name}: {error.text}")
        except NotStarted:
            ended.lost = True
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            ended.failed.append(f"{one.name}: it was cancelled from within")
        except SendError as error:
            self.on_error(error)
            ended.failed.append(f"{one.name}: {error.text}")
            ended.retry_after_s = max(ended.retry_after_s or 0.0, error.retry_after_s or 0.0) or None
        except (Exception, SystemExit) as error:
            self.on_error(error)
            ended.failed.append(f"{one.name}: {_told(error)}")

    def _leave_alone(self, source: str) -> None:
        if source not in self._unknown and source not in self.store.not_of:
            _log.warning("webhook.left_alone", source=source)
            self._unknown.add(source)
            self.store.not_of = (*self.store.not_of, source)

    async def _look(self) -> None:
        """Leave alone what another program has handlers for, and what nobody here knows."""
        if monotonic() - self._looked_at < LOOK_S:
            return
        elsewhere = await self.store.sources_of_others(self.handlers.names())
        if new := elsewhere - set(self.store.not_of):
            for source, apps in sorted((await self.store.programs_of(sorted(new))).items()):
                _log.info("webhook.handled_elsewhere", source=source, app=", ".join(apps))
        self.store.not_of = tuple(sorted(self._unknown | elsewhere))
        self._looked_at = monotonic()


@dataclass(slots=True)
class _Ended:
    """How the handlers of one attempt ended."""

    stopped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    retry_after_s: float | None = None
    lost: bool = False

    def outcome(self, wanting: Sequence[str]) -> Outcome:
        """What follows for the event."""
        if self.lost:
            return Outcome(Verdict.TEMPORARY, "the lease was lost before a handler was done; it was undone")
        if self.failed:
            return Outcome(
                Verdict.TEMPORARY, "; ".join(self.failed + self.stopped), retry_after_s=self.retry_after_s
            )
        if self.stopped:
            return Outcome(Verdict.PERMANENT, "; ".join(self.stopped))
        return Outcome(Verdict.DONE, ", ".join(wanting))


def _told(error: BaseException) -> str:
    """The kind of an error, the first line of what it says, and where in the handler it was raised."""
    line = next(iter(str(error).strip().splitlines()), "")[:300]
    told = f"{type(error).__name__}: {line}" if line else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    return f"{told} ({_shown(own[-1].filename)}, line {own[-1].lineno})" if own else told


def _shown(file: str) -> str:
    here = Path.cwd()
    return str(Path(file).relative_to(here) if Path(file).is_relative_to(here) else file)


def _ignore(_: BaseException) -> None:
    pass
