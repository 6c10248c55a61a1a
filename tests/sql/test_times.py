"""The figures that settles write: each attempt is counted once, with its times, whatever happened."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

from postroom.queue.times import BOUNDS_MS, Histogram
from tests.sql.conftest import Connect
from tests.sql.session import EMAIL, Lease, Queue, Session, Worker

VERDICTS = ("done", "temporary", "permanent", "uncertain", "transport_down", "released")


async def merged(sql: Session) -> list[Any]:
    """The totals, once all tallies are merged."""
    while await sql.fetchval("SELECT postroom.merge_tallies()"):
        pass
    return await sql.fetch("SELECT * FROM postroom.processing_totals ORDER BY queue, kind, outcome, status")


async def settle_one(worker: Worker, verdict: str, lease: Lease, **entry: object) -> None:
    """Settle as a worker does, with what it knows of the attempt."""
    await worker.session.fetch(
        f"SELECT id FROM postroom.settle_{worker.queue}s($1, $2, $3, $4, '{{NULL}}', '{{NULL}}', $5)",
        worker.id,
        [lease.id],
        [lease.lease_no],
        [verdict],
        [json.dumps({"outcome": verdict} | entry)],
    )


def only(histogram: list[int]) -> tuple[int, int]:
    """The bounds of the one bucket that is not empty."""
    (place,) = [place for place, count in enumerate(histogram) if count]
    return (BOUNDS_MS[place - 1] if place else 0, BOUNDS_MS[place])


async def test_an_attempt_is_counted_with_its_times(sql: Session) -> None:
    """By type, transport, outcome and what the row became; how long it waited, took, and took in all."""
    worker = await sql.worker()
    await sql.insert(email_type="receipt")
    await sql.execute("UPDATE email_queue SET created_at = clock_timestamp() - interval '10 s'")
    lease = await worker.take_one()
    await settle_one(worker, "done", lease, ms=3_000, transport="smtp://mail:25")
    (row,) = await merged(sql)
    kinds = [row[name] for name in ("queue", "kind", "transport", "outcome", "status", "attempts")]
    assert kinds == ["email", "receipt", "smtp://mail:25", "done", "sent", 1]
    assert 10_000 <= row["total_ms"] < 60_000
    assert (row["attempt_ms"], row["wait_ms"]) == (3_000, row["total_ms"] - 3_000)
    assert only(row["attempt"]) == (2_896, 4_096)
    assert only(row["total"])[0] < row["total_ms"] <= only(row["total"])[1]
    (minute,) = await sql.fetch("SELECT * FROM postroom.processing_times")
    assert 2_896 < minute["attempt_p50_ms"] <= minute["attempt_p99_ms"] <= 4_096


async def test_a_mail_that_was_to_go_out_later_waits_from_then_on(sql: Session) -> None:
    """Also where a limit has put it back, or an attempt has failed meanwhile."""
    worker = await sql.worker()
    for way in ("at once", "after a limit", "after a failure"):
        await sql.set("email.limit.recipient", "1/1h" if way == "after a limit" else "off")
        to = f"{way.replace(' ', '-')}@example.com"
        if way == "after a limit":
            await sql.insert(to_email=to)
            await settle_one(worker, "done", await worker.take_one(), ms=1)
        mail = await sql.fetchval(
            "SELECT enqueue_email($1, 's', 'h', email_type => $2, send_at => now() + interval '1 day')",
            to,
            way,
        )
        await sql.execute(
            """
            UPDATE email_queue
            SET created_at = now() - interval '9 days', next_retry_at = now() - interval '100 s',
                due_at = clock_timestamp()
            WHERE id = $1
            """,
            mail,
        )
        if way == "after a limit":
            (lease,) = await worker.claim()
            assert (await worker.begin(lease))[mail]["state"] == "waits"
            await sql.set("email.limit.recipient", "off")
            await sql.execute("UPDATE email_queue SET due_at = clock_timestamp() WHERE id = $1", mail)
        elif way == "after a failure":
            await settle_one(worker, "temporary", await worker.take_one(), ms=1)
            await sql.execute("UPDATE email_queue SET due_at = clock_timestamp() WHERE id = $1", mail)
        await settle_one(worker, "done", await worker.take_one(), ms=1)
    totals = {row["kind"]: row["total_ms"] for row in await merged(sql) if row["outcome"] == "done"}
    for way in ("at once", "after a limit", "after a failure"):
        assert 100_000 <= totals[way] < 200_000, way


async def test_figures_agree_with_the_rows(sql: Session, queue: Queue) -> None:
    """Whatever verdicts fell: as many attempts as the rows count, as many ends as rows that ended."""
    chance = random.Random(7)
    worker = await sql.worker(queue)
    for _ in range(40):
        await sql.insert(queue)
    for _ in range(12):
        await sql.execute(f"UPDATE {queue.table} SET due_at = clock_timestamp() WHERE status = 'pending'")
        for lease in await worker.claim():
            await worker.begin(lease)
            verdict = chance.choice(VERDICTS)
            if chance.random() < 0.2:  # it dies, and the next claim finds that
                await sql.make_due(lease.id, queue=queue)
            else:
                await worker.settle(verdict, lease)
                await worker.settle(verdict, lease)  # the answer was lost
        await sql.execute("UPDATE postroom.workers SET begun = '{}', begun_lease_nos = '{}'")
    rows = await sql.fetch(f"SELECT status, attempts, error_count FROM {queue.table}")
    totals = await merged(sql)
    counted = [row for row in totals if row["outcome"] not in ("transport_down", "abandoned")]
    assert sum(row["attempts"] for row in counted) == sum(row["attempts"] for row in rows)
    failed = sum(row["attempts"] for row in counted if row["outcome"] != "done")
    assert failed == sum(row["error_count"] for row in rows)
    ended: Counter[str] = Counter()
    for row in totals:
        ended[row["status"]] += row["attempts"]
    statuses = Counter(row["status"] for row in rows)
    assert statuses[queue.done] > 5
    assert statuses["dead_letter"] > 5
    assert {key: ended[key] for key in (queue.done, "dead_letter")} == {
        key: statuses[key] for key in (queue.done, "dead_letter")
    }
    minutes = await sql.fetch("SELECT * FROM postroom.processing_minutes")
    assert sum(row["attempts"] for row in minutes) == sum(row["attempts"] for row in totals)


async def test_a_settle_that_is_rolled_back_counts_nothing(sql: Session, queue: Queue) -> None:
    """The figures are part of its transaction."""
    worker = await sql.worker(queue)
    await sql.insert(queue)
    lease = await worker.take_one()
    transaction = sql.transaction()
    await transaction.start()
    assert await worker.settle("done", lease) == [lease.id]
    await transaction.rollback()
    assert await merged(sql) == []
    assert await worker.settle("done", lease) == [lease.id]
    assert [row["attempts"] for row in await merged(sql)] == [1]


async def test_what_old_callers_settle_is_counted(sql: Session, queue: Queue) -> None:
    """Of e-mails by a transport of its own, `an old caller`."""
    for mark, words in ((queue.mark_failed, ", 'no'"), (queue.mark_done, "")):
        row_id = await sql.insert(queue)
        await sql.fetch(f"SELECT * FROM {queue.batch}(10)")
        await sql.execute(f"SELECT {mark}($1{words})", row_id)
        await sql.execute(f"SELECT {mark}($1{words})", row_id)  # it changes nothing
    transport = "an old caller" if queue is EMAIL else ""
    rows = {(row["outcome"], row["transport"], row["status"]): row["attempts"] for row in await merged(sql)}
    assert rows == {
        ("temporary", transport, "pending"): 1,
        ("done", transport, queue.done): 1,
    }


async def test_times_that_no_clock_shows_stop_no_settle(sql: Session, queue: Queue) -> None:
    """Who may insert may write any created_at."""
    worker = await sql.worker(queue)
    for at in ("infinity", "-infinity", "294276-12-31", "4713-01-01 BC"):
        row_id = await sql.insert(queue)
        await sql.execute(
            f"UPDATE {queue.table} SET created_at = '{at}', due_at = now() WHERE id = $1", row_id
        )
    for lease in await worker.claim():
        await worker.begin(lease)
        await settle_one(worker, "done", lease, ms=5)
    assert await sql.fetch("SELECT error FROM postroom.refused_rows") == []
    assert await sql.fetchval(f"SELECT count(*) FROM {queue.table} WHERE status = $1", queue.done) == 4
    assert [row["attempts"] for row in await merged(sql)] == [4]


async def test_what_a_limit_puts_back_is_counted_as_a_wait(sql: Session) -> None:
    """By the kind of the limit, without anybody's address, and as no attempt."""
    await sql.set("email.limit.recipient", "1/1h")
    worker = await sql.worker()
    await sql.insert_many(["ada@example.com"] * 3)
    await worker.begin(*await worker.claim())
    (row,) = await merged(sql)
    kinds = [row[name] for name in ("kind", "outcome", "status", "attempts")]
    assert kinds == ["", "waits", "limit_recipient", 2]


