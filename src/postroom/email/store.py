"""The e-mail queue's SQL: every statement that the house says to email_queue stands here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic
from typing import Any
from uuid import UUID

from postroom.database.connect import Database
from postroom.email.check import AcceptedEmail
from postroom.email.message import OutgoingEmail
from postroom.errors import PermanentFailure
from postroom.failpoints import reach
from postroom.queue import statements
from postroom.queue.claim import Begun, Claim, Settled, Settlement

START_GOOD_S = 0.25
"""A slot of a limit is good for 250 ms: then the mail's transaction has begun, or it is taken anew."""

BOOKS_A_LOOK = 5_000
"""
So many limiter's books are looked at in a second, to forget those that have ended: a worker that sends 3,000
mails a second to ever new recipients makes no more of them. A look at 5,000 takes about 5 ms.
"""

BOOKS_AGAIN_S = 10.0
"""The wait after the last book, before the first one is looked at again."""

ATTACHMENTS_S = 30.0
"""For reading an e-mail's attachments."""

HELD_COUNT_MAX = 100_000
"""Waiting rows beyond this many are not counted."""


@dataclass(frozen=True, slots=True)
class LimitReached:
    """A direct e-mail found no slot: nothing was sent, and there is no row."""

    limit_key: str
    wait_s: float


@dataclass(frozen=True, slots=True)
class Fate:
    """A row's status, and what its last attempt failed by."""

    status: str
    last_error: str | None


