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
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text.replace("\0", "")[:REPLY_CHARS_MAX]


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
    replies = [None if outcome is None else storable(outcome.reply) for outcome in ended]
    name = str(worker)
    return (
        worker,
        *leases([settlement.claim for settlement in settlements]),
        [settlement.verdict for settlement in settlements],
        replies,
        [None if outcome is None else outcome.retry_after_s for outcome in ended],
        [_entry(settlement, reply, name) for settlement, reply in zip(settlements, replies, strict=True)],
    )


def begun(row: Any) -> Begun:
    """A row of begin_emails or begin_webhooks."""
    return Begun(row["id"], row["state"], row["waits_for"], row["due_at"])


def settled(row: Any) -> Settled:
    """A row of settle_emails or settle_webhooks."""
    return Settled(row["id"], row["status"], row["attempts"], row["next_retry_at"])


def _entry(settlement: Settlement[Any], reply: str | None, worker: str) -> str | None:
    """The attempt as the row's attempt_log keeps it; None where nothing was attempted."""
    if settlement.outcome is None:
        return None
    entry = {
        "at": settlement.ended_at,
        "ms": settlement.attempt_ms,
        "outcome": settlement.verdict,
        "reply": reply,
    }
    if settlement.claim.route:
        entry["transport"] = settlement.claim.route
    entry["worker"] = worker
    return orjson.dumps(entry).decode()
