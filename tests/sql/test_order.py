"""Who goes first: priority, then age among what is due."""

from __future__ import annotations

from datetime import timedelta

from tests.sql.session import EMAIL, WEBHOOK, Queue, Session


async def test_the_oldest_due_row_goes_first(sql: Session, queue: Queue) -> None:
    """In the order of their due times, which is the order of the inserts."""
    ids = [await sql.insert(queue) for _ in range(5)]
    worker = await sql.worker(queue)
    assert [lease.id for lease in await worker.claim(2)] == ids[:2]
    assert [lease.id for lease in await worker.claim()] == ids[2:]


async def test_rows_of_one_transaction_keep_their_order(sql: Session, queue: Queue) -> None:
    """now() stands still there; the due time does not."""
    async with sql.transaction():
        ids = [await sql.insert(queue) for _ in range(5)]
    assert [lease.id for lease in await (await sql.worker(queue)).claim()] == ids


async def test_a_higher_priority_goes_first_among_what_is_due(sql: Session, queue: Queue) -> None:
    """Below zero goes last, and age decides within one priority."""
    priorities = [0, -1, 5, 0, 5, 100]
    ids = [await sql.insert(queue, priority=priority) for priority in priorities]
    worker = await sql.worker(queue)
    order = [lease.id for lease in await worker.claim()]
    assert order == [ids[place] for place in (5, 2, 4, 0, 3, 1)]


async def test_a_batch_that_is_full_leaves_the_lower_priorities(sql: Session, queue: Queue) -> None:
    """The limit of a claim holds over all priorities together."""
    low, high, middle = [await sql.insert(queue, priority=priority) for priority in (0, 9, 5)]
    worker = await sql.worker(queue)
    assert [lease.id for lease in await worker.claim(2)] == [high, middle]
    assert [lease.id for lease in await worker.claim(2)] == [low]


async def test_a_higher_priority_that_is_not_due_holds_nobody_up(sql: Session, queue: Queue) -> None:
    """Only what is due stands in line."""
    later = await sql.now() + timedelta(hours=1)
    urgent = await sql.insert(queue, priority=100, next_retry_at=later)
    due = await sql.insert(queue)
    worker = await sql.worker(queue)
    assert [lease.id for lease in await worker.claim()] == [due]
    await sql.make_due(urgent, queue=queue)
    assert [lease.id for lease in await worker.claim()] == [urgent]


async def test_a_retry_stands_by_its_due_time(sql: Session, queue: Queue) -> None:
    """A mail that failed comes back among those that became due at its time, not in front of all."""
    failed = await sql.insert(queue)
    worker = await sql.worker(queue)
    await worker.settle("temporary", await worker.take_one())
    older = await sql.insert(queue)
    await sql.execute(f"UPDATE {queue.table} SET due_at = clock_timestamp() WHERE id = $1", failed)
    younger = await sql.insert(queue)
    assert [lease.id for lease in await worker.claim()] == [older, failed, younger]


async def test_an_email_with_send_at_goes_out_then(sql: Session) -> None:
    """By enqueue_email, and the wait says how long a worker may sleep."""
    send_at = await sql.now() + timedelta(hours=1)
    row_id = await sql.fetchval(
        "SELECT enqueue_email('ada@example.com', 'Hi', '<p>Hi</p>', send_at => $1)", send_at
    )
    worker = await sql.worker()
    assert await worker.claim() == []
    assert 3500 < await sql.fetchval("SELECT postroom.email_wait_s()") <= 3600
    await sql.make_due(row_id)
    assert [lease.id for lease in await worker.claim()] == [row_id]


async def test_a_send_at_that_has_passed_is_now(sql: Session) -> None:
    """An application that was late queues a mail that is due."""
    row_id = await sql.fetchval(
        "SELECT enqueue_email('ada@example.com', 'Hi', '<p>Hi</p>', send_at => now() - interval '1 day')"
    )
    assert [lease.id for lease in await (await sql.worker()).claim()] == [row_id]


