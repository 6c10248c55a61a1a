"""What a settle makes of a row: one function holds the rules, both queues follow them."""

from __future__ import annotations

import json
from datetime import timedelta

from tests.sql.session import EMAIL, QUEUES, Queue, Session


async def test_a_done_row_has_its_time_and_one_attempt(sql: Session, queue: Queue) -> None:
    """The attempt that succeeded counts too; nothing is left of the lease."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    before = await sql.now()
    await worker.settle("done", await worker.take_one())
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == (queue.done, 1, 0)
    assert before <= row[queue.done_at] <= await sql.now()
    assert (row["due_at"], row["leased_by"], row["waits_for"], row["failed_at"]) == (None, None, None, None)


async def test_temporary_failures_follow_the_schedule_until_the_attempts_are_used_up(
    sql: Session, queue: Queue
) -> None:
    """Six attempts: five delays with up to 10 % on top and never less, then a dead letter."""
    delays_s = [1, 5, 30, 300, 1800] if queue is EMAIL else [60, 300, 1800, 7200, 86400]
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    for attempt, delay_s in enumerate(delays_s, start=1):
        lease = await worker.take_one()
        before = await sql.now()
        await worker.settle("temporary", lease, reply=f"451 try {attempt}")
        row = await sql.row(row_id, queue)
        assert (row["status"], row["attempts"], row["error_count"]) == ("pending", attempt, attempt)
        assert (row["last_error"], row["waits_for"]) == (f"451 try {attempt}", "backoff")
        assert before + timedelta(seconds=delay_s) <= row["next_retry_at"]
        assert row["next_retry_at"] <= row["updated_at"] + timedelta(seconds=delay_s * 1.1)
        assert abs(row["due_at"] - row["next_retry_at"]) < timedelta(seconds=0.01 + delay_s * 0.1)
        await sql.make_due(row_id, queue=queue)
    await worker.settle("temporary", await worker.take_one(), reply="451 the last")
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("dead_letter", 6, 6)
    assert (row["dead_reason"], row["last_error"]) == ("exhausted", "451 the last")
    assert row["failed_at"] is not None
    assert await worker.claim() == []


async def test_the_two_times_of_a_delay_are_the_same(sql: Session, queue: Queue) -> None:
    """What `next_retry_at` tells people is what claims go by, jitter and all."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    await worker.settle("temporary", await worker.take_one())
    row = await sql.row(row_id, queue)
    assert abs(row["due_at"] - row["next_retry_at"]) < timedelta(milliseconds=5)


async def test_the_jitter_differs(sql: Session, queue: Queue) -> None:
    """Rows that failed together do not come back together."""
    ids = [await sql.insert(queue) for _ in range(10)]
    await sql.set(f"{queue}.backoff", "1h")
    worker = await sql.worker(queue)
    leases = await worker.claim()
    await worker.begin(*leases)
    await worker.settle("temporary", *leases)
    delays = {
        round((row["due_at"] - row["updated_at"]).total_seconds())
        for row in [await sql.row(i, queue) for i in ids]
    }
    assert len(delays) > 3
    assert all(3600 <= delay <= 3960 for delay in delays)


async def test_beyond_the_schedule_its_last_delay_holds(sql: Session, queue: Queue) -> None:
    """A row with more attempts than the schedule has delays waits for the last one again and again."""
    await sql.set(f"{queue}.backoff", "1s,10m")
    row_id = await sql.insert(queue, attempts=7, max_attempts=20)
    worker = await sql.worker(queue)
    await worker.settle("temporary", await worker.take_one())
    row = await sql.row(row_id, queue)
    assert timedelta(minutes=10) <= row["due_at"] - row["updated_at"] <= timedelta(minutes=11, seconds=1)


async def test_the_other_sides_retry_after_is_honoured_where_it_is_later(sql: Session, queue: Queue) -> None:
    """Later than the schedule it counts, earlier it does not, and a day is the most."""
    worker = await sql.worker(queue)
    for retry_after, at_least_s, at_most_s in ((0.5, 60, 67), (7200.0, 7200, 7201), (1e9, 86400, 86401)):
        await sql.set(f"{queue}.backoff", "1m")
        row_id = await sql.insert(queue)
        await worker.settle("temporary", await worker.take_one(), retry_after=retry_after)
        row = await sql.row(row_id, queue)
        wait_s = (row["due_at"] - row["updated_at"]).total_seconds()
        assert at_least_s - 0.1 <= wait_s <= at_most_s


