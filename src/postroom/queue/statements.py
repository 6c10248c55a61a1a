"""What both queues say in the same way to their SQL functions, and the rows that come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import orjson

from postroom.queue.claim import Begun, Claim, Settled, Settlement

REPLY_CHARS_MAX = 1_000
"""What the other side said, as far as it is kept."""


def storable(text: str) -> str:
    """Text as PostgreSQL can keep it: no NUL, no lone surrogate, of a bounded length."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:REPLY_CHARS_MAX]


def read_json(text: str) -> Any:
    """
    What a column of jsonb holds; its text where no parser takes it, however it got in.

    jsonb holds what orjson refuses (a number beyond a float, more than 1,024 levels), and one row must not
    make a whole batch fail.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def leases(claims: Sequence[Claim[Any]]) -> tuple[list[UUID], list[int]]:
    """The ids of some claims, and the numbers of their leases."""
    return [claim.id for claim in claims], [claim.lease_no for claim in claims]


def outcomes(worker: UUID, settlements: Sequence[Settlement[Any]]) -> tuple[object, ...]:
    """The arguments of settle_emails and settle_webhooks: the worker, and six columns."""
    ended = [settlement.outcome for settlement in settlements]
    return (
        worker,
        *leases([settlement.claim for settlement in settlements]),
        [settlement.verdict for settlement in settlements],
        [None if outcome is None else storable(outcome.reply) for outcome in ended],
        [None if outcome is None else outcome.retry_after_s for outcome in ended],
        [_entry(settlement, worker) for settlement in settlements],
    )


def begun(row: Any) -> Begun:
    """A row of begin_emails or begin_webhooks."""
    return Begun(row["id"], row["state"], row["waits_for"], row["due_at"])


def settled(row: Any) -> Settled:
    """A row of settle_emails or settle_webhooks."""
    return Settled(row["id"], row["status"], row["attempts"], row["next_retry_at"], row["created_at"])


def _entry(settlement: Settlement[Any], worker: UUID) -> str | None:
    """The attempt as the row's attempt_log keeps it; None where nothing was attempted."""
    if settlement.outcome is None:
        return None
    return orjson.dumps(
        {
            "at": settlement.ended_at,
            "ms": settlement.attempt_ms,
            "outcome": settlement.verdict,
            "reply": storable(settlement.outcome.reply),
            **({"transport": settlement.claim.route} if settlement.claim.route else {}),
            "worker": str(worker),
        }
    ).decode()