async def test_the_wait_is_that_of_the_next_row_of_any_priority(sql: Session, queue: Queue) -> None:
    """NULL where nothing is live, 0 where something is due, else the seconds to the first."""
    wait = f"SELECT postroom.{queue}_wait_s()"
    assert await sql.fetchval(wait) is None
    await sql.insert(queue, status="dead_letter")
    assert await sql.fetchval(wait) is None
    now = await sql.now()
    await sql.insert(queue, priority=9, next_retry_at=now + timedelta(hours=2))
    await sql.insert(queue, priority=1, next_retry_at=now + timedelta(hours=1))
    assert 3500 < await sql.fetchval(wait) <= 3600
    await sql.insert(queue, priority=-5)
    assert await sql.fetchval(wait) == 0


async def test_other_recipients_overtake_one_that_is_limited(sql: Session) -> None:
    """The limited mails go to the back with a time of their own; the others leave in their order."""
    await sql.set("email.limit.recipient", "2/60s")
    ids = await sql.insert_many(["hot@example.com"] * 6 + ["ada@example.com", "bob@example.com"])
    worker = await sql.worker()
    begun: list[object] = []
    while leases := await worker.claim(3):
        begun += [
            row_id for row_id, answer in (await worker.begin(*leases)).items() if answer["state"] == "begun"
        ]
    assert begun == [ids[0], ids[1], ids[6], ids[7]]
    waiting = [await sql.row(row_id) for row_id in ids[2:6]]
    assert {row["waits_for"] for row in waiting} == {"limit:email:recipient:hot@example.com"}
    assert [row["due_at"] for row in waiting] == sorted(row["due_at"] for row in waiting)
    assert all((row["status"], row["attempts"], row["error_count"]) == ("pending", 0, 0) for row in waiting)


async def test_a_sender_is_written_into_rows_that_name_none(sql: Session) -> None:
    """By the first claim, so that every attempt sends the same, also when the setting changes in between."""
    nameless, empty = await sql.insert(), await sql.insert(from_email="")
    named = await sql.insert(from_email="own@example.com")
    worker = await sql.worker()
    for sender in ("first@example.com", "second@example.com"):
        rows = await sql.fetch(
            "SELECT id, from_email FROM postroom.claim_emails($1, 10, $2)", worker.id, sender
        )
        assert {row["id"]: row["from_email"] for row in rows} == {
            nameless: "first@example.com",
            empty: "first@example.com",
            named: "own@example.com",
        }
        await sql.make_due(nameless, empty, named)


async def test_a_pass_over_what_is_due_leaves_out_what_became_due_later(sql: Session, queue: Queue) -> None:
    """p_before bounds a pass, so that it ends."""
    before = await sql.insert(queue)
    began = await sql.now()
    await sql.insert(queue)
    rows = await sql.fetch(
        f"SELECT id FROM postroom.claim_{queue}s($1, 10, {'NULL, ' if queue is EMAIL else ''}p_before => $2)",
        (await sql.worker(queue)).id,
        began,
    )
    assert [row["id"] for row in rows] == [before]


async def test_the_first_of_every_lane_is_claimed_and_no_other(sql: Session) -> None:
    """Of more lanes, too, than a claim remembers; what is in no lane goes beside them."""
    await sql.execute(
        """
        INSERT INTO webhook_retry_queue (webhook_type, payload, lane, lane_place)
        SELECT 'stripe', '{}', NULLIF(lane, 0)::text, CASE WHEN lane > 0 THEN 100 - place END
        FROM generate_series(1, 2) AS place
        CROSS JOIN generate_series(0, 150) AS lane
        """
    )
    worker = await sql.worker(WEBHOOK)
    leases = await worker.claim(500)
    claimed = await sql.fetch(
        "SELECT lane, lane_place FROM webhook_retry_queue WHERE id = ANY ($1)", [lease.id for lease in leases]
    )
    assert sorted(int(row["lane"] or 0) for row in claimed) == [0, 0, *range(1, 151)]
    assert {row["lane_place"] for row in claimed} == {None, 98}
    await worker.settle("done", *leases)
    assert len(await worker.claim(500)) == 150
