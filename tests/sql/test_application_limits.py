"""postroom.limits: a limiter for an application's own use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from postroom import Room, limits


@pytest.fixture
async def room(database_url: str, tmp_path: object) -> AsyncIterator[Room]:
    """A room over a fresh database."""
    async with Room(database_url=database_url, transport=f"maildir:{tmp_path}") as one:
        yield one


async def test_no_more_is_taken_than_the_limit_however_many_ask_at_once(room: Room) -> None:
    """Of twenty at once five have it; the others are told when to come again, and nothing of them counts."""
    taken = await asyncio.gather(*(limits.take(room, "login:203.0.113.7", limit=5) for _ in range(20)))
    assert sorted(one.count for one in taken if one.allowed) == [1, 2, 3, 4, 5]
    refused = [one for one in taken if not one.allowed]
    assert len(refused) == 15
    for one in refused:
        assert one.count > one.limit
        assert 0 <= one.retry_after_s <= 60
    again = await limits.take(room, "login:203.0.113.7", limit=5)
    assert 50 < again.retry_after_s <= 60
    assert (await limits.take(room, "login:203.0.113.8", limit=5)).allowed


async def test_all_of_an_amount_is_taken_or_nothing(room: Room) -> None:
    """A refused one leaves what was there."""
    assert (await limits.take(room, "points", limit=10, amount=8)).count == 8
    assert not (await limits.take(room, "points", limit=10, amount=3)).allowed
    assert (await limits.take(room, "points", limit=10, amount=2)).count == 10


async def test_what_is_taken_of_the_engines_keys_counts_with_the_e_mails(room: Room) -> None:
    """The lower of both limits holds."""
    await room.database.execute("SELECT postroom.set_setting('email.limit.global', '2/60s')")
    for _ in range(2):
        assert (await limits.take(room, "email:global", limit=100)).allowed
    refused = await limits.take(room, "email:global", limit=100)
    assert not refused.allowed
    assert 50 < refused.retry_after_s <= 61


@pytest.mark.parametrize(
    ("key", "limit", "amount"), [("", 1, 1), ("a\0", 1, 1), ("a", -1, 1), ("a", 1, 2**31)]
)
async def test_what_cannot_be_counted_is_refused(room: Room, key: str, limit: int, amount: int) -> None:
    """With a line that names the field."""
    with pytest.raises(limits.InvalidLimit, match=r"^(key|limit|amount): "):
        await limits.take(room, key, limit=limit, amount=amount)
