"""Leases and their numbers: who holds a row, who is too late, and what a crash counts in."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.sql.conftest import Connect
from tests.sql.session import EMAIL, Queue, Session


async def test_a_claim_leases_a_row_for_the_length_of_the_setting(sql: Session, queue: Queue) -> None:
    """The due time moves to the end of the lease, the number grows, the attempt is not counted yet."""
    await sql.set("lease", "90s")
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    before = await sql.now()
    (lease,) = await worker.claim()
    row = await sql.row(row_id, queue)
    assert (lease.id, lease.lease_no) == (row_id, 1)
    assert (row["status"], row["attempts"], row["leased_by"]) == ("processing", 0, worker.id)
    assert before + timedelta(seconds=90) <= row["due_at"] <= await sql.now() + timedelta(seconds=90)
    assert await (await sql.worker(queue)).claim() == []


async def test_two_workers_never_claim_the_same_row(connect: Connect, sql: Session, queue: Queue) -> None:
    """Rows that another claim has locked are passed over, not waited for."""
    ids = {await sql.insert(queue) for _ in range(6)}
    other = await connect()
    first, second = await sql.worker(queue), await other.worker(queue)
    async with sql.transaction():
        of_first = {lease.id for lease in await first.claim(3)}
        of_second = {lease.id for lease in await asyncio.wait_for(second.claim(10), 10)}
    assert len(of_first) == 3
    assert of_first | of_second == ids
    assert not of_first & of_second


@pytest.mark.parametrize(
    "verdict", ["done", "temporary", "permanent", "uncertain", "transport_down", "released"]
)
async def test_a_late_worker_cannot_overwrite_newer_outcome(sql: Session, queue: Queue, verdict: str) -> None:
    """A settle that brings an old lease number changes no column of the row."""
    row_id = await sql.insert(queue)
    late, other = await sql.worker(queue), await sql.worker(queue)
    (old,) = await late.claim()
    await sql.make_due(row_id, queue=queue)
    (new,) = await other.claim()
    assert new.lease_no > old.lease_no
    before = await sql.row(row_id, queue)

    assert await late.settle(verdict, old, reply="too late") == []
    assert await sql.row(row_id, queue) == before

    assert await other.settle("done", new) == [row_id]
    settled = await sql.row(row_id, queue)
    assert await late.settle(verdict, old, reply="too late") == []
    assert await sql.row(row_id, queue) == settled
    assert (settled["status"], settled["attempts"]) == (queue.done, 1)


@pytest.mark.parametrize("verdict", ["temporary", "permanent", "uncertain", "transport_down", "released"])
async def test_nobody_settles_by_the_number_of_another_workers_lease(
    sql: Session, queue: Queue, verdict: str
) -> None:
    """The right number in the wrong hands changes nothing."""
    row_id = await sql.insert(queue)
    (lease,) = await (await sql.worker(queue)).claim()
    before = await sql.row(row_id, queue)
    assert await (await sql.worker(queue)).settle(verdict, lease) == []
    assert await sql.row(row_id, queue) == before


async def test_a_settle_is_written_once(sql: Session, queue: Queue) -> None:
    """A settle that is repeated because its answer was lost changes nothing any more."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    lease = await worker.take_one()
    assert await worker.settle("done", lease) == [row_id]
    before = await sql.row(row_id, queue)
    assert await worker.settle("done", lease) == []
    assert await worker.settle("temporary", lease) == []
    assert await sql.row(row_id, queue) == before


async def test_a_success_counts_although_the_lease_has_ended(sql: Session, queue: Queue) -> None:
    """The mail is out: as long as nobody has claimed the row again, that fact is written down."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    lease = await worker.take_one()
    await sql.make_due(row_id, queue=queue)
    assert await worker.settle("done", lease) == [row_id]
    assert (await sql.row(row_id, queue))["status"] == queue.done


async def test_the_lease_number_only_grows(sql: Session, queue: Queue) -> None:
    """Retries, crashes, old callers, a person's retry: none sets it back, each claim sets it up."""
    row_id = await sql.insert(queue, max_attempts=2)
    worker = await sql.worker(queue)
    numbers = []
    for verdict in ("transport_down", "temporary", "permanent"):
        lease = await worker.take_one()
        numbers.append(lease.lease_no)
        await worker.settle(verdict, lease)
        if verdict == "permanent":
            await sql.execute(f"SELECT postroom.retry_dead_{queue}s($1)", [row_id])
        await sql.make_due(row_id, queue=queue)
    await sql.fetch(f"SELECT * FROM {queue.batch}()")
    numbers.append((await sql.row(row_id, queue))["lease_no"])
    await sql.make_due(row_id, queue=queue)
    numbers.append((await worker.take_one()).lease_no)
    assert numbers == sorted(set(numbers))


