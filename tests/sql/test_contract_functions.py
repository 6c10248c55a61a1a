"""The functions of the contract, §2, with their signatures, defaults and answers."""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from postroom.database.migrate import migrate
from tests.sql.session import EMAIL, WEBHOOK, Queue, Session

SIGNATURES = {
    "calculate_email_retry_time": (
        "attempt_number integer",
        "timestamp with time zone",
    ),
    "calculate_webhook_retry_time": (
        "attempt_number integer",
        "timestamp with time zone",
    ),
    "get_email_queue_batch": (
        "batch_size integer DEFAULT 50",
        "TABLE(id uuid, to_email text, subject text, html text, from_email text, reply_to text,"
        " attempts integer, max_attempts integer, email_type text, metadata jsonb)",
    ),
    "mark_email_sent": ("email_id uuid", "void"),
    "mark_email_failed": ("email_id uuid, error_message text", "void"),
    "get_webhook_retry_batch": (
        "batch_size integer DEFAULT 10",
        "TABLE(id uuid, webhook_type text, webhook_event_id text, payload jsonb, headers jsonb,"
        " attempts integer, max_attempts integer, metadata jsonb)",
    ),
    "mark_webhook_processed": ("webhook_id uuid", "void"),
    "mark_webhook_failed": ("webhook_id uuid, error_message text", "void"),
    "increment_rate_limit": ("p_key text, p_increment integer, p_limit integer", "TABLE(count integer)"),
    "cleanup_rate_limit_counters": ("", "void"),
    "enqueue_email": (
        "to_email text, subject text, html text, from_email text DEFAULT NULL::text,"
        " reply_to text DEFAULT NULL::text, email_type text DEFAULT NULL::text,"
        " metadata jsonb DEFAULT '{}'::jsonb, idempotency_key text DEFAULT NULL::text,"
        " send_at timestamp with time zone DEFAULT NULL::timestamp with time zone,"
        " priority integer DEFAULT 0,"
        " max_attempts integer DEFAULT 6, text text DEFAULT NULL::text, headers jsonb DEFAULT NULL::jsonb",
        "uuid",
    ),
    "enqueue_emails": ("emails jsonb", "uuid[]"),
}


async def test_the_functions_have_the_signatures_of_the_contract(sql: Session) -> None:
    """Names, types, defaults and answers; nothing else in public, and none of them is SECURITY DEFINER."""
    rows = await sql.fetch(
        """
        SELECT proname, pg_get_function_arguments(oid) AS arguments, pg_get_function_result(oid) AS answer,
            prosecdef
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        """
    )
    assert {row["proname"]: (row["arguments"], row["answer"]) for row in rows} == SIGNATURES
    assert not any(row["prosecdef"] for row in rows)


@pytest.mark.parametrize(
    ("kind", "delays_s"),
    [("email", [1, 5, 30, 300, 1800]), ("webhook", [60, 300, 1800, 7200, 86400])],
)
async def test_retry_times_follow_the_schedule_without_jitter(
    sql: Session, kind: str, delays_s: list[int]
) -> None:
    """Attempts 1 to 5 have the five delays; below the first, beyond the last; NULL is the first."""
    expected = [(None, delays_s[0]), (-1, delays_s[0]), (0, delays_s[0]), *enumerate(delays_s, start=1)]
    expected += [(6, delays_s[-1]), (1000, delays_s[-1])]
    for attempt, delay_s in expected:
        before = await sql.now()
        time = await sql.fetchval(f"SELECT calculate_{kind}_retry_time($1)", attempt)
        after = await sql.now()
        assert before <= time - timedelta(seconds=delay_s) <= after


async def test_retry_times_follow_a_changed_setting_and_the_running_clock(sql: Session) -> None:
    """In a long transaction, too, `now` is now."""
    await sql.set("email.backoff", "500ms, 2h")
    async with sql.transaction():
        began = await sql.fetchval("SELECT now()")
        await sql.execute("SELECT pg_sleep(0.02)")
        first = await sql.fetchval("SELECT calculate_email_retry_time(1)")
        assert first - began > timedelta(milliseconds=515)
        second = await sql.fetchval("SELECT calculate_email_retry_time(attempt_number => 2)")
        assert timedelta(hours=2) <= second - began < timedelta(hours=2, minutes=1)
    webhook = await sql.fetchval("SELECT calculate_webhook_retry_time(1) - clock_timestamp()")
    assert timedelta(seconds=59) < webhook <= timedelta(minutes=1)


