"""
While somebody's old transaction keeps dead index entries, claims remember where the live ones begin.

What is remembered only ever saves reading: whatever becomes live below it is found at the next look at
everything, a few seconds later where there is nothing else to do.
"""

from __future__ import annotations

import json
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from tests.schema.plans import Reader
from tests.sql.conftest import Connect
from tests.sql.session import EMAIL, Lease, Queue, Session
from tests.support.waiting import until


async def look_took_long(sql: Session, queue: Queue, *, lowest: int | None = None) -> None:
    """As if a look at everything had read much just now, and had found rows of priority 0."""
    await sql.execute(
        """
        SELECT postroom.keep_look(
            $1, NULL, postroom.add_floor('{}', 0, NULL, clock_timestamp()), $2, clock_timestamp(),
            '1 second', 10000
        )
        """,
        queue.name,
        lowest,
    )


async def look_of(sql: Session, queue: Queue) -> dict[str, Any] | None:
    """What the session remembers, while that holds."""
    look = await sql.fetchval("SELECT postroom.last_look($1)", queue.name)
    return None if look is None else dict(json.loads(look))


async def look_is_over(sql: Session, queue: Queue, until: str = "until") -> None:
    """Let the time pass for which the look holds; idle_until: where there is no work."""
    await sql.execute(
        """
        SELECT set_config($1, jsonb_set(current_setting($1)::jsonb, ARRAY[$2], '0')::text, false)
        """,
        f"postroom.look_{queue}",
        until,
    )


async def test_what_becomes_due_is_claimed_at_once(sql: Session, queue: Queue) -> None:
    """New rows, of every priority, and those whose delay or lease ends."""
    worker = await sql.worker(queue)
    waiting = await sql.insert(queue)
    (lease,) = await worker.claim()
    await worker.settle("temporary", lease)
    await look_took_long(sql, queue)
    new = {await sql.insert(queue, priority=priority) for priority in (0, 7, -7)}
    await sql.execute(f"UPDATE {queue.table} SET due_at = clock_timestamp() WHERE id = $1", waiting)
    assert await sql.fetchval(f"SELECT postroom.{queue}_wait_s()") == 0
    assert {lease.id for lease in await worker.claim()} == {waiting, *new}


async def test_a_priority_that_was_not_looked_at_is_looked_at_as_a_whole(sql: Session, queue: Queue) -> None:
    """The look had its rows together before it came there."""
    old = await sql.insert(queue, priority=-3)
    await sql.make_due(old, queue=queue)
    await sql.execute(
        f"UPDATE {queue.table} SET due_at = clock_timestamp() - interval '1 hour' WHERE id = $1", old
    )
    await look_took_long(sql, queue, lowest=0)
    assert [lease.id for lease in await (await sql.worker(queue)).claim()] == [old]


async def row_with_an_old_time(sql: Session, queue: Queue) -> UUID:
    """Due since an hour, and written just now."""
    row = await sql.insert(queue)
    await sql.execute(
        f"UPDATE {queue.table} SET due_at = clock_timestamp() - interval '1 hour' WHERE id = $1", row
    )
    return row


async def left_s(sql: Session, queue: Queue, until: str) -> float:
    """For how long the look holds."""
    look = await look_of(sql, queue)
    assert look is not None
    now: float = await sql.fetchval("SELECT extract(EPOCH FROM clock_timestamp())::float8")
    return float(look[until]) - now


async def test_a_row_that_gets_an_old_time_waits_for_the_next_look_at_everything(
    sql: Session, queue: Queue
) -> None:
    """An old caller wrote it so, or its transaction was open for long: a minute at most."""
    worker = await sql.worker(queue)
    await look_took_long(sql, queue)
    row = await row_with_an_old_time(sql, queue)
    new = await sql.insert(queue)
    assert [lease.id for lease in await worker.claim()] == [new]
    assert 5 < await left_s(sql, queue, "until") <= 60
    await look_is_over(sql, queue)
    assert [lease.id for lease in await worker.claim()] == [row]


async def test_a_row_that_gets_an_old_time_waits_for_five_seconds_where_there_is_no_work(
    sql: Session, queue: Queue
) -> None:
    """Then nobody loses by a look at everything, and a worker comes back each second."""
    worker = await sql.worker(queue)
    await look_took_long(sql, queue)
    row = await row_with_an_old_time(sql, queue)
    assert await worker.claim() == []
    assert 0 < await sql.fetchval(f"SELECT postroom.{queue}_wait_s()") <= 1
    assert await left_s(sql, queue, "idle_until") <= 5
    await look_is_over(sql, queue, "idle_until")
    assert [lease.id for lease in await worker.claim()] == [row]