async def test_a_permanent_failure_is_a_dead_letter_at_once(sql: Session, queue: Queue) -> None:
    """It counts as an attempt and as an error."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    await worker.settle("permanent", await worker.take_one(), reply="550 no such user")
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("dead_letter", 1, 1)
    assert (row["dead_reason"], row["last_error"]) == ("permanent", "550 no such user")
    assert row["failed_at"] is not None


async def test_an_uncertain_outcome_is_tried_again(sql: Session, queue: Queue) -> None:
    """With the setting as it comes, and always for webhooks; the row says that it was uncertain."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    await worker.settle("uncertain", await worker.take_one(), reply="closed after the final dot")
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("pending", 1, 1)
    assert row["last_error"] == "uncertain: closed after the final dot"


async def test_on_uncertain_park_makes_an_uncertain_mail_a_dead_letter(sql: Session) -> None:
    """The same for a worker's death during the attempt: the mail may be out."""
    await sql.set("email.on_uncertain", "park")
    worker = await sql.worker()
    uncertain = await sql.insert()
    await worker.settle("uncertain", await worker.take_one(), reply="no answer")
    crashed = await sql.insert()
    await (await sql.worker()).die_during(crashed)
    assert await worker.claim() == []
    for row_id in (uncertain, crashed):
        row = await sql.row(row_id)
        assert (row["status"], row["dead_reason"], row["attempts"], row["error_count"]) == (
            "dead_letter",
            "uncertain",
            1,
            1,
        )
        assert row["last_error"].startswith("uncertain")
        assert row["failed_at"] is not None


async def test_on_uncertain_park_says_nothing_about_webhooks(sql: Session) -> None:
    """A handler that may have run is called again; its effects are once by other means."""
    (_, webhook) = QUEUES
    await sql.set("email.on_uncertain", "park")
    row_id = await sql.insert(webhook)
    worker = await sql.worker(webhook)
    await worker.settle("uncertain", await worker.take_one(), reply="no answer")
    assert (await sql.row(row_id, webhook))["status"] == "pending"


async def test_a_transport_that_is_down_costs_no_attempt(sql: Session, queue: Queue) -> None:
    """The row goes back as it was, due at once, and says what it waits for."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    await worker.settle("transport_down", await worker.take_one(), reply="connection refused")
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("pending", 0, 0)
    assert (row["waits_for"], row["next_retry_at"]) == ("transport", None)
    assert row["due_at"] <= await sql.now()
    assert [lease.id for lease in await worker.claim()] == [row_id]


async def test_a_mail_that_is_out_is_settled_whatever_an_old_caller_wrote_meanwhile(
    sql: Session, queue: Queue
) -> None:
    """Also where it has written no status at all."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    lease = await worker.take_one()
    await sql.execute(f"UPDATE {queue.table} SET status = NULL WHERE id = $1", row_id)
    assert await worker.settle("done", lease) == [row_id]
    assert (await sql.row(row_id, queue))["status"] == queue.done


async def test_a_row_from_the_future_that_is_put_back_is_due_now(sql: Session, queue: Queue) -> None:
    """A created_at that an old caller made up delays nothing."""
    row_id = await sql.insert(queue, created_at=await sql.now() + timedelta(days=1))
    worker = await sql.worker(queue)
    await worker.settle("transport_down", await worker.take_one())
    assert (await sql.row(row_id, queue))["due_at"] <= await sql.now()


async def test_counts_that_are_full_keep_no_row_from_being_settled(sql: Session, queue: Queue) -> None:
    """They stay full."""
    full = 2**31 - 1
    row_id = await sql.insert(queue, attempts=full, error_count=full)
    worker = await sql.worker(queue)
    assert await worker.settle("temporary", await worker.take_one()) == [row_id]
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("dead_letter", full, full)


async def test_what_a_draining_worker_gives_back_is_as_it_was(sql: Session, queue: Queue) -> None:
    """Released: nothing counted, no error, due at once."""
    row_id = await sql.insert(queue)
    before = dict(await sql.row(row_id, queue))
    worker = await sql.worker(queue)
    (lease,) = await worker.claim()
    await worker.settle("released", lease)
    after = dict(await sql.row(row_id, queue))
    for changed in ("updated_at", "lease_no", "due_at", "attempt_log"):
        del before[changed], after[changed]
    assert after == before
    assert [again.id for again in await worker.claim()] == [row_id]


async def test_a_row_without_attempts_and_max_attempts_has_those_of_the_default(
    sql: Session, queue: Queue
) -> None:
    """NULL counts as 0 attempts of 6: an old project's rows may hold it."""
    row_id = await sql.insert(queue, attempts=None, max_attempts=None, error_count=None)
    worker = await sql.worker(queue)
    for _ in range(5):
        await worker.settle("temporary", await worker.take_one())
        assert (await sql.row(row_id, queue))["status"] == "pending"
        await sql.make_due(row_id, queue=queue)
    await worker.settle("temporary", await worker.take_one())
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("dead_letter", 6, 6)