async def test_a_begin_by_an_old_number_is_not_answered(sql: Session, queue: Queue) -> None:
    """Who lost the lease must not begin: the row is not in the answer and gets no mark."""
    row_id = await sql.insert(queue)
    late, other = await sql.worker(queue), await sql.worker(queue)
    (old,) = await late.claim()
    await sql.make_due(row_id, queue=queue)
    (new,) = await other.claim()
    assert await late.begin(old) == {}
    assert await sql.fetchval("SELECT begun FROM postroom.workers WHERE id = $1", late.id) == []
    assert set(await other.begin(new)) == {row_id}


async def test_an_attempt_begins_only_with_its_mark(sql: Session, queue: Queue) -> None:
    """A worker that is not registered has nowhere to leave its mark, so it may not begin."""
    await sql.insert(queue)
    worker = await sql.worker(queue)
    (lease,) = await worker.claim()
    await sql.execute("SELECT postroom.forget_worker($1)", worker.id)
    with pytest.raises(Exception, match="is not registered"):
        await worker.begin(lease)


async def test_the_marks_are_one_list(sql: Session, queue: Queue) -> None:
    """A begin names what was begun before and is not settled: that, and what begins now, is marked."""
    first_id, second_id = await sql.insert(queue), await sql.insert(queue)
    worker = await sql.worker(queue)
    first, second = sorted(await worker.claim(), key=lambda lease: [first_id, second_id].index(lease.id))
    await worker.begin(first)
    await worker.begin(second, begun=[first])
    mark = await sql.fetchrow("SELECT begun, begun_lease_nos FROM postroom.workers WHERE id = $1", worker.id)
    assert mark is not None
    assert (mark["begun"], mark["begun_lease_nos"]) == ([first_id, second_id], [1, 1])


async def test_a_begin_extends_a_lease_that_is_half_over(sql: Session, queue: Queue) -> None:
    """Nobody can take the row over between the look at its lease and the commit."""
    await sql.set("lease", "60s")
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    (lease,) = await worker.claim()
    await sql.execute(
        f"UPDATE {queue.table} SET due_at = clock_timestamp() + interval '29 seconds' WHERE id = $1", row_id
    )
    await worker.begin(lease)
    assert (await sql.row(row_id, queue))["due_at"] > await sql.now() + timedelta(seconds=50)


async def test_a_lease_is_extended_by_its_holder_only(sql: Session, queue: Queue) -> None:
    """The answer names the rows that are still the caller's."""
    row_id = await sql.insert(queue)
    worker, stranger = await sql.worker(queue), await sql.worker(queue)
    (lease,) = await worker.claim()
    await sql.set("lease", "1h")
    extend = f"SELECT postroom.extend_{queue}_leases($1, $2, $3)"
    assert await sql.fetch(extend, stranger.id, [row_id], [lease.lease_no]) == []
    assert await sql.fetch(extend, worker.id, [row_id], [lease.lease_no - 1]) == []
    assert (await sql.row(row_id, queue))["due_at"] < await sql.now() + timedelta(minutes=2)
    assert [row[0] for row in await sql.fetch(extend, worker.id, [row_id], [lease.lease_no])] == [row_id]
    assert (await sql.row(row_id, queue))["due_at"] > await sql.now() + timedelta(minutes=59)


async def test_extending_leases_waits_for_no_row(connect: Connect, sql: Session, queue: Queue) -> None:
    """A row that is being settled on another connection is passed over; the others are extended."""
    for _ in range(3):
        await sql.insert(queue)
    settling = await (other := await connect()).worker(queue)
    leases = await settling.claim()
    async with other.transaction():
        assert await settling.settle("done", leases[1]) == [leases[1].id]
        extended = await asyncio.wait_for(
            sql.fetch(
                f"SELECT postroom.extend_{queue}_leases($1, $2, $3)",
                settling.id,
                [lease.id for lease in leases],
                [lease.lease_no for lease in leases],
            ),
            10,
        )
    assert {row[0] for row in extended} == {leases[0].id, leases[2].id}