async def test_an_email_batch_has_the_contracts_columns_in_their_order(sql: Session) -> None:
    """The values are the row's, NULL where it has NULL."""
    row_id = await sql.insert(
        to_email="ada@example.com",
        subject="S",
        html="<p>H</p>",
        from_email="shop@example.com",
        reply_to="help@example.com",
        attempts=2,
        max_attempts=5,
        email_type="welcome",
        metadata='{"order": 7}',
    )
    (row,) = await sql.fetch("SELECT * FROM get_email_queue_batch()")
    assert list(row.items()) == [
        ("id", row_id),
        ("to_email", "ada@example.com"),
        ("subject", "S"),
        ("html", "<p>H</p>"),
        ("from_email", "shop@example.com"),
        ("reply_to", "help@example.com"),
        ("attempts", 2),
        ("max_attempts", 5),
        ("email_type", "welcome"),
        ("metadata", '{"order": 7}'),
    ]


async def test_a_webhook_batch_has_the_contracts_columns_in_their_order(sql: Session) -> None:
    """The same for events."""
    row_id = await sql.insert(
        WEBHOOK, webhook_event_id="evt_1", payload='{"a": 1}', headers='{"h": "v"}', attempts=2
    )
    (row,) = await sql.fetch("SELECT * FROM get_webhook_retry_batch()")
    assert list(row.items()) == [
        ("id", row_id),
        ("webhook_type", "stripe"),
        ("webhook_event_id", "evt_1"),
        ("payload", '{"a": 1}'),
        ("headers", '{"h": "v"}'),
        ("attempts", 2),
        ("max_attempts", 6),
        ("metadata", "{}"),
    ]


async def test_a_batch_is_leased_for_15_minutes_and_counts_nothing(sql: Session, queue: Queue) -> None:
    """Nobody else gets its rows meanwhile; when the lease has ended they are due as they were."""
    row_id = await sql.insert(queue)
    before = await sql.now()
    assert len(await sql.fetch(f"SELECT * FROM {queue.batch}()")) == 1
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["lease_no"], row["leased_by"]) == ("processing", 0, 1, None)
    assert before <= row["due_at"] - timedelta(minutes=15) <= await sql.now()
    worker = await sql.worker(queue)
    assert await worker.claim() == []
    assert await sql.fetch(f"SELECT * FROM {queue.batch}()") == []
    await sql.make_due(row_id, queue=queue)
    assert [lease.id for lease in await worker.claim()] == [row_id]
    assert (await sql.row(row_id, queue))["attempts"] == 0


async def test_a_batch_is_no_larger_than_asked(sql: Session, queue: Queue) -> None:
    """50 e-mails and 10 events where nothing is said; nothing for 0 and below."""
    for _ in range(60):
        await sql.insert(queue)
    for size, expected in ((0, 0), (-1, 0), (3, 3)):
        assert len(await sql.fetch(f"SELECT * FROM {queue.batch}(batch_size => $1)", size)) == expected
    assert len(await sql.fetch(f"SELECT * FROM {queue.batch}()")) == (50 if queue is EMAIL else 10)


async def test_a_batch_takes_no_slot_of_a_limit(sql: Session) -> None:
    """An old caller books its slots by increment_rate_limit, so it gets more rows than there are slots."""
    await sql.set("email.limit.global", "1/60s")
    await sql.set("email.limit.recipient", "1/60s")
    for _ in range(3):
        await sql.insert()
    assert len(await sql.fetch("SELECT * FROM get_email_queue_batch(50)")) == 3
    assert await sql.fetchval("SELECT count(*) FROM rate_limit_counters") == 0


async def test_a_batch_passes_over_what_is_not_due(sql: Session, queue: Queue) -> None:
    """Rows for later, leased rows, settled rows."""
    later = await sql.now() + timedelta(hours=1)
    await sql.insert(queue, next_retry_at=later)
    for status in ("processing", queue.done, "failed", "dead_letter"):
        await sql.insert(queue, status=status)
    due = await sql.insert(queue)
    assert [row["id"] for row in await sql.fetch(f"SELECT * FROM {queue.batch}()")] == [due]


