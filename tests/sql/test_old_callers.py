"""What hand-made programs write to the tables, and what it means."""

from __future__ import annotations

import asyncio
import random
import string
from datetime import timedelta

import asyncpg
import pytest

from postroom.database.migrate import migrate
from tests.sql.conftest import Connect
from tests.sql.session import EMAIL, WEBHOOK, Queue, Session


async def test_a_plain_insert_of_three_columns_is_a_whole_email(sql: Session) -> None:
    """Everything else comes by default, and a worker gets it at once."""
    row_id = await sql.fetchval(
        "INSERT INTO email_queue (to_email, subject, html) VALUES ('a@example.com', 's', 'h') RETURNING id"
    )
    row = await sql.row(row_id)
    assert (row["status"], row["attempts"], row["max_attempts"], row["error_count"]) == ("pending", 0, 6, 0)
    assert (row["metadata"], row["priority"], row["waits_for"]) == ("{}", 0, None)
    assert [lease.id for lease in await (await sql.worker()).claim()] == [row_id]


async def test_any_role_that_may_insert_can_send(sql: Session, database_url: str) -> None:
    """It needs no right in schema postroom, not even to call a sleeping worker; three columns will do."""
    role = "inserter_" + str(sql.pid)
    await sql.execute(f"CREATE ROLE {role}")
    await sql.execute(f"GRANT INSERT (to_email, subject, html) ON email_queue TO {role}")
    await sql.execute(f"CREATE POLICY may ON email_queue FOR INSERT TO {role} WITH CHECK (true)")
    worker = await sql.worker()
    await sql.execute("UPDATE postroom.workers SET asleep = true")
    try:
        async with sql.transaction():
            await sql.execute(f"SET LOCAL ROLE {role}")
            await sql.execute(
                "INSERT INTO email_queue (to_email, subject, html) VALUES ('a@example.com', 's', 'h')"
            )
        assert len(await worker.claim()) == 1
        await sql.execute(f"GRANT INSERT ON email_queue TO {role}")
        async with sql.transaction():
            await sql.execute(f"SET LOCAL ROLE {role}")
            await sql.execute(
                """
                INSERT INTO email_queue (to_email, subject, html, status, next_retry_at)
                VALUES ('b@example.com', 's', 'h', 'pending', now() + interval '1 hour')
                """
            )
        assert await worker.claim() == []
    finally:
        await sql.execute(f"DROP OWNED BY {role}")
        await sql.execute(f"DROP ROLE {role}")


async def test_any_role_that_may_insert_can_send_on_postgresql_15(debian15_url: str) -> None:
    """There it is an error to read a sequence that is not yours; the trigger reads it as its owner."""
    await migrate(debian15_url)
    session = Session(await asyncpg.connect(debian15_url))
    role = f"inserter_{session.pid}"
    try:
        await session.execute(f"CREATE ROLE {role}")
        await session.execute(f"GRANT INSERT (to_email, subject, html) ON email_queue TO {role}")
        await session.execute(f"CREATE POLICY may ON email_queue FOR INSERT TO {role} WITH CHECK (true)")
        await session.execute("SELECT setval('postroom.email_sleepers', 1700000000)")
        async with session.transaction():
            await session.execute(f"SET LOCAL ROLE {role}")
            await session.execute(
                "INSERT INTO email_queue (to_email, subject, html) VALUES ('a@example.com', 's', 'h')"
            )
        assert await session.fetchval("SELECT count(*) FROM email_queue") == 1
    finally:
        await session.execute(f"DROP OWNED BY {role}")
        await session.execute(f"DROP ROLE {role}")
        await session.connection.close()


async def test_an_insert_calls_a_worker_that_sleeps_and_no_other(
    connect: Connect, sql: Session, queue: Queue
) -> None:
    """NOTIFY serialises commits, so it is sent only where somebody hears it."""
    calls: list[str] = []
    listener = await connect()
    await listener.connection.add_listener(f"postroom_{queue}", lambda *call: calls.append(call[2]))
    await listener.connection.add_listener("end", lambda *call: calls.append(call[2]))
    worker = await sql.worker(queue)
    await sql.insert(queue)
    await sql.execute(
        "SELECT postroom.register_worker($1, $2, 'host', 1, '0', true, true, '{}')", worker.id, queue.name
    )
    await sql.insert(queue)
    await sql.execute("UPDATE postroom.workers SET seen_at = now() - interval '2 minutes'")
    await sql.insert(queue)
    await sql.execute('NOTIFY "end"')
    async with asyncio.timeout(20):
        while "end" not in calls:
            await listener.fetchval("SELECT 1")
    assert calls == [f"postroom_{queue}", "end"]