async def test_settles_lock_rows_in_the_order_of_their_ids(
    connect: Connect, sql: Session, queue: Queue
) -> None:
    """Two that bring the same rows in two orders do not wait for each other."""
    for _ in range(2):
        await sql.insert(queue)
    worker = await (settler := await connect()).worker(queue)
    first, last = sorted(await worker.claim(), key=lambda lease: lease.id)
    looker = await connect()
    async with sql.transaction():
        await sql.execute(f"SELECT FROM {queue.table} WHERE id = $1 FOR UPDATE", first.id)
        task = asyncio.ensure_future(worker.settle("done", last, first))
        await looker.until_blocked(settler, task)
        await looker.execute(f"SELECT FROM {queue.table} WHERE id = $1 FOR UPDATE NOWAIT", last.id)
    assert set(await task) == {first.id, last.id}


async def test_a_crash_before_the_attempt_began_counts_in_nothing(sql: Session, queue: Queue) -> None:
    """A claimed row whose worker died unstarted is claimed again as if nothing had been."""
    row_id = await sql.insert(queue)
    dead, other = await sql.worker(queue), await sql.worker(queue)
    await dead.claim()
    await sql.make_due(row_id, queue=queue)
    (lease,) = await other.claim()
    row = await sql.row(row_id, queue)
    assert (row["attempts"], row["error_count"], row["crashes"], row["last_error"]) == (0, 0, 0, None)
    await other.settle("done", lease)
    assert (await sql.row(row_id, queue))["attempts"] == 1


async def test_a_crash_during_the_attempt_counts_in_both(sql: Session, queue: Queue) -> None:
    """The death is an attempt that failed: the row waits by the schedule and says why."""
    row_id = await sql.insert(queue)
    await (await sql.worker(queue)).die_during(row_id)
    other = await sql.worker(queue)
    before = await sql.now()
    assert await other.claim() == []
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"], row["crashes"]) == ("pending", 1, 1, 1)
    assert row["last_error"] == "uncertain: the worker died during the attempt"
    delay_s = 1 if queue is EMAIL else 60
    assert before + timedelta(seconds=delay_s) <= row["next_retry_at"]
    assert row["next_retry_at"] <= await sql.now() + timedelta(seconds=delay_s * 1.1)
    await sql.make_due(row_id, queue=queue)
    assert [lease.id for lease in await other.claim()] == [row_id]


async def test_a_crash_stops_no_other_row(sql: Session, queue: Queue) -> None:
    """The claim that finds a dead worker's attempt leases what else is due."""
    crashed = await sql.insert(queue)
    await (await sql.worker(queue)).die_during(crashed)
    waiting = await sql.insert(queue)
    assert [lease.id for lease in await (await sql.worker(queue)).claim()] == [waiting]
    assert (await sql.row(crashed, queue))["status"] == "pending"


async def test_a_mark_of_an_older_lease_blames_nobody(sql: Session, queue: Queue) -> None:
    """A settled attempt's mark that is still in the worker's row says nothing about its next lease."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    lease = await worker.take_one()
    await worker.settle("transport_down", lease)
    await sql.make_due(row_id, queue=queue)
    await worker.claim()
    await sql.make_due(row_id, queue=queue)
    await (await sql.worker(queue)).claim()
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("processing", 0, 0)


async def test_three_deaths_during_an_attempt_are_poison(sql: Session, queue: Queue) -> None:
    """Whatever max_attempts says: a mail that kills its workers goes to a person."""
    row_id = await sql.insert(queue, max_attempts=100)
    for deaths in (1, 2, 3):
        await (await sql.worker(queue)).die_during(row_id)
        assert await (await sql.worker(queue)).claim() == []
        row = await sql.row(row_id, queue)
        assert (row["attempts"], row["error_count"], row["crashes"]) == (deaths, deaths, deaths)
        if deaths < 3:
            assert row["status"] == "pending"
            await sql.make_due(row_id, queue=queue)
    assert (row["status"], row["dead_reason"]) == ("dead_letter", "poison")
    assert row["last_error"].startswith("poison")
    assert row["failed_at"] is not None


async def test_a_worker_is_forgotten_only_when_no_live_row_needs_its_marks(
    sql: Session, queue: Queue
) -> None:
    """A dead worker's marks outlive it until its rows are settled."""
    row_id = await sql.insert(queue)
    dead, idle = await sql.worker(queue), await sql.worker(queue)
    await dead.die_during(row_id)
    await sql.execute("UPDATE postroom.workers SET seen_at = clock_timestamp() - interval '2 days'")
    await sql.execute("SELECT postroom.forget_dead_workers()")
    assert await sql.fetchval("SELECT array_agg(id) FROM postroom.workers") == [dead.id]
    assert await idle.claim() == []
    assert (await sql.row(row_id, queue))["error_count"] == 1
    await sql.execute("SELECT postroom.forget_dead_workers()")
    assert await sql.fetchval("SELECT count(*) FROM postroom.workers") == 0
