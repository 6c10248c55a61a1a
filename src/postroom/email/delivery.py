"""E-mail's part of the engine: what a claim, an attempt and its end are for an e-mail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from uuid import UUID

from postroom import log
from postroom.email.burden import Burden, is_large
from postroom.email.message import OutgoingEmail
from postroom.email.store import START_GOOD_S, EmailStore
from postroom.email.transports.failover import Failover, Pause
from postroom.errors import DatabaseUnavailable, NotStarted
from postroom.failpoints import reach
from postroom.queue.claim import Begun, Claim, Paused, Settled, Settlement, Start
from postroom.queue.outcome import Verdict
from postroom.queue.pauses import LOOK_S, Pauses

BEYOND_MAX = 500

_log = log.get_logger()


class Delivery:
    """
    The e-mail queue, as the engine sees it (postroom.queue.claim.Work).

    Args:
        transport: The transports of POSTROOM_TRANSPORT, in their order.
        pauses: What persons have paused.
    """

    queue = "email"
    start_good_s = START_GOOD_S

    def __init__(self, store: EmailStore, transport: Failover, pauses: Pauses) -> None:
        self.store = store
        self.transport = transport
        self._pauses = pauses
        self._beyond = 0
        self._planned = 0
        self._burden = Burden()
        self._published: set[asyncio.Task[None]] = set()
        transport.on_change = self._publish_pauses
        transport.held = self._held

    async def claim(
        self, worker: UUID, limit: int, before: datetime | None, held: int
    ) -> list[Claim[OutgoingEmail]]:
        # Rows that another limit than the global one stops are planned away as they turn up; while they
        # stand in front, more are claimed than the global one has slots for, so that they hold up nobody.
        self._beyond = min(self._beyond * 2 + 10, BEYOND_MAX) if self._planned else 0
        self._planned = 0
        if not (limit := await self._burden.room(limit)):
            return []
        claims = await self.store.claim(worker, limit, before, self._beyond - held)
        self._burden.take(claims)
        return claims

    async def begin(
        self, worker: UUID, asked: Sequence[Claim[OutgoingEmail]], begun: Sequence[Claim[OutgoingEmail]]
    ) -> list[Begun]:
        answers = await self.store.begin(worker, asked, begun)
        await self._burden.put(answer.id for answer in answers if answer.state != "begun")
        return answers

    async def settle(self, worker: UUID, settlements: Sequence[Settlement[OutgoingEmail]]) -> list[Settled]:
        settled = await self.store.settle(worker, settlements)
        await self._burden.put(settlement.claim.id for settlement in settlements)
        return settled

    async def extend(self, worker: UUID, claims: Sequence[Claim[OutgoingEmail]]) -> set[UUID]:
        return await self.store.extend(worker, claims)

    async def wait_s(self) -> float | None:
        return await self.store.wait_s()

    async def tend(self) -> None:
        await self.store.tend()

    async def attempt(self, claim: Claim[OutgoingEmail], start: Start) -> str:
        def take(transport_name: str) -> None:
            claim.route = transport_name

        if not is_large(claim.item):
            return await self.transport.send(await self._whole(claim.item), start, on_route=take)
        async with self._burden.in_flight(claim.item):
            return await self.transport.send(await self._whole(claim.item), start, on_route=take)

    async def _whole(self, email: OutgoingEmail) -> OutgoingEmail:
        if email.attached is None:
            return email
        try:
            return await self.store.with_attachments(email)
        except DatabaseUnavailable as error:
            raise NotStarted(f"its attachments cannot be read: {error}", held=True) from None

    async def look_at_pauses(self, *, older_than_s: float = LOOK_S) -> None:
        await self._pauses.look(older_than_s=older_than_s)

    def paused(self) -> Paused | None:
        if (held := self._pauses.of_queue(self.queue)) is not None:
            return held
        if (left_s := self.transport.paused_for_s()) is None:
            return None
        said = "; ".join(f"{pause.name} is {pause.said}" for pause in self.transport.pauses())
        return Paused(left_s, str(Verdict.TRANSPORT_DOWN), said)

    def claim_limit(self, room: int) -> int:
        all_were_down = len(self.transport.pauses()) == len(self.transport.transports)
        return 1 if all_were_down else room

    def report(self, settlement: Settlement[OutgoingEmail], settled: Settled | None) -> None:
        email, outcome = settlement.claim.item, settlement.outcome
        facts: dict[str, object] = {"id": str(email.id), "to": email.to_email, "email_type": email.email_type}
        if outcome is not None:
            facts["outcome"] = settlement.verdict
            facts["reply"] = outcome.reply
            facts["attempt_ms"] = settlement.attempt_ms
        if settled is None:
            _log.warning("email.late", lease_no=settlement.claim.lease_no, **facts)
            return
        facts["attempts"] = settled.attempts
        if settled.status == "sent":
            if settlement.ended_at is not None and email.created_at is not None:
                facts["total_ms"] = round((settlement.ended_at - email.created_at).total_seconds() * 1000)
            _log.info("email.sent", **facts)
        elif settled.status == "dead_letter":
            _log.error("email.dead_letter", **facts)
        else:
            next_at = settled.next_retry_at.isoformat() if settled.next_retry_at else None
            _log.warning("email.put_back", next_retry_at=next_at, **facts)

    def report_put_back(self, claim: Claim[OutgoingEmail], begun: Begun) -> None:
        if begun.waits_for not in (None, "limit:email:global"):
            self._planned += 1
        _log.info(
            "email.waits" if begun.state == "waits" else "email.lease_lost",
            id=str(claim.id),
            waits_for=begun.waits_for,
            until=begun.due_at.isoformat() if begun.due_at else None,
        )

    def _held(self, name: str) -> Pause | None:
        """What a person has paused, as one of the pauses of transports that are down."""
        if (held := self._pauses.of("transport", name)) is None:
            return None
        until = monotonic() + self._pauses.left_s("transport", name)
        return Pause(name, until, held.in_short, failures=0, by_hand=True)

    def _publish_pauses(self, name: str, pause_s: float | None, reason: str | None, failures: int) -> None:
        if pause_s is not None:
            _log.warning(
                "transport.paused",
                transport=name,
                pause_s=round(pause_s, 1),
                reason=reason,
                failures=failures,
            )
        else:
            _log.info("transport.resumed", transport=name)
        task = asyncio.create_task(self._publish(name, pause_s, reason, failures))
        self._published.add(task)
        task.add_done_callback(self._published.discard)

    async def _publish(self, name: str, pause_s: float | None, reason: str | None, failures: int) -> None:
        try:
            reach("pause.before")
            await self.store.publish_pause(name, pause_s, reason, failures)
            reach("pause.after")
        except Exception as error:
            _log.warning("transport.not_published", transport=name, error=str(error))