async def test_kinds_are_bounded(sql: Session) -> None:
    """Fifty types a queue; beyond, and where an address stands in a type, they are `other`."""
    worker = await sql.worker()
    for number in range(70):
        await sql.insert(email_type=f"campaign {number:02}")
    await sql.insert(email_type="welcome ada@example.com")
    for _ in range(3):
        leases = await worker.claim(30)
        await worker.begin(*leases)
        await worker.settle("done", *leases)
        await merged(sql)
    totals = {row["kind"]: row["attempts"] for row in await merged(sql)}
    assert len(totals) <= 51
    assert sum(totals.values()) == 71
    assert totals["other"] >= 20
    assert not any("@" in kind for kind in totals)


async def test_two_that_merge_at_once_count_nothing_twice(sql: Session, connect: Connect) -> None:
    """One merges, the others leave it to that one."""
    worker = await sql.worker()
    for _ in range(30):
        await sql.insert()
    for lease in await worker.claim():
        await worker.begin(lease)
        await worker.settle("done", lease)
    others = [await connect() for _ in range(4)]
    await asyncio.gather(*(other.fetchval("SELECT postroom.merge_tallies()") for other in others))
    assert [row["attempts"] for row in await merged(sql)] == [30]
    assert await sql.fetchval("SELECT count(*) FROM postroom.tallies") == 0


