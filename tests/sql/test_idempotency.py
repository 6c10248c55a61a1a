"""Idempotency keys: one key is one e-mail as long as its row exists, whoever asks at the same time."""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.sql.conftest import Connect
from tests.sql.session import Session

Isolation = Literal["read_committed", "repeatable_read", "serializable"]
ENQUEUE = "SELECT enqueue_email('ada@example.com', 'Hi', '<p>Hi</p>', idempotency_key => $1)"


async def enqueue(session: Session, key: str | None = "k") -> UUID | None:
    """The id that enqueue_email answers."""
    found: UUID | None = await session.fetchval(ENQUEUE, key)
    return found


async def begin_direct(session: Session, worker: UUID, key: str) -> asyncpg.Record:
    """What begin_direct_email answers."""
    row: asyncpg.Record | None = await session.connection.fetchrow(
        """
        SELECT * FROM postroom.begin_direct_email(
            $1, $2, 'ada@example.com', 'Hi', '<p>Hi</p>', NULL, NULL, NULL, NULL, NULL, NULL, $3
        )
        """,
        worker,
        uuid4(),
        key,
    )
    assert row is not None
    return row


async def count(session: Session) -> Any:
    """How many e-mails there are."""
    return await session.fetchval("SELECT count(*) FROM email_queue")


async def test_the_same_key_gives_the_first_id_and_inserts_nothing(sql: Session) -> None:
    """Also with another content, in the same transaction, and after the mail is sent."""
    first = await enqueue(sql)
    async with sql.transaction():
        assert await enqueue(sql) == first
        assert await enqueue(sql) == first
    await sql.execute("SELECT mark_email_sent($1)", first)
    other = await sql.fetchval(
        "SELECT enqueue_email('bob@example.com', 'Other', '<p>Other</p>', idempotency_key => 'k')"
    )
    assert other == first
    assert await count(sql) == 1


async def test_many_at_once_have_each_key_once(sql: Session) -> None:
    """Keys that were there, come twice, or are new: each gives one id; without a key each has its own."""
    there = await enqueue(sql)
    ids = await sql.fetchval(
        """
        SELECT enqueue_emails(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
            'to_email', 'ada@example.com', 'subject', key.place::text, 'html', 'h',
            'idempotency_key', key.name
        )) ORDER BY key.place))
        FROM unnest(ARRAY['z', NULL, 'k', 'a', 'z', NULL, 'a']) WITH ORDINALITY AS key (name, place)
        """
    )
    assert ids[2] == there
    assert ids[0] == ids[4]
    assert ids[3] == ids[6]
    assert len(set(ids)) == 5
    assert await count(sql) == 5
    subjects = await sql.fetch("SELECT id, subject FROM email_queue")
    first = {row["id"]: row["subject"] for row in subjects}
    assert [first[row_id] for row_id in ids] == ["1", "2", "Hi", "4", "1", "6", "4"]


async def test_many_wait_for_a_transaction_that_holds_one_of_their_keys(
    connect: Connect, sql: Session
) -> None:
    """And answer with its row where it commits, with one of their own where it does not."""
    ask = """
        SELECT enqueue_emails('[
            {"to_email": "a@example.com", "subject": "s", "html": "h"},
            {"to_email": "b@example.com", "subject": "s", "html": "h", "idempotency_key": "k"}
        ]')
    """
    for commits in (False, True):
        holder = await connect()
        transaction = holder.connection.transaction()
        await transaction.start()
        held = await enqueue(holder)
        asking = asyncio.create_task(sql.fetchval(ask))
        while not await holder.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        ):
            await asyncio.sleep(0.01)
        await (transaction.commit() if commits else transaction.rollback())
        ids = await asking
        assert (ids[1] == held) is commits
        await sql.execute("DELETE FROM email_queue")


async def test_without_a_key_each_call_is_an_email(sql: Session) -> None:
    """NULL is no key."""
    assert await enqueue(sql, None) != await enqueue(sql, None)
    assert await count(sql) == 2


async def test_a_call_waits_for_a_concurrent_holder_of_the_key(connect: Connect, sql: Session) -> None:
    """It returns the holder's id after the commit, never NULL."""
    holder = await connect()
    transaction = holder.transaction()
    await transaction.start()
    first = await enqueue(holder)
    waiting = asyncio.ensure_future(enqueue(sql))
    await (await connect()).until_blocked(sql, waiting)
    await transaction.commit()
    assert await waiting == first
    assert await count(sql) == 1