@pytest.mark.parametrize("holder", ["nobody", "an old caller", "a worker", "a dead letter", "failed"])
async def test_marked_done_settles_whoever_holds_the_row(sql: Session, queue: Queue, holder: str) -> None:
    """The mail is out. The worker that held it writes nothing over that."""
    row_id = await sql.insert(queue)
    worker = await sql.worker(queue)
    lease = await worker.take_one() if holder == "a worker" else None
    if holder == "an old caller":
        await sql.fetch(f"SELECT * FROM {queue.batch}()")
    if holder in ("a dead letter", "failed"):
        status = "failed" if holder == "failed" else "dead_letter"
        await sql.execute(f"UPDATE {queue.table} SET status = $2 WHERE id = $1", row_id, status)
    before = await sql.now()
    await sql.execute(f"SELECT {queue.mark_done}($1)", row_id)
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == (queue.done, 1, 0)
    assert before <= row[queue.done_at] <= row["updated_at"] + timedelta(seconds=1)
    assert (row["due_at"], row["leased_by"], row["dead_reason"]) == (None, None, None)
    if lease is not None:
        for verdict in ("temporary", "permanent", "done"):
            assert await worker.settle(verdict, lease) == []
    await sql.execute(f"SELECT {queue.mark_done}($1)", row_id)
    assert await sql.row(row_id, queue) == row


async def test_marked_failed_counts_the_attempt_and_waits_by_the_schedule(sql: Session, queue: Queue) -> None:
    """Pending with the next delay, attempt after attempt, and a dead letter when they are used up."""
    delays_s = [1, 5] if queue is EMAIL else [60, 300]
    row_id = await sql.insert(queue, max_attempts=3)
    for attempt, delay_s in enumerate(delays_s, start=1):
        await sql.fetch(f"SELECT * FROM {queue.batch}()")
        await sql.execute(f"SELECT {queue.mark_failed}($1, $2)", row_id, f"error {attempt}")
        row = await sql.row(row_id, queue)
        assert (row["status"], row["attempts"], row["error_count"]) == ("pending", attempt, attempt)
        assert row["last_error"] == f"error {attempt}"
        wait = row["next_retry_at"] - row["updated_at"]
        assert timedelta(seconds=delay_s - 0.1) <= wait <= timedelta(seconds=delay_s * 1.1)
        assert row["failed_at"] is None
        await sql.make_due(row_id, queue=queue)
    await sql.fetch(f"SELECT * FROM {queue.batch}()")
    await sql.execute(f"SELECT {queue.mark_failed}($1, $2)", row_id, None)
    row = await sql.row(row_id, queue)
    assert (row["status"], row["attempts"], row["error_count"]) == ("dead_letter", 3, 3)
    assert (row["dead_reason"], row["last_error"]) == ("exhausted", "failed")
    assert row["failed_at"] is not None


async def test_marked_failed_does_nothing_on_any_other_row(sql: Session, queue: Queue) -> None:
    """Pending, a worker's, settled, unknown: the caller holds none of them."""
    worker = await sql.worker(queue)
    held = await sql.insert(queue)
    await worker.take_one()
    statuses = ("pending", queue.done, "failed", "dead_letter", "strange")
    ids = [held, *[await sql.insert(queue, status=status) for status in statuses]]
    before = [await sql.row(row_id, queue) for row_id in ids]
    for row_id in (*ids, uuid4()):
        await sql.execute(f"SELECT {queue.mark_failed}($1, 'error')", row_id)
    assert [await sql.row(row_id, queue) for row_id in ids] == before


async def test_marking_an_unknown_row_is_no_error(sql: Session, queue: Queue) -> None:
    """It may have been cleaned up."""
    await sql.execute(f"SELECT {queue.mark_done}($1)", uuid4())
    await sql.execute(f"SELECT {queue.mark_done}(NULL)")
    await sql.execute(f"SELECT {queue.mark_failed}(NULL, NULL)")


async def test_enqueue_writes_every_named_option_into_its_column(sql: Session) -> None:
    """All thirteen, and the row waits until send_at."""
    send_at = await sql.now() + timedelta(hours=1)
    row_id = await sql.fetchval(
        """
        SELECT enqueue_email(
            to_email => 'ada@example.com', subject => 'S', html => '<p>H</p>',
            from_email => 'shop@example.com', reply_to => 'help@example.com',
            email_type => 'welcome', metadata => '{"order": 7}',
            idempotency_key => 'order-7', send_at => $1, priority => 5, max_attempts => 2, text => 'H',
            headers => '{"List-Unsubscribe": "<https://example.com>"}'
        )
        """,
        send_at,
    )
    row = await sql.row(row_id)
    assert (row["to_email"], row["subject"], row["html"], row["text"]) == (
        "ada@example.com",
        "S",
        "<p>H</p>",
        "H",
    )
    assert (row["from_email"], row["reply_to"]) == ("shop@example.com", "help@example.com")
    assert (row["email_type"], json.loads(row["metadata"])) == ("welcome", {"order": 7})
    assert (row["idempotency_key"], row["priority"], row["max_attempts"]) == ("order-7", 5, 2)
    assert json.loads(row["headers"]) == {"List-Unsubscribe": "<https://example.com>"}
    assert (row["status"], row["due_at"], row["waits_for"]) == ("pending", send_at, "send_at")


