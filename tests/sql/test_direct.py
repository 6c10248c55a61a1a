"""E-mails that are attempted at once: a row, leased from its first moment; none where nothing was sent."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from tests.sql.session import Lease, Session, Worker

ADA = "email:recipient:ada@example.com"


async def begin_direct(worker: Worker, **given: Any) -> asyncpg.Record:
    """What begin_direct_email answers; what is not given is NULL."""
    arguments: dict[str, object] = {
        "p_worker": worker.id,
        "p_id": uuid4(),
        "p_to": "ada@example.com",
        "p_subject": "Hi",
        "p_html": "<p>Hi</p>",
        "p_from": None,
        "p_reply_to": None,
        "p_email_type": None,
        "p_metadata": None,
        "p_text": None,
        "p_headers": None,
        "p_idempotency_key": None,
    } | given
    named = ", ".join(f"{name} => ${place}" for place, name in enumerate(arguments, start=1))
    row: asyncpg.Record | None = await worker.session.connection.fetchrow(
        f"SELECT * FROM postroom.begin_direct_email({named})", *arguments.values()
    )
    assert row is not None
    return row


async def withdraw(session: Session, row_id: UUID, lease_no: int = 1) -> tuple[bool, float | None]:
    """What withdraw_direct_email answers."""
    row = await session.fetchrow("SELECT * FROM postroom.withdraw_direct_email($1, $2)", row_id, lease_no)
    assert row is not None
    return row["withdrawn"], row["wait_s"]


async def test_a_direct_send_has_a_row_that_is_leased_to_its_worker(sql: Session) -> None:
    """With everything that was given, max_attempts 1, and nobody else can claim it."""
    await sql.set("lease", "45s")
    worker = await sql.worker()
    row_id = uuid4()
    answer = await begin_direct(
        worker,
        p_id=row_id,
        p_from="shop@example.com",
        p_reply_to="help@example.com",
        p_email_type="reset",
        p_metadata='{"a": 1}',
        p_text="Hi",
        p_headers='{"X-A": "b"}',
        p_idempotency_key="k",
    )
    row = await sql.row(row_id)
    assert (answer["id"], answer["made"], answer["lease_s"]) == (row_id, True, 45.0)
    assert (answer["created_at"], answer["wait_s"], answer["limit_key"]) == (row["created_at"], None, None)
    assert (row["to_email"], row["subject"], row["html"], row["text"]) == (
        "ada@example.com",
        "Hi",
        "<p>Hi</p>",
        "Hi",
    )
    assert (row["from_email"], row["reply_to"], row["email_type"]) == (
        "shop@example.com",
        "help@example.com",
        "reset",
    )
    assert (json.loads(row["metadata"]), json.loads(row["headers"])) == ({"a": 1}, {"X-A": "b"})
    assert (row["idempotency_key"], row["max_attempts"], row["attempts"]) == ("k", 1, 0)
    assert (row["status"], row["lease_no"], row["leased_by"]) == ("processing", 1, worker.id)
    assert timedelta(seconds=40) < row["due_at"] - await sql.now() <= timedelta(seconds=45)
    assert await (await sql.worker()).claim() == []


async def test_a_direct_send_ends_with_its_one_attempt(sql: Session) -> None:
    """Sent, or a dead letter, also where the transport was down and nobody waits for it."""
    worker = await sql.worker()
    for verdict, status, attempts, reason in (
        ("done", "sent", 1, None),
        ("temporary", "dead_letter", 1, "exhausted"),
        ("permanent", "dead_letter", 1, "permanent"),
        ("uncertain", "dead_letter", 1, "exhausted"),
        ("abandoned", "dead_letter", 0, "transport"),
    ):
        answer = await begin_direct(worker)
        lease = Lease(answer["id"], 1)
        assert (await worker.begin(lease))[lease.id]["state"] == "begun"
        assert await worker.settle(verdict, lease, reply="the answer") == [lease.id]
        row = await sql.row(lease.id)
        assert (row["status"], row["attempts"], row["dead_reason"]) == (status, attempts, reason)
        if reason is not None:
            assert "the answer" in row["last_error"]
            assert row["failed_at"] is not None


async def test_a_direct_send_takes_its_slot_when_it_begins(sql: Session) -> None:
    """Of both limits, and not before: to connect may take longer than a slot is good for."""
    await sql.set("email.limit.global", "5/60s")
    await sql.set("email.limit.recipient", "5/60s")
    worker = await sql.worker()
    answer = await begin_direct(worker, p_to="Ada@Example.com")
    assert await sql.fetchval("SELECT count(*) FROM rate_limit_counters") == 0
    await worker.begin(Lease(answer["id"], 1))
    counts = {
        row["key"]: row["count"] for row in await sql.fetch("SELECT key, count FROM rate_limit_counters")
    }
    assert counts == {"email:global": 1, ADA: 1}


async def test_where_a_limit_is_reached_there_is_no_row(sql: Session) -> None:
    """The answer names the limit, and when to come again: the later of the two."""
    await sql.set("email.limit.global", "1/60s")
    await sql.set("email.limit.recipient", "1/1h")
    worker = await sql.worker()
    await sql.fetch("SELECT * FROM increment_rate_limit('email:global', 1, 1)")
    answer = await begin_direct(worker)
    assert (answer["id"], answer["made"], answer["limit_key"]) == (None, None, "email:global")
    assert 59 < answer["wait_s"] < 62
    await sql.fetch("SELECT * FROM increment_rate_limit($1, 1, 1)", ADA)
    answer = await begin_direct(worker, p_to="ADA@example.com")
    assert answer["limit_key"] == ADA
    assert 3590 < answer["wait_s"] < 3602
    assert await sql.fetchval("SELECT count(*) FROM email_queue") == 0


async def test_a_direct_send_that_came_too_late_for_its_slot_is_withdrawn(sql: Session) -> None:
    """Somebody took the slot between the look and the begin: nothing was sent, and no row stays."""
    await sql.set("email.limit.recipient", "1/60s")
    worker = await sql.worker()
    answer = await begin_direct(worker)
    await sql.fetch("SELECT * FROM increment_rate_limit($1, 1, 1)", ADA)
    begun = await worker.begin(Lease(answer["id"], 1))
    assert begun[answer["id"]]["state"] == "waits"
    withdrawn, wait_s = await withdraw(sql, answer["id"])
    assert withdrawn is True
    assert wait_s is not None
    assert 59 < wait_s < 63
    assert await sql.fetchval("SELECT count(*) FROM email_queue") == 0
    line = await sql.fetchrow("SELECT planned, taken_total FROM rate_limit_counters WHERE key = $1", ADA)
    assert line is not None
    assert line["planned"] <= line["taken_total"], "it stood in no line, so it leaves no hole"


async def test_a_withdrawal_of_a_mail_that_waits_for_the_global_limit_says_when(sql: Session) -> None:
    """Its row is due at once, in its place; the wait is that of the limit."""
    await sql.set("email.limit.global", "1/60s")
    worker = await sql.worker()
    answer = await begin_direct(worker)
    await sql.fetch("SELECT * FROM increment_rate_limit('email:global', 1, 1)")
    assert (await worker.begin(Lease(answer["id"], 1)))[answer["id"]]["waits_for"] == "limit:email:global"
    withdrawn, wait_s = await withdraw(sql, answer["id"])
    assert withdrawn is True
    assert wait_s is not None
    assert 59 < wait_s < 62


async def test_a_row_that_a_worker_has_claimed_meanwhile_stays(sql: Session) -> None:
    """Put back, it was due for an instant: whoever took it sends it, and the caller is told so."""
    await sql.set("email.limit.global", "1/60s")
    worker, other = await sql.worker(), await sql.worker()
    answer = await begin_direct(worker)
    await sql.fetch("SELECT * FROM increment_rate_limit('email:global', 1, 1)")
    await worker.begin(Lease(answer["id"], 1))
    await sql.set("email.limit.global", "off")
    (lease,) = await other.claim()
    assert await withdraw(sql, answer["id"]) == (False, None)
    assert (await sql.row(lease.id))["leased_by"] == other.id


async def test_a_row_that_has_begun_is_not_withdrawn(sql: Session) -> None:
    """Nor one that is settled, nor one that is not there."""
    worker = await sql.worker()
    answer = await begin_direct(worker)
    lease = Lease(answer["id"], 1)
    await worker.begin(lease)
    assert await withdraw(sql, lease.id) == (False, None)
    await worker.settle("done", lease)
    assert await withdraw(sql, lease.id) == (False, None)
    assert await withdraw(sql, uuid4()) == (False, None)


async def test_a_direct_send_whose_worker_died_unstarted_goes_out_by_another(sql: Session) -> None:
    """Nobody answered its caller, but the row is there: any worker sends it, once."""
    dead, other = await sql.worker(), await sql.worker()
    answer = await begin_direct(dead)
    await sql.make_due(answer["id"])
    lease = await other.take_one()
    assert lease.id == answer["id"]
    await other.settle("done", lease)
    row = await sql.row(lease.id)
    assert (row["status"], row["attempts"], row["error_count"]) == ("sent", 1, 0)