async def test_an_insert_looks_for_no_worker_while_none_is_asleep(sql: Session, queue: Queue) -> None:
    """It reads the workers' table only until a moment that the last one to lie down has named."""
    worker = await sql.worker(queue)

    async def read_by_an_insert() -> int:
        read = """
            SELECT sum(pg_stat_get_xact_blocks_fetched(relation.oid))::integer
            FROM pg_class AS relation
            LEFT JOIN pg_index AS of_table ON of_table.indexrelid = relation.oid
            WHERE 'postroom.workers'::regclass IN (relation.oid, of_table.indrelid)
        """
        async with sql.transaction():
            before: int = await sql.fetchval(read)
            await sql.insert(queue)
            after: int = await sql.fetchval(read)
        return after - before

    assert await read_by_an_insert() == 0
    await sql.execute(
        "SELECT postroom.register_worker($1, $2, 'host', 1, '0', true, true, '{}')", worker.id, queue.name
    )
    assert await read_by_an_insert() > 0
    await sql.execute(f"SELECT setval('postroom.{queue}_sleepers', 1700000000)")
    assert await read_by_an_insert() == 0


async def test_an_insert_may_say_null_where_old_projects_do(sql: Session, queue: Queue) -> None:
    """No constraint refuses it. Without a status, attempts and times it is sent."""
    row_id = await sql.insert(
        queue,
        attempts=None,
        max_attempts=None,
        error_count=None,
        created_at=None,
        updated_at=None,
        metadata=None,
        status=None,
    )
    worker = await sql.worker(queue)
    lease = await worker.take_one()
    assert lease.id == row_id
    await worker.settle("transport_down", lease)
    assert (await sql.row(row_id, queue))["due_at"] is not None
    assert await worker.settle("done", await worker.take_one()) == [row_id]
    assert (await sql.row(row_id, queue))["attempts"] == 1


async def test_an_insert_may_say_that_the_row_is_done_or_given_up(sql: Session, queue: Queue) -> None:
    """Nobody claims it; one that is given up has its time."""
    for status in (queue.done, "failed", "dead_letter", "cancelled"):
        row = await sql.row(await sql.insert(queue, status=status), queue)
        assert (row["status"], row["due_at"]) == (status, None)
        assert (row["failed_at"] is not None) == (status in ("failed", "dead_letter"))
    assert await (await sql.worker(queue)).claim() == []


async def test_an_insert_in_processing_is_a_lease_of_15_minutes(sql: Session, queue: Queue) -> None:
    """The inserter works on it himself; when he dies, the row is due."""
    before = await sql.now()
    row_id = await sql.insert(queue, status="processing")
    row = await sql.row(row_id, queue)
    assert before <= row["due_at"] - timedelta(minutes=15) <= await sql.now()
    worker = await sql.worker(queue)
    assert await worker.claim() == []
    await sql.make_due(row_id, queue=queue)
    assert [lease.id for lease in await worker.claim()] == [row_id]


async def test_an_insert_with_next_retry_at_waits_until_then(sql: Session, queue: Queue) -> None:
    """Also one in the past, which is due at once."""
    now = await sql.now()
    later = await sql.insert(queue, next_retry_at=now + timedelta(hours=1))
    past = await sql.insert(queue, next_retry_at=now - timedelta(days=1))
    row = await sql.row(later, queue)
    assert (row["due_at"], row["waits_for"]) == (now + timedelta(hours=1), "send_at")
    assert [lease.id for lease in await (await sql.worker(queue)).claim()] == [past]


async def test_an_old_callers_processing_is_a_lease_of_15_minutes(sql: Session, queue: Queue) -> None:
    """By its own UPDATE, and with a number of its own: who held the row before is late."""
    row_id = await sql.insert(queue)
    before = await sql.now()
    await sql.execute(f"UPDATE {queue.table} SET status = 'processing' WHERE id = $1", row_id)
    row = await sql.row(row_id, queue)
    assert before <= row["due_at"] - timedelta(minutes=15) <= await sql.now()
    assert (row["lease_no"], row["leased_by"]) == (1, None)
    worker = await sql.worker(queue)
    assert await worker.claim() == []
    await sql.execute(f"SELECT {queue.mark_failed}($1, 'no')", row_id)
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("pending", 1, 1)


