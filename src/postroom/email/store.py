"""The e-mail queue's SQL: every statement that the house says to email_queue stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any
from uuid import UUID

import orjson

from postroom.database.connect import Database
from postroom.email.message import OutgoingEmail
from postroom.queue.claim import Begun, Claim, Settled, Settlement

START_GOOD_S = 0.25
"""A slot of a limit is good for 250 ms: then the mail's transaction has begun, or it is taken anew."""

REPLY_CHARS_MAX = 1_000
"""What the other side said, as far as it is kept."""


@dataclass(frozen=True, slots=True)
class LimitReached:
    """A direct e-mail found no slot: nothing was sent, and there is no row."""

    limit_key: str
    wait_s: float


class EmailStore:
    """
    Claims, begins and settles e-mails.

    Args:
        sender: POSTROOM_FROM: written into claimed rows that name no sender.
    """

    def __init__(self, database: Database, *, sender: str | None = None) -> None:
        self._database = database
        self._sender = sender

    async def claim(
        self, worker: UUID, limit: int, before: datetime | None, beyond: int
    ) -> list[Claim[OutgoingEmail]]:
        """Lease up to `limit` due e-mails; `beyond` is added to what the global limit has slots for."""
        asked_at = monotonic()
        rows = await self._database.fetch(
            "SELECT * FROM postroom.claim_emails($1, $2, $3, $4, $5)",
            worker,
            limit,
            self._sender,
            before,
            beyond,
        )
        return [
            Claim(row["id"], _email(row), row["lease_no"], row["lease_s"], asked_at + row["lease_s"])
            for row in rows
        ]

    async def begin(
        self, worker: UUID, asked: Sequence[Claim[OutgoingEmail]], begun: Sequence[Claim[OutgoingEmail]]
    ) -> list[Begun]:
        """Take the slots of the limits and write the start marks."""
        rows = await self._database.fetch(
            "SELECT id, state, waits_for, due_at FROM postroom.begin_emails($1, $2, $3, $4, $5)",
            worker,
            [claim.id for claim in asked],
            [claim.lease_no for claim in asked],
            [claim.id for claim in begun],
            [claim.lease_no for claim in begun],
        )
        return [Begun(row["id"], row["state"], row["waits_for"], row["due_at"]) for row in rows]

    async def begin_direct(
        self, worker: UUID, begun: Sequence[Claim[OutgoingEmail]], fields: Mapping[str, Any]
    ) -> Claim[OutgoingEmail] | LimitReached:
        """
        Make the row of an e-mail that is attempted at once, with its slots and its start mark.

        Args:
            fields: to, subject, html, and where given from, reply_to, email_type, metadata, text, headers.
        """
        asked_at = monotonic()
        row = await self._database.fetchrow(
            """
            SELECT id, lease_s, created_at, wait_s, limit_key
            FROM postroom.begin_direct_email(
                $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb, $11, $12::text::jsonb
            )
            """,
            worker,
            [claim.id for claim in begun],
            [claim.lease_no for claim in begun],
            fields["to"],
            fields["subject"],
            fields["html"],
            fields.get("from") or self._sender,
            fields.get("reply_to"),
            fields.get("email_type"),
            _json(fields.get("metadata")),
            fields.get("text"),
            _json(fields.get("headers")),
        )
        assert row is not None
        if row["id"] is None:
            return LimitReached(row["limit_key"], row["wait_s"])
        email = OutgoingEmail(
            id=row["id"],
            to_email=fields["to"],
            subject=fields["subject"],
            html=fields["html"],
            from_email=fields.get("from") or self._sender,
            reply_to=fields.get("reply_to"),
            text=fields.get("text"),
            headers=fields.get("headers") or {},
            created_at=row["created_at"],
            max_attempts=1,
            email_type=fields.get("email_type"),
        )
        return Claim(
            row["id"],
            email,
            lease_no=1,
            lease_s=row["lease_s"],
            leased_until=asked_at + row["lease_s"],
            started=True,
            start_good_until=asked_at + START_GOOD_S,
        )

    async def settle(
        self, worker: UUID, settlements: Sequence[Settlement[OutgoingEmail]]
    ) -> list[Settled]:
        """Write down what became of some e-mails, in one statement."""
        rows = await self._database.fetch(
            """
            SELECT id, status, attempts, next_retry_at, created_at
            FROM postroom.settle_emails($1, $2, $3, $4, $5, $6, $7::text[]::jsonb[])
            """,
            worker,
            [settlement.claim.id for settlement in settlements],
            [settlement.claim.lease_no for settlement in settlements],
            [settlement.verdict for settlement in settlements],
            [_storable(settlement.outcome.reply) if settlement.outcome else None for settlement in settlements],
            [settlement.outcome.retry_after_s if settlement.outcome else None for settlement in settlements],
            [_entry(settlement, worker) for settlement in settlements],
        )
        return [
            Settled(row["id"], row["status"], row["attempts"], row["next_retry_at"], row["created_at"])
            for row in rows
        ]

    async def extend(self, worker: UUID, claims: Sequence[Claim[OutgoingEmail]]) -> set[UUID]:
        """Take another lease of e-mails that are held; returns those that are still ours."""
        rows = await self._database.fetch(
            "SELECT postroom.extend_email_leases($1, $2, $3) AS id",
            worker,
            [claim.id for claim in claims],
            [claim.lease_no for claim in claims],
        )
        return {row["id"] for row in rows}

    async def wait_s(self) -> float | None:
        """Seconds until an e-mail can be claimed: 0 now, None where nothing waits."""
        seconds: float | None = await self._database.fetchval("SELECT postroom.email_wait_s()")
        return seconds

    async def tend(self) -> None:
        """Plan anew what waits for a limit that was changed; write outcomes that a row had refused."""
        while await self._database.fetchval("SELECT postroom.replan_limited_emails(1000)"):
            pass
        await self._database.execute("SELECT postroom.settle_refused_emails()")

    async def publish_pause(self, name: str, pause_s: float | None, reason: str | None, failures: int) -> None:
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
            None if reason is None else _storable(reason),
            failures,
        )


def _email(row: Mapping[str, Any]) -> OutgoingEmail:
    headers = orjson.loads(row["headers"]) if row["headers"] else {}
    return OutgoingEmail(
        row["id"],
        row["to_email"],
        row["subject"],
        row["html"],
        row["from_email"],
        row["reply_to"],
        row["text"],
        # What an old caller may have stored is told by the rendering, not lost here.
        headers if isinstance(headers, dict) else {"": headers},
        row["created_at"],
        row["attempts"],
        row["max_attempts"],
        row["email_type"],
    )


def _entry(settlement: Settlement[OutgoingEmail], worker: UUID) -> str | None:
    """The attempt as the row's attempt_log keeps it; None where nothing was attempted."""
    if settlement.outcome is None:
        return None
    return orjson.dumps(
        {
            "at": settlement.ended_at,
            "ms": settlement.attempt_ms,
            "outcome": settlement.verdict,
            "reply": _storable(settlement.outcome.reply),
            "worker": str(worker),
        }
    ).decode()


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _storable(text: str) -> str:
    """Text as PostgreSQL can keep it: no NUL, no lone surrogate, of a bounded length."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:REPLY_CHARS_MAX]