async def test_enqueue_with_its_three_arguments_makes_the_row_of_a_plain_insert(sql: Session) -> None:
    """By position; what has a default has the column's."""
    queued = dict(
        await sql.row(await sql.fetchval("SELECT enqueue_email('ada@example.com', 'Hi', '<p>Hi</p>')"))
    )
    plain = dict(await sql.row(await sql.insert()))
    for own in ("id", "created_at", "updated_at", "due_at"):
        del queued[own], plain[own]
    assert queued == plain


async def test_many_are_stored_as_one_by_one(sql: Session) -> None:
    """Each row as enqueue_email makes it, whatever is given, and the ids in the order of the e-mails."""
    full = {
        "to_email": "ada@example.com",
        "subject": "Hi",
        "html": "<p>Hi</p>",
        "from_email": "Shop <shop@example.com>",
        "reply_to": "help@example.com",
        "email_type": "receipt",
        "metadata": {"order": [17]},
        "idempotency_key": "k",
        "send_at": "2040-01-02T03:04:05.678901+02:00",
        "priority": -7,
        "max_attempts": 3,
        "text": "Hi \u2028",
        "headers": {"X-A": "ä"},
    }
    few = {name: full[name] for name in ("to_email", "subject", "html")}
    nothing = {name: None for name in full if name not in few}
    ids = await sql.fetchval("SELECT enqueue_emails($1)", json.dumps([few, full, few | nothing]))
    alone = [
        await sql.fetchval(
            """
            SELECT enqueue_email(
                $1, $2, $3, from_email => $4, reply_to => $5, email_type => $6, metadata => $7,
                idempotency_key => $8, send_at => $9::text::timestamptz, priority => $10,
                max_attempts => $11, text => $12, headers => $13
            )
            """,
            *[
                json.dumps(given.get(name)) if isinstance(given.get(name), dict) else given.get(name)
                for name in full
            ],
        )
        for given in (few, full | {"idempotency_key": "other"}, few)
    ]
    for first, second in zip(ids, alone, strict=True):
        rows = [dict(await sql.row(row_id)) for row_id in (first, second)]
        for own in ("id", "created_at", "updated_at", "due_at", "idempotency_key"):
            del rows[0][own], rows[1][own]
        assert rows[0] == rows[1]
    assert (await sql.row(ids[1]))["idempotency_key"] == "k"
    assert await sql.fetchval("SELECT enqueue_emails('[]')") == []


