"""
A limiter for an application's own use, shared by all its processes: windows of 60 s in rate_limit_counters.

    from postroom import limits

    taken = await limits.take(room, f"login:{address}", limit=5)
    if not taken.allowed:
        return TooManyRequests(retry_after=taken.retry_after_s)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from postroom.errors import PostroomError

if TYPE_CHECKING:
    from postroom.room import Room


class InvalidLimit(PostroomError):
    """A key, an amount or a limit that cannot be counted."""


@dataclass(frozen=True, slots=True)
class Taken:
    """
    What became of a request for room under a limit.

    Attributes:
        allowed: Whether it was taken; else nothing was consumed.
        count: What the window holds with it; above `limit` where it was refused.
        retry_after_s: Seconds until there may be room again; 0 where it was taken.
    """

    allowed: bool
    count: int
    limit: int
    retry_after_s: float


async def take(room: Room, key: str, *, limit: int, amount: int = 1) -> Taken:
    """
    Take some of a key's limit, or nothing.

    It is the SQL function increment_rate_limit: a key has windows of 60 s, each of which begins with the
    first that is taken in it. Keys `email:…` are the engine's: what is taken there counts with the e-mails.

    Args:
        key: Whatever is limited, such as `login:203.0.113.7`.
        limit: So many fit into a window.

    Raises:
        InvalidLimit: The key is empty or has a NUL, or a number is below zero or beyond 2,147,483,646.
        DatabaseUnavailable: Nothing is known to be taken.
    """
    if not key or "\0" in key:
        raise InvalidLimit("key: it must be a text without NUL, and not empty")
    for name, number in (("limit", limit), ("amount", amount)):
        if not 0 <= number < 2**31 - 1:
            raise InvalidLimit(f"{name}: {number} is not between 0 and {2**31 - 2:,}")
    await room.open()
    row = await room.database.fetchrow(_TAKE, key, amount, limit)
    assert row is not None
    allowed = row["count"] <= limit
    return Taken(allowed, row["count"], limit, 0.0 if allowed else max(row["wait_s"] or 0.0, 0.0))


_TAKE = """
    SELECT
        taken.count,
        CASE
            WHEN $1 LIKE 'email:%' THEN (SELECT book.wait_s FROM postroom.free_slots(lower($1)) AS book)
            ELSE (
                SELECT extract(EPOCH FROM counter.window_end - clock_timestamp())
                FROM public.rate_limit_counters AS counter
                WHERE counter.key = $1
            )
        END::double precision AS wait_s
    FROM public.increment_rate_limit($1, $2, $3) AS taken
"""