async def test_an_old_callers_own_time_counts_for_its_lease(sql: Session, queue: Queue) -> None:
    """A claim that is written as of ten minutes ago has five left; one from the future has fifteen."""
    for offset, minutes_left in ((timedelta(minutes=-10), 5), (timedelta(days=1), 15)):
        row_id = await sql.insert(queue)
        now = await sql.now()
        await sql.execute(
            f"UPDATE {queue.table} SET status = 'processing', updated_at = $2 WHERE id = $1",
            row_id,
            now + offset,
        )
        left = (await sql.row(row_id, queue))["due_at"] - now
        assert abs(left - timedelta(minutes=minutes_left)) < timedelta(seconds=30)


async def test_an_old_caller_puts_a_row_back_with_a_time_of_its_own(sql: Session, queue: Queue) -> None:
    """`pending` with next_retry_at waits until then, without it the row is due at once."""
    row_id = await sql.insert(queue, status="processing")
    later = await sql.now() + timedelta(minutes=7)
    await sql.execute(
        f"""
        UPDATE {queue.table}
        SET status = 'pending', next_retry_at = $2, attempts = attempts + 1, last_error = 'no'
        WHERE id = $1
        """,
        row_id,
        later,
    )
    row = await sql.row(row_id, queue)
    assert (row["due_at"], row["attempts"], row["last_error"]) == (later, 1, "no")
    worker = await sql.worker(queue)
    assert await worker.claim() == []
    await sql.execute(f"UPDATE {queue.table} SET next_retry_at = NULL WHERE id = $1", row_id)
    assert [lease.id for lease in await worker.claim()] == [row_id]


async def test_an_old_caller_may_move_a_waiting_rows_time(sql: Session, queue: Queue) -> None:
    """next_retry_at alone is honoured, in both directions."""
    row_id = await sql.insert(queue)
    later = await sql.now() + timedelta(hours=2)
    worker = await sql.worker(queue)
    await sql.execute(f"UPDATE {queue.table} SET next_retry_at = $2 WHERE id = $1", row_id, later)
    assert await worker.claim() == []
    await sql.execute(f"UPDATE {queue.table} SET next_retry_at = now() WHERE id = $1", row_id)
    assert [lease.id for lease in await worker.claim()] == [row_id]


async def test_a_time_that_an_old_caller_wrote_outlives_a_changed_limit(sql: Session) -> None:
    """The row no longer waits for the limit that it was planned under, so its change does not hurry it."""
    await sql.set("email.limit.recipient", "1/60s")
    ids = await sql.insert_many(["ada@example.com"] * 2)
    worker = await sql.worker()
    answers = await worker.begin(*await worker.claim())
    (waiting,) = [row_id for row_id in ids if answers[row_id]["state"] == "waits"]
    tomorrow = await sql.now() + timedelta(days=1)
    await sql.execute("UPDATE email_queue SET next_retry_at = $2 WHERE id = $1", waiting, tomorrow)
    await sql.set("email.limit.recipient", "5/60s")
    await sql.fetchval("SELECT postroom.replan_limited_emails(100)")
    row = await sql.row(waiting)
    assert (row["next_retry_at"], row["due_at"]) == (tomorrow, tomorrow)


async def test_an_old_caller_settles_by_its_own_update(sql: Session, queue: Queue) -> None:
    """Done, failed, dead_letter and a status of its own: no longer claimed; failed_at where it belongs."""
    for status in (queue.done, "failed", "dead_letter", "bounced"):
        row_id = await sql.insert(queue, status="processing")
        before = await sql.now()
        await sql.execute(f"UPDATE {queue.table} SET status = $2 WHERE id = $1", row_id, status)
        row = await sql.row(row_id, queue)
        assert (row["status"], row["due_at"], row["leased_by"]) == (status, None, None)
        assert before <= row["updated_at"] <= await sql.now()
        if status in ("failed", "dead_letter"):
            assert before <= row["failed_at"] <= await sql.now()
        else:
            assert row["failed_at"] is None
    assert await (await sql.worker(queue)).claim() == []


async def test_failed_at_keeps_what_an_old_caller_wrote(sql: Session, queue: Queue) -> None:
    """Its own time is its own."""
    row_id = await sql.insert(queue)
    written = await sql.now() - timedelta(days=3)
    await sql.execute(
        f"UPDATE {queue.table} SET status = 'failed', failed_at = $2, updated_at = $2 WHERE id = $1",
        row_id,
        written,
    )
    row = await sql.row(row_id, queue)
    assert (row["failed_at"], row["updated_at"]) == (written, written)