class EmailStore:
    """
    Claims, begins and settles e-mails.

    Args:
        sender: POSTROOM_FROM: written into claimed rows that name no sender.
    """

    def __init__(self, database: Database, *, sender: str | None = None) -> None:
        self._database = database
        self.sender = sender
        self._book: str | None = ""
        self._books_looked_at = 0.0

    async def claim(
        self, worker: UUID, limit: int, before: datetime | None, beyond: int
    ) -> list[Claim[OutgoingEmail]]:
        """Lease up to `limit` due e-mails; `beyond` is added to what the global limit has slots for."""
        asked_at = monotonic()
        rows = await self._database.fetch(
            "SELECT * FROM postroom.claim_emails($1, $2, $3, $4, $5, true)",
            worker,
            limit,
            self.sender,
            before,
            beyond,
        )
        return [
            Claim(row["id"], email_of(row), row["lease_no"], row["lease_s"], asked_at + row["lease_s"])
            for row in rows
        ]

    async def with_attachments(self, email: OutgoingEmail) -> OutgoingEmail:
        """
        A claimed e-mail with its attachments, which no claim brings: a worker holds those of its attempts.

        Raises:
            PermanentFailure: They are more than it should hold at all.
        """
        if email.attached is None or email.attachments is not None:
            return email
        return replace(email, attachments=await self.attachments(email.id))

    async def attachments(self, email_id: UUID) -> object:
        """
        What an e-mail's column attachments holds, as JSON.

        Raises:
            PermanentFailure: That is more than a worker should hold at all; or the e-mail is gone.
        """
        reach("attachments.before")
        rows = await self._database.fetch(
            "SELECT * FROM postroom.email_attachments($1)", email_id, deadline_s=ATTACHMENTS_S
        )
        reach("attachments.after")
        if not rows:
            raise PermanentFailure("attachments: have in base64 more than 50 MB, which no mail server takes")
        return None if rows[0][0] is None else statements.read_json(rows[0][0])

    async def begin(
        self, worker: UUID, asked: Sequence[Claim[OutgoingEmail]], begun: Sequence[Claim[OutgoingEmail]]
    ) -> list[Begun]:
        """
        Take the slots of the limits and write the start marks.

        One that was begun a moment ago by another route needs a slot of its new transport only.
        """
        rows = await self._database.fetch(
            "SELECT id, state, waits_for, due_at FROM postroom.begin_emails($1, $2, $3, $4, $5, $6, $7)",
            worker,
            *statements.leases(asked),
            *statements.leases(begun),
            [claim.route or None for claim in asked],
            [claim.begun_now for claim in asked],
        )
        return [statements.begun(row) for row in rows]

    async def begin_direct(
        self, worker: UUID, email_id: UUID, accepted: AcceptedEmail
    ) -> Claim[OutgoingEmail] | LimitReached | UUID:
        """
        Make the row of an e-mail that is attempted at once, leased to `worker`.

        Args:
            email_id: The row's, so that it is known where the answer is lost.

        Returns:
            The claim; or the id of a row that has the same idempotency key; or the limit that is reached.
        """
        asked_at = monotonic()
        documents = accepted.documents
        sender = accepted.from_email or self.sender
        row = await self._database.fetchrow(
            """
            SELECT id, made, lease_s, created_at, wait_s, limit_key
            FROM postroom.begin_direct_email(
                $1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10, $11::text::jsonb, $12, $13::text::jsonb
            )
            """,
            worker,
            email_id,
            accepted.to,
            accepted.subject,
            accepted.html,
            sender,
            accepted.reply_to,
            accepted.email_type,
            json_text(accepted.metadata),
            accepted.text,
            json_text(accepted.headers),
            accepted.idempotency_key,
            json_text(documents),
        )
        assert row is not None
        if row["id"] is None:
            return LimitReached(row["limit_key"], row["wait_s"] or 0.0)
        if not row["made"]:
            return UUID(str(row["id"]))
        email = OutgoingEmail(
            id=row["id"],
            to_email=accepted.to,
            subject=accepted.subject,
            html=accepted.html,
            from_email=sender,
            reply_to=accepted.reply_to,
            text=accepted.text,
            headers=accepted.headers or {},
            created_at=row["created_at"],
            max_attempts=1,
            email_type=accepted.email_type,
            attached=accepted.attached,
            attachments=documents,
        )
        return Claim(row["id"], email, 1, row["lease_s"], asked_at + row["lease_s"])

    async def withdraw_direct(self, claim: Claim[OutgoingEmail]) -> float | None:
        """
        Take back the row of a direct e-mail that was put back to wait for a limit.

        Returns:
            Seconds until it may be tried again; None where a worker has claimed the row meanwhile.
        """
        row = await self._database.fetchrow(
            "SELECT withdrawn, wait_s FROM postroom.withdraw_direct_email($1, $2)", claim.id, claim.lease_no
        )
        assert row is not None
        return float(row["wait_s"]) if row["withdrawn"] else None

    async def fate(self, email_id: UUID) -> Fate | None:
        """What has become of an e-mail so far; None where there is no such row."""
        row = await self._database.fetchrow(
            "SELECT status, last_error FROM public.email_queue WHERE id = $1", email_id
        )
        return None if row is None else Fate(row["status"], row["last_error"])

    async def count_held_by_limit(self, due_before: datetime) -> int:
        """How many e-mails were due then and still wait, where the global limit has no slot now."""
        count: int = await self._database.fetchval(
            """
            SELECT count(*)
            FROM (
                SELECT FROM public.email_queue AS held
                WHERE held.status = 'pending'
                    AND COALESCE(held.due_at, held.next_retry_at, '-infinity'::timestamptz) <= $1
                LIMIT $2
            ) AS held
            WHERE (SELECT book.free FROM postroom.free_slots('email:global') AS book) = 0
            """,
            due_before,
            HELD_COUNT_MAX,
        )
        return count

    async def settle(self, worker: UUID, settlements: Sequence[Settlement[OutgoingEmail]]) -> list[Settled]:
        """Write down what became of some e-mails, in one statement."""
        rows = await self._database.fetch(
            """
            SELECT id, status, attempts, next_retry_at
            FROM postroom.settle_emails($1, $2, $3, $4, $5, $6, $7::text[]::jsonb[])
            """,
            *statements.outcomes(worker, settlements),
        )
        return [statements.settled(row) for row in rows]

    async def extend(self, worker: UUID, claims: Sequence[Claim[OutgoingEmail]]) -> set[UUID]:
        """Take another lease of e-mails that are held; returns those that are still ours."""
        rows = await self._database.fetch(
            "SELECT postroom.extend_email_leases($1, $2, $3) AS id",
            worker,
            *statements.leases(claims),
        )
        return {row["id"] for row in rows}

    async def wait_s(self) -> float | None:
        """Seconds until an e-mail can be claimed: 0 now, None where nothing waits."""
        seconds: float | None = await self._database.fetchval("SELECT postroom.email_wait_s()")
        return seconds

    async def tend(self) -> None:
        """
        Plan anew what waits for a limit that was changed; write outcomes that a row had refused; forget books
        of limits in which nothing counts any more.
        """
        while await self._database.fetchval("SELECT postroom.replan_limited_emails(1000)"):
            pass
        await self._database.execute("SELECT postroom.settle_refused_emails()")
        await self._forget_ended_books()

    async def _forget_ended_books(self) -> None:
        if self._book is None:
            if monotonic() < self._books_looked_at + BOOKS_AGAIN_S:
                return
            self._book = ""
        query = "SELECT postroom.forget_ended_books($1, $2)"
        self._book = await self._database.fetchval(query, self._book, BOOKS_A_LOOK)
        self._books_looked_at = monotonic()

    async def publish_pause(
        self, name: str, pause_s: float | None, reason: str | None, failures: int
    ) -> None:
        """Show everybody that a transport is down, or up again (None)."""
        await self._database.execute(
            """
            INSERT INTO postroom.transports (name, paused_until, reason, failures)
            VALUES ($1, clock_timestamp() + make_interval(secs => $2), $3, $4)
            ON CONFLICT (name) DO UPDATE
            SET paused_until = EXCLUDED.paused_until, reason = EXCLUDED.reason,
                failures = EXCLUDED.failures, updated_at = clock_timestamp()
            """,
            name,
            pause_s,
            None if reason is None else statements.storable(reason),
            failures,
        )


def email_of(row: Any) -> OutgoingEmail:
    """A row that a claim, or another look at the queue, has read; `html` is None where it is too large."""
    headers = statements.read_json(row["headers"]) if row["headers"] not in (None, "null") else {}
    return OutgoingEmail(
        row["id"],
        row["to_email"],
        row["subject"],
        row["html"] or "",
        row["from_email"],
        row["reply_to"],
        row["text"],
        # What an old caller may have stored is told by the rendering, not lost here.
        headers if isinstance(headers, dict) else {"": headers},
        row["created_at"],
        row["attempts"],
        row["max_attempts"],
        row["email_type"],
        is_too_large=row["html"] is None,
        attached=row["attached"],
    )


def json_text(value: object) -> str | None:
    """A value that check_email has accepted, as jsonb takes it; the standard library writes any integer."""
    return None if value is None else json.dumps(value, ensure_ascii=False)