async def test_ids_of_many_emails_are_led_by_the_time(sql: Session) -> None:
    """RFC 9562, version 7: so those of a call stand beside each other in the index; no two are the same."""
    mails = json.dumps([{"to_email": "ada@example.com", "subject": "s", "html": "h"}] * 500)
    before = time.time_ns() // 1_000_000
    ids = [*await sql.fetchval("SELECT enqueue_emails($1)", mails)]
    ids += await sql.fetchval("SELECT enqueue_emails($1)", mails)
    assert len(set(ids)) == 1000
    assert {(row_id.version, row_id.variant) for row_id in ids} == {(7, uuid.RFC_4122)}
    assert all(before - 1_000 <= row_id.int >> 80 <= time.time_ns() // 1_000_000 + 1_000 for row_id in ids)


async def test_a_trigger_that_lets_no_row_in_is_named(sql: Session) -> None:
    """Neither an id of no row nor a call that never ends, with a key and without."""
    await sql.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER refuse BEFORE INSERT ON email_queue
            FOR EACH ROW WHEN (NEW.subject = 'no') EXECUTE FUNCTION refuse();
        """
    )
    mail = {"to_email": "ada@example.com", "subject": "no", "html": "h"}
    for key in ({}, {"idempotency_key": "k"}):
        with pytest.raises(asyncpg.TriggeredActionError, match=r"^emails\[1\]: a trigger of email_queue"):
            await sql.fetchval(
                "SELECT enqueue_emails($1)", json.dumps([mail | {"subject": "yes"}, mail | key])
            )
        with pytest.raises(asyncpg.TriggeredActionError, match=r"^a trigger of email_queue"):
            await sql.fetchval(
                "SELECT enqueue_email('ada@example.com', 'no', 'h', idempotency_key => $1)",
                key.get("idempotency_key"),
            )
    assert await sql.fetchval("SELECT count(*) FROM email_queue") == 0


async def test_enqueue_takes_null_for_every_option(sql: Session) -> None:
    """A client that sends all names, with NULL where it has nothing, means the defaults."""
    row_id = await sql.fetchval(
        """
        SELECT enqueue_email(
            'ada@example.com', 'Hi', '<p>Hi</p>', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
        )
        """
    )
    row = await sql.row(row_id)
    assert (row["metadata"], row["priority"], row["max_attempts"], row["headers"]) == ("{}", 0, 6, None)


async def test_enqueue_is_part_of_the_callers_transaction(sql: Session) -> None:
    """Rolled back, it was never there."""
    transaction = sql.transaction()
    await transaction.start()
    await sql.fetchval("SELECT enqueue_email('ada@example.com', 'Hi', '<p>Hi</p>')")
    await transaction.rollback()
    assert await sql.fetchval("SELECT count(*) FROM email_queue") == 0


async def test_enqueue_names_what_is_wrong(sql: Session) -> None:
    """An error that begins with the argument's name, and no row."""
    good = {"to_email": "ada@example.com", "subject": "Hi", "html": "<p>Hi</p>"}
    for name, wrong in (
        ("to_email", None),
        ("to_email", ""),
        ("to_email", "ada"),
        ("to_email", "ada@example.com, bob@example.com"),
        ("to_email", "ada@example.com\nbob@example.com"),
        ("subject", None),
        ("subject", "a\r\nBcc: eve@example.com"),
        ("subject", "s" * 2001),
        ("html", None),
        ("from_email", "shop@example.com\nBcc: eve@example.com"),
        ("reply_to", "help@example.com\rBcc: eve@example.com"),
        ("max_attempts", 0),
        ("headers", "[1]"),
        ("metadata", '"text"'),
    ):
        given: dict[str, object] = {**good, name: wrong}
        arguments = ", ".join(f"{key} => ${place}" for place, key in enumerate(given, start=1))
        with pytest.raises(asyncpg.InvalidParameterValueError, match=rf"^{name}: "):
            await sql.fetchval(f"SELECT enqueue_email({arguments})", *given.values())
    assert await sql.fetchval("SELECT count(*) FROM email_queue") == 0


async def test_the_functions_work_on_postgresql_15(debian15_url: str) -> None:
    """A turn through all of them on the oldest server that is supported."""
    await migrate(debian15_url)
    session = Session(await asyncpg.connect(debian15_url))
    try:
        key = "email:recipient:ada@example.com"
        queued = await session.fetchval(
            "SELECT enqueue_email('ada@example.com', 'Hi', '<p>Hi</p>', idempotency_key => 'k')"
        )
        assert [row["id"] for row in await session.fetch("SELECT * FROM get_email_queue_batch()")] == [queued]
        assert await session.fetchval("SELECT * FROM increment_rate_limit($1, 1, 1)", key) == 1
        assert await session.fetchval("SELECT * FROM increment_rate_limit($1, 1, 1)", key) == 2
        assert await session.fetchval("SELECT * FROM increment_rate_limit('own', 2, 5)") == 2
        await session.execute("SELECT mark_email_failed($1, 'no')", queued)
        await session.execute("SELECT mark_email_sent($1)", queued)
        event = await session.insert(WEBHOOK)
        await session.fetch("SELECT * FROM get_webhook_retry_batch()")
        await session.execute("SELECT mark_webhook_failed($1, 'no')", event)
        await session.execute("SELECT mark_webhook_processed($1)", event)
        await session.execute("SELECT cleanup_rate_limit_counters()")
        assert (await session.row(queued))["attempts"] == 2
        assert (await session.row(event, WEBHOOK))["status"] == "processed"

        await session.set("email.limit.recipient", "1/60s")
        first, second = await session.insert(), await session.insert()
        worker = await session.worker()
        begun = await worker.begin(*(leases := await worker.claim()))
        assert sorted(answer["state"] for answer in begun.values()) == ["waits", "waits"]
        await session.execute("DELETE FROM rate_limit_counters")
        await session.execute("SELECT postroom.replan_limited_emails(10)")
        await session.make_due(first, second)
        begun = await worker.begin(*(leases := await worker.claim()))
        assert sorted(answer["state"] for answer in begun.values()) == ["begun", "waits"]
        await worker.settle("done", *leases)
    finally:
        await session.connection.close()