async def test_the_attempt_log_keeps_the_last_twenty(sql: Session, queue: Queue) -> None:
    """And what an old caller may have left in its place does not stop it."""
    row_id = await sql.insert(queue, max_attempts=100, attempt_log='{"not": "a list"}')
    worker = await sql.worker(queue)
    for attempt in range(23):
        await worker.settle("temporary", await worker.take_one(), reply=str(attempt))
        await sql.make_due(row_id, queue=queue)
    log = json.loads((await sql.row(row_id, queue))["attempt_log"])
    assert len(log) == 20
    assert all(entry["outcome"] == "temporary" for entry in log)


async def test_a_batch_holds_all_verdicts_at_once(sql: Session, queue: Queue) -> None:
    """One statement settles rows that fared differently, each by its own rule."""
    ids = [await sql.insert(queue) for _ in range(4)]
    worker = await sql.worker(queue)
    leases = {lease.id: lease for lease in await worker.claim()}
    await worker.begin(*leases.values())
    verdicts = ["done", "temporary", "permanent", "transport_down"]
    rows = await sql.fetch(
        f"SELECT * FROM postroom.settle_{queue}s($1, $2, $3, $4, $5, $6, $7)",
        worker.id,
        ids,
        [leases[row_id].lease_no for row_id in ids],
        verdicts,
        ["250 ok", "451 later", "550 never", "refused"],
        [None] * 4,
        [None] * 4,
    )
    answer = {row["id"]: (row["status"], row["attempts"]) for row in rows}
    assert answer == dict(
        zip(ids, [(queue.done, 1), ("pending", 1), ("dead_letter", 1), ("pending", 0)], strict=True)
    )
    for row in rows:
        assert row["next_retry_at"] == (await sql.row(row["id"], queue))["next_retry_at"]


async def test_dead_letters_that_are_retried_have_all_their_attempts_again(
    sql: Session, queue: Queue
) -> None:
    """attempts is 0, error_count stays, and no lease, reason or time of death is left."""
    dead = await sql.insert(queue, max_attempts=1)
    alive = await sql.insert(queue, next_retry_at=await sql.now() + timedelta(days=1))
    worker = await sql.worker(queue)
    await worker.settle("temporary", await worker.take_one(), reply="451 later")
    retried = await sql.fetch(f"SELECT postroom.retry_dead_{queue}s($1)", [dead, alive])
    assert [row[0] for row in retried] == [dead]
    row = await sql.row(dead, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("pending", 0, 1)
    assert (row["failed_at"], row["dead_reason"], row["next_retry_at"]) == (None, None, None)
    assert row["last_error"] == "451 later"
    assert (await sql.row(alive, queue))["due_at"] > await sql.now()
    await worker.settle("done", await worker.take_one())
    row = await sql.row(dead, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == (queue.done, 1, 1)


async def test_a_poisoned_row_that_is_retried_may_crash_three_times_again(sql: Session, queue: Queue) -> None:
    """A person has mended what killed the workers."""
    row_id = await sql.insert(queue)
    await sql.execute(
        f"UPDATE {queue.table} SET status = 'dead_letter', crashes = 3, dead_reason = 'poison' WHERE id = $1",
        row_id,
    )
    await sql.execute(f"SELECT postroom.retry_dead_{queue}s($1)", [row_id])
    await (await sql.worker(queue)).die_during(row_id)
    await (await sql.worker(queue)).claim()
    row = await sql.row(row_id, queue)
    assert (row["status"], row["crashes"]) == ("pending", 1)


async def test_a_discarded_dead_letter_is_failed_and_left_alone(sql: Session, queue: Queue) -> None:
    """failed_at is the time of the decision; a row that is no dead letter is not touched."""
    dead, alive = await sql.insert(queue), await sql.insert(queue)
    await sql.execute(
        f"UPDATE {queue.table} SET status = 'dead_letter', failed_at = now() - interval '1d' WHERE id = $1",
        dead,
    )
    before = await sql.now()
    discarded = await sql.fetch(f"SELECT postroom.discard_dead_{queue}s($1)", [dead, alive])
    assert [row[0] for row in discarded] == [dead]
    row = await sql.row(dead, queue)
    assert row["status"] == "failed"
    assert before <= row["failed_at"] <= row["updated_at"] + timedelta(seconds=1)
    assert await sql.fetch(f"SELECT postroom.retry_dead_{queue}s($1)", [dead]) == []
    worker = await sql.worker(queue)
    assert [lease.id for lease in await worker.claim()] == [alive]