async def test_failed_at_is_set_anew_at_each_end(sql: Session, queue: Queue) -> None:
    """A row that an old caller gave another chance has failed when it fails again, not when it did before."""
    row_id = await sql.insert(queue)
    for status in ("dead_letter", "failed"):
        await sql.execute(
            f"UPDATE {queue.table} SET status = 'failed', failed_at = now() - interval '9 d' WHERE id = $1",
            row_id,
        )
        await sql.execute(f"UPDATE {queue.table} SET status = 'pending' WHERE id = $1", row_id)
        before = await sql.now()
        await sql.execute(f"UPDATE {queue.table} SET status = $2 WHERE id = $1", row_id, status)
        assert before <= (await sql.row(row_id, queue))["failed_at"] <= await sql.now()


async def test_updated_at_is_set_at_every_change(sql: Session, queue: Queue) -> None:
    """Also where an old caller changes a column that decides nothing, and then nothing else changes."""
    row_id = await sql.insert(queue, updated_at=await sql.now() - timedelta(days=1))
    for change in ("metadata = '{\"seen\": 1}'", "last_error = 'looked at'", "attempts = 3"):
        old = await sql.row(row_id, queue)
        before = await sql.now()
        await sql.execute(f"UPDATE {queue.table} SET {change} WHERE id = $1", row_id)
        new = await sql.row(row_id, queue)
        assert before <= new["updated_at"] <= await sql.now()
        assert (new["due_at"], new["lease_no"], new["status"]) == (old["due_at"], old["lease_no"], "pending")
    worker = await sql.worker(queue)
    (lease,) = await worker.claim()
    await sql.execute(f"UPDATE {queue.table} SET metadata = '{{}}' WHERE id = $1", row_id)
    row = await sql.row(row_id, queue)
    assert (row["status"], row["leased_by"], row["lease_no"]) == ("processing", worker.id, lease.lease_no)
    assert await worker.settle("done", lease) == [row_id]


async def test_a_dead_letter_that_an_old_caller_sets_pending_goes_out(sql: Session, queue: Queue) -> None:
    """Its own way to retry."""
    row_id = await sql.insert(queue, status="dead_letter", attempts=6)
    await sql.execute(f"UPDATE {queue.table} SET status = 'pending', attempts = 0 WHERE id = $1", row_id)
    assert [lease.id for lease in await (await sql.worker(queue)).claim()] == [row_id]


async def test_a_worker_whose_row_an_old_caller_took_is_late(sql: Session, queue: Queue) -> None:
    """Pending and claimed again under its feet: its failure is not written, and it may not begin."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    lease = await worker.take_one()
    await sql.execute(f"UPDATE {queue.table} SET status = 'pending' WHERE id = $1", row_id)
    assert await worker.begin(lease) == {}
    assert await worker.settle("temporary", lease) == []
    await sql.execute(f"UPDATE {queue.table} SET status = 'processing' WHERE id = $1", row_id)
    before = await sql.row(row_id, queue)
    for verdict in ("done", "temporary", "permanent"):
        assert await worker.settle(verdict, lease) == []
    assert await sql.row(row_id, queue) == before


async def test_a_success_is_written_over_what_an_old_caller_wrote_meanwhile(
    sql: Session, queue: Queue
) -> None:
    """The mail is out, whatever the row was called in between, and nobody sends it again."""
    for status in ("pending", "failed", "dead_letter", "bounced"):
        row_id = await sql.insert(queue)
        worker = await sql.worker(queue)
        lease = await worker.take_one()
        await sql.execute(f"UPDATE {queue.table} SET status = $2 WHERE id = $1", row_id, status)
        assert await worker.settle("done", lease) == [row_id]
        assert (await sql.row(row_id, queue))["status"] == queue.done


@pytest.mark.parametrize("first", ["a worker", "an old caller"])
async def test_a_worker_and_an_old_caller_race_for_a_row(
    connect: Connect, sql: Session, queue: Queue, first: str
) -> None:
    """Who comes second gets nothing: the worker passes it over, the old caller's WHERE holds no longer."""
    row_id = await sql.insert(queue)
    worker_session, caller = await connect(), await connect()
    worker = await worker_session.worker(queue)
    take = f"UPDATE {queue.table} SET status = 'processing' WHERE id = $1 AND status = 'pending' RETURNING id"
    if first == "a worker":
        async with worker_session.transaction():
            (lease,) = await worker.claim()
            waiting = asyncio.ensure_future(caller.fetch(take, row_id))
            await sql.until_blocked(caller, waiting)
        assert await waiting == []
        assert await worker.settle("done", lease) == [row_id]
    else:
        async with caller.transaction():
            assert len(await caller.fetch(take, row_id)) == 1
            assert await asyncio.wait_for(worker.claim(), 20) == []
        assert await worker.claim() == []
        row = await sql.row(row_id, queue)
        assert (row["leased_by"], row["lease_no"]) == (None, 1)


