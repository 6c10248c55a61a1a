"""Ids of e-mails: those of our functions follow each other, those of a plain INSERT are random."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from uuid import UUID

import asyncpg
import pytest

from postroom.database.migrate import migrate

MAIL = {"to_email": "ada@example.com", "subject": "Hi", "html": "<p>Hi</p>"}


@pytest.fixture(params=["database_url", "debian15_url"], ids=["18", "15"])
def url(request: pytest.FixtureRequest) -> str:
    """A fresh database, with nothing in it on PostgreSQL 15."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def db(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to it, migrated."""
    await migrate(url)
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


async def now_us(db: asyncpg.Connection[asyncpg.Record]) -> int:
    """The database's clock."""
    found: int = await db.fetchval("SELECT (date_part('epoch', clock_timestamp()) * 1000000)::bigint")
    return found


def us_of(row_id: UUID) -> float:
    """When an id was made, from its two fields of time; it is cut off to a quarter of a microsecond."""
    return (row_id.int >> 80) * 1000 + (row_id.int >> 64 & 0xFFF) * 1000 / 4096


async def test_one_email_has_an_id_of_its_time(db: asyncpg.Connection[asyncpg.Record]) -> None:
    """enqueue_email: version 7, the variant of RFC 9562, made at that moment, later than the one before."""
    ids = []
    for _ in range(20):
        before = await now_us(db)
        ids.append(await db.fetchval("SELECT enqueue_email('ada@example.com', 'Hi', '<p>Hi</p>')"))
        assert before - 1 <= us_of(ids[-1]) <= await now_us(db)
        assert (ids[-1].version, ids[-1].int >> 62 & 0b11) == (7, 0b10)
    assert ids == sorted(ids)
    assert await db.fetchval("SELECT array_agg(id ORDER BY created_at) FROM email_queue") == ids


async def test_many_in_one_statement_have_ids_in_their_order(db: asyncpg.Connection[asyncpg.Record]) -> None:
    """enqueue_emails: a microsecond apart, and after those of the call before, also where some have keys."""
    last = UUID(int=0)
    for count in (1, 10_000, 500):
        before = await now_us(db)
        mails = [
            MAIL | ({"idempotency_key": f"{count}-{place}"} if place % 3 else {}) for place in range(count)
        ]
        ids = await db.fetchval("SELECT enqueue_emails($1::jsonb)", json.dumps(mails))
        assert all(one < other for one, other in pairwise([last, *ids]))
        assert {(one.version, one.int >> 62 & 0b11) for one in ids} == {(7, 0b10)}
        assert all(0.7 < us_of(other) - us_of(one) < 1.3 for one, other in pairwise(ids))
        assert before <= us_of(ids[0]) + 1 <= await now_us(db) + 1
        last = ids[-1]
        await asyncio.sleep(count / 1_000_000)  # the last of them is dated ahead by a microsecond a mail


async def test_a_plain_insert_has_a_random_id(db: asyncpg.Connection[asyncpg.Record]) -> None:
    """The column's default is what the contract says: an application may rely on it."""
    row_id = await db.fetchval(
        "INSERT INTO email_queue (to_email, subject, html) VALUES ('ada@example.com', 'Hi', '') RETURNING id"
    )
    assert row_id.version == 4