async def test_a_look_that_takes_no_time_forgets_the_one_before(sql: Session, queue: Queue) -> None:
    """The transaction has ended, and the entries are gone."""
    worker = await sql.worker(queue)
    await look_took_long(sql, queue)
    await look_is_over(sql, queue)

    async def forgotten() -> bool:  # on a busy machine a look may take long for no reason
        await look_is_over(sql, queue)
        await worker.claim()
        return bool(await sql.fetchval("SELECT current_setting($1) = ''", f"postroom.look_{queue}"))

    await until(forgotten)


async def test_a_rolled_back_look_is_none(sql: Session, queue: Queue) -> None:
    """What it found is not remembered either."""
    transaction = sql.transaction()
    await transaction.start()
    await look_took_long(sql, queue)
    assert await look_of(sql, queue) is not None
    await transaction.rollback()
    assert await look_of(sql, queue) is None


async def test_behind_settled_rows_that_a_snapshot_keeps_a_claim_reads_its_batch(
    connect: Connect, sql: Session, database_url: str
) -> None:
    """The dead entries of 20,000 mails stand in front of ten live ones, and are read once in a while."""
    holder = await connect()
    transaction = holder.transaction(isolation="repeatable_read")
    await transaction.start()
    await holder.fetchval("SELECT count(*) FROM email_queue")
    worker = await sql.worker()
    await sql.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, due_at)
        SELECT 'ada@example.com', 's', 'h', clock_timestamp() - interval '1 hour'
        FROM generate_series(1, 20000)
        """
    )
    while leases := await worker.claim(5000):
        await worker.settle("done", *leases)
    for _ in range(10):
        await sql.insert(EMAIL)

    with psycopg.connect(database_url) as connection:
        reader = Reader(connection)
        claim = "SELECT id, lease_no FROM postroom.claim_emails(%s, 5)"
        with reader.undone():
            whole = reader.read(claim, [worker.id])
        await look_took_long(sql, EMAIL)
        connection.execute(
            "SELECT set_config('postroom.look_email', %s, false)",
            [await sql.fetchval("SELECT current_setting('postroom.look_email')")],
        )
        short = reader.read(claim, [worker.id])
        connection.commit()
    assert whole.pages > 2_000
    assert short.pages < 700
    settled = await worker.settle("done", *(Lease(*row) for row in short.rows))
    assert set(settled) == {row[0] for row in short.rows}
    await transaction.rollback()


async def test_behind_thousands_of_batches_that_a_snapshot_keeps_a_worker_reads_its_own_row_at_once(
    connect: Connect, sql: Session, database_url: str
) -> None:
    """So does an insert that looks for sleepers: both would walk all dead versions of the row."""
    holder = await connect()
    transaction = holder.transaction(isolation="repeatable_read")
    await transaction.start()
    await holder.fetchval("SELECT count(*) FROM email_queue")
    worker = await sql.worker()
    register: LiteralString = "SELECT postroom.register_worker(%s, 'email', 'h', 1, 'v', true, %s, '{}')"
    ids, lease_nos = "array_fill(gen_random_uuid(), '{20}')", "array_fill(1::bigint, '{20}')"
    await sql.execute(
        f"""
        DO $$ BEGIN
            FOR batch IN 1..4000 LOOP
                PERFORM postroom.mark_begun('{worker.id}', {ids}, {lease_nos});
                IF batch % 40 = 0 THEN
                    PERFORM postroom.register_worker('{worker.id}', 'email', 'h', 1, 'v', true, true, '{{}}');
                    PERFORM postroom.get_up('{worker.id}');
                END IF;
            END LOOP;
        END $$
        """
    )
    with psycopg.connect(database_url) as connection:
        reader = Reader(connection)
        calls: dict[str, tuple[LiteralString, list[object]]] = {
            "begin": ("SELECT postroom.begin_emails(%s, '{}', '{}', '{}', '{}')", [worker.id]),
            "look": ("SELECT postroom.begun_by(%s, %s, 1)", [worker.id, worker.id]),
            "lie down": (register, [worker.id, True]),
            "get up": ("SELECT postroom.get_up(%s)", [worker.id]),
            "wake": ("SELECT postroom.wake('email')", []),
        }
        for call in calls.values():
            reader.read(*call)  # the first one reads the catalog as well
        pages = {name: reader.read(*call).pages for name, call in calls.items()}
    assert max(pages.values()) < 150, pages
    await transaction.rollback()