async def test_two_old_callers_never_get_the_same_batch(connect: Connect, sql: Session, queue: Queue) -> None:
    """Rows that the other one has locked are passed over."""
    ids = {await sql.insert(queue) for _ in range(6)}
    one, two = await connect(), await connect()
    async with one.transaction():
        of_one = {row["id"] for row in await one.fetch(f"SELECT * FROM {queue.batch}(4)")}
        of_two = {
            row["id"] for row in await asyncio.wait_for(two.fetch(f"SELECT * FROM {queue.batch}(10)"), 20)
        }
    assert len(of_one) == 4
    assert of_one | of_two == ids
    assert not of_one & of_two


async def test_a_failure_that_is_reported_twice_at_once_counts_once(
    connect: Connect, sql: Session, queue: Queue
) -> None:
    """The second call waits for the first and finds that the caller holds the row no longer."""
    row_id = await sql.insert(queue)
    await sql.fetch(f"SELECT * FROM {queue.batch}()")
    one, two = await connect(), await connect()
    call = f"SELECT {queue.mark_failed}($1, 'no')"
    async with one.transaction():
        await one.execute(call, row_id)
        waiting = asyncio.ensure_future(two.execute(call, row_id))
        await sql.until_blocked(two, waiting)
    await waiting
    assert (await sql.row(row_id, queue))["attempts"] == 1


async def test_a_settle_waits_for_an_old_callers_update_and_sees_it(
    connect: Connect, sql: Session, queue: Queue
) -> None:
    """Two connections, one row: the worker's failure comes after the old caller took the row, and is late."""
    row_id = await sql.insert(queue)
    worker_session, caller = await connect(), await connect()
    worker = await worker_session.worker(queue)
    lease = await worker.take_one()
    async with caller.transaction():
        await caller.execute(f"UPDATE {queue.table} SET status = 'failed' WHERE id = $1", row_id)
        waiting = asyncio.ensure_future(worker.settle("temporary", lease))
        await sql.until_blocked(worker_session, waiting)
    assert await waiting == []
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"]) == ("failed", 0)


async def test_a_row_that_is_deleted_under_a_worker_is_no_error(sql: Session, queue: Queue) -> None:
    """An old caller may delete what it likes."""
    await sql.insert(queue)
    worker = await sql.worker(queue)
    (lease,) = await worker.claim()
    await sql.execute(f"DELETE FROM {queue.table}")
    assert await worker.begin(lease) == {}
    assert await worker.settle("done", lease) == []


async def test_the_tables_own_not_nulls_are_all_that_an_insert_meets(sql: Session) -> None:
    """A plain insert that lacks one of the three fails as it always did."""
    for missing in ("to_email", "subject", "html"):
        with pytest.raises(asyncpg.NotNullViolationError):
            await sql.insert(EMAIL, **{missing: None})


async def test_a_row_created_in_the_future_waits_for_no_such_time(sql: Session) -> None:
    """created_at says when it stood in line; a caller whose clock is wrong does not delay it."""
    tomorrow = await sql.now() + timedelta(days=1)
    event = await sql.insert(WEBHOOK, created_at=tomorrow)
    webhooks = await sql.worker(WEBHOOK)
    await webhooks.settle("transport_down", await webhooks.take_one())
    assert [lease.id for lease in await webhooks.claim()] == [event]

    await sql.set("email.limit.recipient", "1/60s")
    await sql.insert(created_at=tomorrow)
    limited = await sql.insert(created_at=tomorrow)
    emails = await sql.worker()
    await emails.begin(*await emails.claim())
    await sql.set("email.limit.recipient", "off")
    await sql.fetchval("SELECT postroom.replan_limited_emails(10)")
    assert [lease.id for lease in await emails.claim()] == [limited]


async def test_a_recipient_of_20_000_characters_stops_no_other(sql: Session) -> None:
    """Its key fits into the index of the limits all the same."""
    await sql.set("email.limit.recipient", "1/60s")
    letters = "".join(random.choices(string.ascii_letters + string.digits, k=20_000))
    ids = await sql.insert_many([letters + "@example.com", "ada@example.com"])
    worker = await sql.worker()
    answers = await worker.begin(*await worker.claim())
    assert [answers[row_id]["state"] for row_id in ids] == ["begun", "begun"]