async def test_percentiles_are_those_of_the_times_to_a_buckets_width(sql: Session) -> None:
    """SQL and Python say the same; a bucket is 1.41 times as wide as the one before."""
    assert list(BOUNDS_MS) == await sql.fetchval("SELECT postroom.time_bounds_ms()::bigint[]")
    chance = random.Random(3)
    for size in (1, 2, 10, 500):
        times = sorted(int(chance.lognormvariate(6, 3)) for _ in range(size))
        counts = await sql.fetchval("SELECT postroom.histogram($1)", times)
        histogram = Histogram(counts)
        assert histogram.count == size
        for bound in BOUNDS_MS:
            assert histogram.at_most(bound) == sum(time <= bound for time in times)
        for share in (0.5, 0.95, 0.99, 1.0):
            found = await sql.fetchval("SELECT postroom.percentile_ms($1, $2)", counts, share)
            assert found is not None
            assert abs(found - (histogram.percentile_ms(share) or 0)) < 1e-6 * found + 1e-9
            exact = times[max(-int(-share * size // 1) - 1, 0)]
            assert exact / 1.5 - 1 <= found <= exact * 1.5 + 1
    assert await sql.fetchval("SELECT postroom.percentile_ms('{}', 0.5)") is None
    assert Histogram().percentile_ms(0.5) is None


async def test_cleanup_forgets_old_minutes_and_kinds_that_are_gone(sql: Session) -> None:
    """By retention.stats; a counter of a kind that is still seen never falls."""
    worker = await sql.worker()
    for email_type in ("old", "new"):
        await sql.insert(email_type=email_type)
        await worker.settle("done", await worker.take_one())
    await merged(sql)
    await sql.execute(
        """
        UPDATE postroom.processing_minutes SET minute = minute - interval '31 days' WHERE kind = 'old';
        UPDATE postroom.processing_totals SET updated_at = updated_at - interval '31 days' WHERE kind = 'old';
        """
    )
    cleanup = "SELECT count FROM postroom.cleanup_times('(0,0)', '(100,0)', $1)"
    assert await sql.fetchval(cleanup, True) == 1
    assert len(await merged(sql)) == 2
    assert await sql.fetchval(cleanup, False) == 1
    assert [row["kind"] for row in await merged(sql)] == ["new"]
    assert [row["kind"] for row in await sql.fetch("SELECT * FROM postroom.processing_minutes")] == ["new"]