async def test_a_key_whose_holder_rolled_back_is_free(connect: Connect, sql: Session) -> None:
    """Who waited for it inserts the e-mail himself."""
    holder = await connect()
    transaction = holder.transaction()
    await transaction.start()
    first = await enqueue(holder)
    waiting = asyncio.ensure_future(enqueue(sql))
    await (await connect()).until_blocked(sql, waiting)
    await transaction.rollback()
    second = await waiting
    assert second is not None
    assert second != first
    assert await sql.fetchval("SELECT array_agg(id) FROM email_queue") == [second]


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_stricter_isolation_is_told_to_repeat_and_never_gets_null(
    connect: Connect, sql: Session, isolation: Isolation
) -> None:
    """The holder's row is not in its snapshot: a serialization failure, and the repeat has the id."""
    holder, observer = await connect(), await connect()
    transaction = holder.transaction()
    await transaction.start()
    first = await enqueue(holder)
    strict = sql.connection.transaction(isolation=isolation)
    await strict.start()
    await sql.fetchval("SELECT count(*) FROM email_queue")
    waiting = asyncio.ensure_future(enqueue(sql))
    await observer.until_blocked(sql, waiting)
    await transaction.commit()
    with pytest.raises(asyncpg.SerializationError):
        await waiting
    await strict.rollback()
    async with sql.connection.transaction(isolation=isolation):
        assert await enqueue(sql) == first
    assert await count(sql) == 1


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_stricter_isolation_inserts_where_the_holder_rolled_back(
    connect: Connect, sql: Session, isolation: Isolation
) -> None:
    """Nothing stands in the way, whatever the snapshot."""
    holder, observer = await connect(), await connect()
    transaction = holder.transaction()
    await transaction.start()
    await enqueue(holder)
    async with sql.connection.transaction(isolation=isolation):
        await count(sql)
        waiting = asyncio.ensure_future(enqueue(sql))
        await observer.until_blocked(sql, waiting)
        await transaction.rollback()
        assert await waiting is not None
    assert await count(sql) == 1


async def test_a_key_is_free_again_when_its_row_is_deleted(connect: Connect, sql: Session) -> None:
    """Also for a call that waits while the row is being deleted."""
    first = await enqueue(sql)
    deleter = await connect()
    transaction = deleter.transaction()
    await transaction.start()
    await deleter.execute("DELETE FROM email_queue WHERE id = $1", first)
    waiting = asyncio.ensure_future(enqueue(sql))
    await (await connect()).until_blocked(sql, waiting)
    await transaction.commit()
    second = await waiting
    assert second is not None
    assert second != first
    assert await count(sql) == 1


async def test_many_callers_of_one_key_get_one_id(connect: Connect, sql: Session) -> None:
    """Eight connections that start together, five times."""
    sessions = [await connect() for _ in range(8)]
    for key in map(str, range(5)):
        ids = await asyncio.gather(*(enqueue(session, key) for session in sessions))
        assert len(set(ids)) == 1
        assert ids[0] is not None
    assert await count(sql) == 5


async def test_a_direct_send_and_a_queued_one_share_their_keys(sql: Session) -> None:
    """Whichever was first is the answer to the other, and nothing is made or leased a second time."""
    worker = await sql.worker()
    queued = await enqueue(sql, "queued first")
    answer = await begin_direct(sql, worker.id, "queued first")
    assert (answer["id"], answer["made"], answer["wait_s"]) == (queued, False, None)
    direct = await begin_direct(sql, worker.id, "direct first")
    assert direct["made"] is True
    assert await enqueue(sql, "direct first") == direct["id"]
    assert await count(sql) == 2


async def test_a_key_that_is_known_is_answered_although_a_limit_is_reached(sql: Session) -> None:
    """The mail is in the queue: to say 429 would make its caller send it again."""
    await sql.set("email.limit.recipient", "1/60s")
    queued = await enqueue(sql)
    await sql.fetch("SELECT * FROM increment_rate_limit('email:recipient:ada@example.com', 1, 1)")
    answer = await begin_direct(sql, (await sql.worker()).id, "k")
    assert (answer["id"], answer["made"], answer["limit_key"]) == (queued, False, None)


async def test_a_direct_send_waits_for_a_concurrent_holder_of_the_key(connect: Connect, sql: Session) -> None:
    """It gets the holder's row, or makes its own where the holder rolled back."""
    observer, holder = await connect(), await connect()
    worker = await sql.worker()
    for key, ending in (("committed", "commit"), ("rolled back", "rollback")):
        transaction = holder.transaction()
        await transaction.start()
        first = await enqueue(holder, key)
        waiting = asyncio.ensure_future(begin_direct(sql, worker.id, key))
        await observer.until_blocked(sql, waiting)
        await getattr(transaction, ending)()
        answer = await waiting
        assert answer["made"] is (ending == "rollback")
        assert (answer["id"] == first) is (ending == "commit")
