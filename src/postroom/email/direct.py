"""
E-mail that is attempted at once, while somebody waits for the answer.

It is a row like every other: leased to a worker of this process that claims nothing by itself, begun
under the limits, attempted once and settled. What it does not have is patience: where a limit is
reached there is no row, and what fails is a dead letter.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from time import monotonic
from uuid import UUID

from postroom import log
from postroom.email.check import AcceptedEmail
from postroom.email.message import OutgoingEmail
from postroom.email.store import EmailStore, LimitReached
from postroom.errors import DatabaseUnavailable, InvalidEmail, NotStarted, PostroomError
from postroom.failpoints import reach
from postroom.queue.claim import Claim, Settlement
from postroom.queue.engine import Engine
from postroom.queue.outcome import Outcome, Verdict
from postroom.row_ids import new_row_id

DEADLINE_S = 60.0
"""How long an attempt may take: whoever waits for it gives up after a minute or two."""

LINE_S_MAX = 30.0
"""How long an e-mail waits for its turn, where as many are being attempted as may be at once."""

FOLLOW_S_MAX = 30.0
FOLLOW_POLL_S = 0.1
UNKNOWN_MAX = 1_000
UNKNOWN_AGAIN_S = 2.0
STAND_BY_AGAIN_S = 1.0

_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class Sent:
    """It is out; or, where its idempotency key had a row already, it is out or will be."""

    id: UUID


@dataclass(frozen=True, slots=True)
class NotSent:
    """
    It failed, and its row is a dead letter.

    Attributes:
        uncertain: It may have gone out all the same.
    """

    id: UUID
    reason: str
    uncertain: bool


class TooBusy(PostroomError):
    """As many e-mails are being attempted as may be at once: nothing was queued; try again."""


class DirectSends:
    """
    Attempts e-mails at once.

    Args:
        engine: A worker of this use alone.
        at_once: How many are attempted at the same time.
    """

    def __init__(self, store: EmailStore, engine: Engine[OutgoingEmail], *, at_once: int) -> None:
        self._store = store
        self._engine = engine
        self._turns = asyncio.Semaphore(at_once)
        self._stop = asyncio.Event()
        self._standing_by: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[Sent | NotSent | LimitReached]] = set()
        self._unknown: list[Claim[OutgoingEmail]] = []
        self._clearing: asyncio.Task[None] | None = None

    async def send(self, accepted: AcceptedEmail) -> Sent | NotSent | LimitReached:
        """
        Attempt one e-mail.

        An idempotency key that has a row gives that row's fate; nothing is sent again.

        Raises:
            InvalidEmail: There is no sender.
            DatabaseUnavailable: The row could not be made; nothing was sent.
            TooBusy: So many are being attempted that its turn did not come.
        """
        if accepted.from_email is None and self._store.sender is None:
            raise InvalidEmail("from", "is missing, and no POSTROOM_FROM is set")
        # In a task of its own: a caller who goes away does not cut off an attempt that has begun.
        task = asyncio.create_task(self._send_in_turn(accepted))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return await asyncio.shield(task)

    async def start(self) -> None:
        """Register the worker, without waiting for a database that is away."""
        if self._standing_by is None:
            self._standing_by = asyncio.create_task(self._stand_by())
        with suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await self._engine.registered.wait()

    async def close(self) -> None:
        """End: attempts in flight are finished and settled."""
        if self._sending:
            await asyncio.wait(self._sending)
        self._stop.set()
        if self._clearing is not None:
            self._clearing.cancel()
            await asyncio.gather(self._clearing, return_exceptions=True)
        if self._standing_by is not None:
            if not self._engine.registered.is_set():
                self._standing_by.cancel()
            await asyncio.gather(self._standing_by, return_exceptions=True)

    async def _stand_by(self) -> None:
        """Without a worker's row nothing can be begun, for as long as this process lives."""
        while not self._stop.is_set():
            try:
                await self._engine.stand_by(self._stop)
            except Exception as error:
                _log.error("tend.failed", queue="email", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(STAND_BY_AGAIN_S)

    async def _send_in_turn(self, accepted: AcceptedEmail) -> Sent | NotSent | LimitReached:
        try:
            async with asyncio.timeout(LINE_S_MAX):
                await self._turns.acquire()
        except TimeoutError:
            raise TooBusy("too many e-mails are being sent at once; try again, or use the queue") from None
        try:
            await self.start()
            return await self._send(accepted)
        finally:
            self._turns.release()

    async def _send(self, accepted: AcceptedEmail) -> Sent | NotSent | LimitReached:
        email_id = new_row_id()
        try:
            reach("direct.insert.before")
            begun = await self._store.begin_direct(self._engine.id, email_id, accepted)
            reach("direct.insert.after")
        except Exception:
            self._settle_unknown(email_id)
            raise
        if isinstance(begun, LimitReached):
            return begun
        if isinstance(begun, UUID):
            return await self._follow(begun)
        try:
            outcome = await self._engine.attempt_now(begun)
        except NotStarted as refused:
            return await self._put_back(begun, refused)
        reach("direct.answer.before")
        if outcome.verdict == Verdict.DONE:
            return Sent(email_id)
        return NotSent(email_id, outcome.reply, outcome.verdict == Verdict.UNCERTAIN)

    async def _put_back(
        self, claim: Claim[OutgoingEmail], refused: NotStarted
    ) -> Sent | NotSent | LimitReached:
        """The slots were gone when it came to begin: as if it had never been there."""
        key = (refused.waits_for or "").removeprefix("limit:")
        try:
            reach("direct.withdraw.before")
            wait_s = await self._store.withdraw_direct(claim)
            reach("direct.withdraw.after")
        except DatabaseUnavailable:
            return NotSent(claim.id, "the database went away; the e-mail waits for a limit", uncertain=True)
        if wait_s is not None:
            return LimitReached(key, wait_s)
        return await self._follow(claim.id)

    async def _follow(self, email_id: UUID) -> Sent | NotSent:
        """What becomes of a row that another is attempting."""
        ends = monotonic() + FOLLOW_S_MAX
        while (fate := await self._store.fate(email_id)) is not None and fate.status == "processing":
            if monotonic() > ends:
                return NotSent(email_id, "its attempt goes on; ask again later", uncertain=True)
            await asyncio.sleep(FOLLOW_POLL_S)
        if fate is None:
            return NotSent(email_id, "its row has been deleted meanwhile", uncertain=True)
        if fate.status in ("dead_letter", "failed"):
            reason = fate.last_error or f"it is a {fate.status}"
            is_uncertain = reason.startswith("uncertain: ")
            return NotSent(email_id, reason.removeprefix("uncertain: "), is_uncertain)
        return Sent(email_id)

    def _settle_unknown(self, email_id: UUID) -> None:
        """
        Make a dead letter of a row of which it is not known whether it was made.

        Its caller was told that nothing was queued: a worker must not send it when the lease ends.
        """
        if len(self._unknown) >= UNKNOWN_MAX:
            return
        self._unknown.append(Claim(email_id, _no_email(email_id), 1, 0.0, -inf))
        if self._clearing is None or self._clearing.done():
            self._clearing = asyncio.create_task(self._clear_unknown())

    async def _clear_unknown(self) -> None:
        outcome = Outcome(Verdict.TEMPORARY, "the database went away before the attempt")
        while self._unknown:
            await asyncio.sleep(UNKNOWN_AGAIN_S)
            claims = list(self._unknown)
            settlements = [
                Settlement(claim, "abandoned", outcome, ended_at=datetime.now(UTC)) for claim in claims
            ]
            with suppress(DatabaseUnavailable):
                for settled in await self._store.settle(self._engine.id, settlements):
                    _log.error("email.dead_letter", id=str(settled.id), reply=outcome.reply)
                del self._unknown[: len(claims)]


def _no_email(email_id: UUID) -> OutgoingEmail:
    return OutgoingEmail(email_id, "", "", "", None)
