"""Limits by domain, sender, type and transport: all or none for each mail, a line for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.sql.conftest import Connect
from tests.sql.session import EMAIL, Lease, Session, Worker
from tests.sql.test_limits import age_books, begun_and_waiting, counter, take

DOMAIN = "email.limit.domain.gmail.com"
NEWS = {"from_email": "Shop News <News@Shop.example>"}
BY_KEY: Sequence[tuple[str, str, dict[str, str], dict[str, str]]] = [
    ("domain.gmail.com", "email:domain:gmail.com", {"to_email": "Ada@GMail.com"}, {"to_email": "a@gmail.co"}),
    ("sender.news@shop.example", "email:sender:news@shop.example", NEWS, {"from_email": "shop@shop.example"}),
    ("type.weekly digest", "email:type:weekly digest", {"email_type": "Weekly Digest"}, {"email_type": "x"}),
]
"""Settings with the limiter's keys, a mail that each holds for, and one that it does not hold for."""


async def begin(worker: Worker, *leases: Lease, routes: Sequence[str | None], again: bool = False) -> Any:
    """Begin some mails, each by the transport named; the states in the mails' order."""
    rows = await worker.session.fetch(
        "SELECT * FROM postroom.begin_emails($1, $2, $3, '{}', '{}', $4, $5)",
        worker.id,
        [lease.id for lease in leases],
        [lease.lease_no for lease in leases],
        routes,
        [again] * len(leases),
    )
    found = {row["id"]: row for row in rows}
    return [found[lease.id] for lease in leases]


async def waits(session: Session, row_id: UUID) -> str:
    """What a row waits for."""
    return str((await session.row(row_id))["waits_for"])


@pytest.mark.parametrize(("setting", "key", "held", "free"), BY_KEY)
async def test_a_limit_holds_for_the_mails_that_it_names(
    sql: Session, setting: str, key: str, held: dict[str, str], free: dict[str, str]
) -> None:
    """The second one waits and says for what; others go. Case and a sender's name do not matter."""
    await sql.set(f"email.limit.{setting}", "1/60s")
    ids = [await sql.insert(EMAIL, **mail) for mail in (held, held, free)]
    begun, waiting = await begun_and_waiting(await sql.worker())
    assert (set(begun), waiting) == ({ids[0], ids[2]}, [ids[1]])
    row = await sql.row(ids[1])
    assert (row["waits_for"], row["attempts"], row["status"]) == (f"limit:{key}", 0, "pending")
    assert timedelta(seconds=55) < row["due_at"] - await sql.now() < timedelta(seconds=63)
    assert await counter(sql, key) == 1


async def test_setting_them_is_checked(sql: Session) -> None:
    """A key is kept in lower case; off forgets it; what is none is refused with the forms that there are."""
    await sql.set("email.limit.domain.GMail.com", "500/1h")
    await sql.set("email.limit.transport.smtp://mail.example:587", "5/1s")
    query = "SELECT key, value FROM postroom.settings WHERE postroom.further_limit_key(key) = key ORDER BY 1"
    assert [tuple(row) for row in await sql.fetch(query)] == [
        (DOMAIN, "500/1h"),
        ("email.limit.transport.smtp://mail.example:587", "5/1s"),
    ]
    await sql.set("email.limit.domain.gmail.COM", "off")
    await sql.set("email.limit.type.never-set", "off")
    assert len(await sql.fetch(query)) == 1
    for key in (
        "email.limit.domain.",
        "email.limit.domain.a@gmail.com",
        "email.limit.sender.shop.example",
        "email.limit.type.",
        "email.limit.transport.resnd",
        "email.limit.transport.smtp://user:secret@mail.example:587",
        "email.limit.country.ch",
        "email.limit.domain." + "x" * 500,
    ):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="there is no setting") as refused:
            await sql.set(key, "1/1s")
        assert "email.limit.domain.DOMAIN" in str(refused.value.hint)
    for value in ("many", "1/1ms", "0/1s", ""):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="such as 100/60s; or off"):
            await sql.set(DOMAIN, value)


async def test_there_are_a_thousand_of_them_at_most(sql: Session) -> None:
    """So that what each batch looks up is bounded; those that are there can still be changed."""
    await sql.execute(
        "SELECT postroom.set_setting('email.limit.type.t' || n, '9/1s') FROM generate_series(1, 1000) AS n"
    )
    with pytest.raises(asyncpg.InvalidParameterValueError, match="there are 1000 limits already"):
        await sql.set(DOMAIN, "1/1s")
    await sql.set("email.limit.type.t7", "8/1s")
    await sql.set("email.limit.type.t8", "off")
    await sql.set(DOMAIN, "1/1s")


async def test_a_slot_is_taken_of_every_limit_or_of_none(sql: Session) -> None:
    """Who is stopped by one of five limits leaves the other four as they were."""
    await sql.set("email.limit.global", "9/60s")
    await sql.set("email.limit.recipient", "8/60s")
    await sql.set(DOMAIN, "7/60s")
    await sql.set("email.limit.type.digest", "2/60s")
    await sql.set("email.limit.transport.resend", "6/60s")
    for _ in range(3):
        await sql.insert(to_email="ada@gmail.com", email_type="digest")
    worker = await sql.worker()
    answers = await begin(worker, *await worker.claim(), routes=["resend"] * 3)
    assert [row["state"] for row in answers] == ["begun", "begun", "waits"]
    keys = ("global", "recipient:ada@gmail.com", "domain:gmail.com", "type:digest", "transport:resend")
    assert [await counter(sql, f"email:{key}") for key in keys] == [2] * 5


async def test_a_transports_limit_is_by_its_kind_or_its_name(sql: Session) -> None:
    """One server may have a limit of its own beside that of all SMTP servers; another kind has neither."""
    await sql.set("email.limit.transport.smtp", "2/60s")
    await sql.set("email.limit.transport.smtp://slow.example:25", "1/60s")
    ids = [await sql.insert() for _ in range(6)]
    worker = await sql.worker()
    slow, fast = "smtp://slow.example:25", "smtp://fast.example:25"
    routes = [slow, slow, fast, fast, "smtps://fast.example:465", "maildir:/tmp/mail"]
    answers = await begin(worker, *await worker.claim(), routes=routes)
    assert [row["state"] for row in answers] == ["begun", "waits", "begun", "waits", "begun", "begun"]
    assert await waits(sql, ids[1]) == f"limit:email:transport:{slow}"
    assert await waits(sql, ids[3]) == "limit:email:transport:smtp"


async def test_a_failover_within_the_250_ms_takes_a_slot_of_the_next_transport_only(sql: Session) -> None:
    """Its other slots are still good; where the next transport has none, the mail waits for that one."""
    await sql.set("email.limit.recipient", "1/60s")
    await sql.set("email.limit.transport.smtp", "1/60s")
    await sql.insert(to_email="ada@example.com")
    await sql.insert(to_email="bob@example.com")
    worker = await sql.worker()
    ada, bob = await worker.claim()
    assert [row["state"] for row in await begin(worker, ada, bob, routes=["resend"] * 2)] == ["begun"] * 2
    answers = await begin(worker, ada, bob, routes=["smtp://x:25"] * 2, again=True)
    assert [row["state"] for row in answers] == ["begun", "waits"]
    assert await waits(sql, bob.id) == "limit:email:transport:smtp"
    assert await counter(sql, "email:recipient:ada@example.com") == 1
    assert await counter(sql, "email:transport:smtp") == 1


async def test_a_hot_domain_is_spread_over_its_coming_windows(sql: Session) -> None:
    """Each mail is planned once, and other domains' mail overtakes them."""
    await sql.set(DOMAIN, "5/60s")
    await sql.insert_many([f"u{n}@gmail.com" for n in range(20)])
    other = await sql.insert(to_email="ada@example.com")
    worker = await sql.worker()
    begun, waiting = await begun_and_waiting(worker)
    assert (len(begun), other in begun, len(waiting)) == (6, True, 15)
    now = await sql.now()
    rounds = [round(((await sql.row(row_id))["due_at"] - now).total_seconds() / 60.8) for row_id in waiting]
    assert sorted(rounds) == [1] * 5 + [2] * 5 + [3] * 5
    assert await worker.claim() == []


async def test_a_mail_keeps_its_place_in_the_longer_line(sql: Session) -> None:
    """Its turn has come for the domain, and its recipient's limit stops it: it does not go to the end."""
    await sql.set("email.limit.recipient", "1/60s")
    await sql.set(DOMAIN, "1/60s")
    await sql.insert(to_email="first@gmail.com")
    ada = await sql.insert(to_email="ada@gmail.com")
    worker = await sql.worker()
    await begun_and_waiting(worker)
    for n in range(5):
        await sql.insert(to_email=f"u{n}@gmail.com")
    await begun_and_waiting(worker)
    await age_books(sql, timedelta(seconds=61))
    await take(sql, "email:recipient:ada@gmail.com", 1, 1)
    await sql.make_due(ada)
    assert await begun_and_waiting(worker) == ([], [ada])
    row = await sql.row(ada)
    assert row["waits_for"] == "limit:email:domain:gmail.com"
    assert row["due_at"] - await sql.now() < timedelta(seconds=62)
    await age_books(sql, timedelta(seconds=61))
    await sql.make_due(ada)
    assert await begun_and_waiting(worker) == ([ada], [])


async def test_a_turn_that_the_global_limit_stops_is_not_lost(sql: Session) -> None:
    """It is due as before and still stands first in its recipient's line."""
    await sql.set("email.limit.recipient", "1/60s")
    await sql.insert_many(["ada@example.com"] * 3)
    worker = await sql.worker()
    _, (ticket, later) = await begun_and_waiting(worker)
    await age_books(sql, timedelta(seconds=61))
    await sql.execute(
        "UPDATE email_queue SET due_at = now() - interval '1s', next_retry_at = now() - interval '1s' "
        "WHERE id = $1",
        ticket,
    )
    leases = await worker.claim()
    await sql.set("email.limit.global", "1/60s")
    await take(sql, "email:global", 1, 1)
    assert (await worker.begin(*leases))[ticket]["state"] == "waits"
    await sql.set("email.limit.global", "off")
    await sql.insert(to_email="ada@example.com")
    assert (await begun_and_waiting(worker))[0] == [ticket]
    assert (await sql.row(later))["status"] == "pending"


@pytest.mark.parametrize("changed", ["off", "100/60s", "1/1s"])
async def test_a_changed_limit_plans_waiting_rows_anew(sql: Session, changed: str) -> None:
    """Those of that limit alone: they are due at once, and who must wait gets a time by the new one."""
    await sql.set(DOMAIN, "1/31d")
    await sql.set("email.limit.domain.b.example", "1/31d")
    ids = await sql.insert_many(["ada@gmail.com"] * 4)
    others = await sql.insert_many(["ada@b.example"] * 3)
    worker = await sql.worker()
    await begun_and_waiting(worker)
    assert await sql.fetchval("SELECT postroom.replan_limited_emails(100)") == 0
    await sql.set(DOMAIN, changed)
    assert await sql.fetchval("SELECT postroom.replan_limited_emails(2)") == 2
    assert await sql.fetchval("SELECT postroom.replan_limited_emails(100)") == 1
    assert await sql.fetchval("SELECT postroom.replan_limited_emails(100)") == 0
    assert await waits(sql, others[1]) == "limit:email:domain:b.example"
    begun, waiting = await begun_and_waiting(worker)
    if changed == "1/1s":
        assert begun == []
        soon = await sql.now() + timedelta(seconds=6)
        assert all([(await sql.row(row_id))["due_at"] < soon for row_id in waiting])
    else:
        assert (set(begun), waiting) == (set(ids[1:]), [])


async def test_limits_that_are_lifted_during_a_start_stop_nothing(sql: Session) -> None:
    """The start had seen them, and found no slot; when it shares the slots out they are gone."""
    query = "SELECT * FROM postroom.share_slots($1, $2, $2, $3, $2, $2, $2, NULL)"
    assert await sql.fetch(query, ["ada@gmail.com"], [None], [0], timeout=20) == []
    await sql.set(DOMAIN, "1/60s")
    await take(sql, "email:domain:gmail.com", 1, 1)
    assert len(await sql.fetch(query, ["ada@gmail.com"], [None], [0], timeout=20)) == 1


async def test_old_callers_book_in_the_same_limiter(sql: Session) -> None:
    """What increment_rate_limit takes is missing for the engine, and the lower limit holds."""
    await sql.set(DOMAIN, "3/60s")
    assert await take(sql, "email:domain:GMAIL.com", 2, 100) == 2
    assert await take(sql, "email:domain:gmail.com", 2, 100) > 100
    await sql.insert_many(["ada@gmail.com"] * 2)
    begun, waiting = await begun_and_waiting(await sql.worker())
    assert (len(begun), len(waiting)) == (1, 1)
    assert await take(sql, "email:domain:gmail.com", 1, 100) > 100


async def test_a_direct_send_is_told_the_limit_and_when_to_come_back(sql: Session) -> None:
    """No row, no place in the line."""
    await sql.set(DOMAIN, "1/60s")
    await take(sql, "email:domain:gmail.com", 1, 1)
    worker = await sql.worker()
    row = await sql.fetchrow(
        """
        SELECT * FROM postroom.begin_direct_email(
            $1, gen_random_uuid(), 'ada@gmail.com', 's', 'h', 'a@b.example',
            NULL, NULL, NULL, NULL, NULL, NULL
        )
        """,
        worker.id,
    )
    assert row is not None
    assert (row["id"], row["limit_key"]) == (None, "email:domain:gmail.com")
    assert 55 < row["wait_s"] < 62
    assert await sql.fetchval("SELECT count(*) FROM email_queue") == 0


async def test_who_has_none_of_them_pays_nothing(sql: Session) -> None:
    """No book is made for a domain, a sender, a type or a transport."""
    await sql.set("email.limit.recipient", "9/60s")
    await sql.insert(to_email="ada@gmail.com", email_type="digest", from_email="a@b.example")
    worker = await sql.worker()
    await begin(worker, *await worker.claim(), routes=["resend"])
    assert await sql.fetchval("SELECT array_agg(key) FROM rate_limit_counters") == [
        "email:recipient:ada@gmail.com"
    ]


async def test_workers_over_crossed_limits_never_deadlock(connect: Connect, sql: Session) -> None:
    """Batches that name domains, types and senders in crossed orders all get through; the books add up."""
    for key in ("domain.a.example", "domain.b.example", "type.x", "type.y", "sender.s@b.example"):
        await sql.set(f"email.limit.{key}", "1000/60s")
    await sql.set("email.limit.recipient", "1000/60s")

    async def run(number: int) -> int:
        session = await connect()
        worker = await session.worker()
        begun = 0
        for round_ in range(6):
            order = range(8) if (number + round_) % 2 else reversed(range(8))
            for n in order:
                await session.insert(
                    to_email=f"u{n}@{'ab'[n % 2]}.example",
                    email_type="xy"[n // 2 % 2],
                    from_email="s@b.example",
                )
            leases = await worker.claim(8)
            begun += len(await worker.begin(*leases)) if leases else 0
        return begun

    begun = sum(await asyncio.wait_for(asyncio.gather(*map(run, range(4))), 60))
    last = await sql.worker()
    while leases := await last.claim(8):  # a claim passes over a row that another one is just looking at
        begun += len(await last.begin(*leases))
    assert await counter(sql, "email:sender:s@b.example") == begun == 192


async def a_line(sql: Session, worker: Worker) -> None:
    """One slot a minute for a domain, taken, and a mail that stands in line for the next."""
    await sql.set(DOMAIN, "1/60s")
    await sql.insert_many(["first@gmail.com", "second@gmail.com"])
    await begun_and_waiting(worker)


async def test_who_surely_has_to_wait_gets_his_time_without_a_lease(sql: Session) -> None:
    """One write, behind all that wait already; others, and those of a higher priority, are leased."""
    worker = await sql.worker()
    await a_line(sql, worker)
    hot = await sql.insert_many(["third@gmail.com", "fourth@gmail.com"])
    urgent = await sql.insert(to_email="urgent@gmail.com", priority=1)
    other = await sql.insert()
    assert [lease.id for lease in await worker.claim()] == [urgent, other]
    rows = [await sql.row(row_id) for row_id in hot]
    assert {(row["status"], row["lease_no"], row["waits_for"], row["attempts"]) for row in rows} == {
        ("pending", 0, "limit:email:domain:gmail.com", 0)
    }
    now = await sql.now()
    assert [round((row["due_at"] - now).total_seconds() / 60.8) for row in rows] == [2, 3]
    assert [row["next_retry_at"] for row in rows] == [row["due_at"] for row in rows]


async def test_a_claim_waits_for_no_book(connect: Connect, sql: Session) -> None:
    """Somebody holds it: what would have to wait there stays due as it was, and others are leased."""
    worker = await sql.worker()
    await a_line(sql, worker)
    hot = await sql.insert(to_email="third@gmail.com")
    other = await sql.insert()
    before = await sql.row(hot)
    holder = await connect()
    async with holder.transaction():
        await holder.execute("SELECT postroom.lock_books(ARRAY['email:domain:gmail.com'])")
        claimed = await asyncio.wait_for(worker.claim(), 20)
    assert [lease.id for lease in claimed] == [other]
    assert await sql.row(hot) == before
    assert await worker.claim() == []
    assert (await sql.row(hot))["waits_for"] == "limit:email:domain:gmail.com"


async def test_a_row_that_refuses_its_time_stops_no_other(sql: Session) -> None:
    """Its own trigger raises: it is set aside, and the others of its batch are leased or planned."""
    worker = await sql.worker()
    await a_line(sql, worker)
    await sql.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON email_queue
        FOR EACH ROW WHEN (OLD.subject = 'refuses') EXECUTE FUNCTION refuse();
        """
    )
    refuses = await sql.insert(to_email="third@gmail.com", subject="refuses")
    hot = await sql.insert(to_email="fourth@gmail.com")
    other = await sql.insert()
    begun, waiting = await begun_and_waiting(worker)
    assert (begun, waiting) == ([other], [hot])
    assert await sql.fetchval("SELECT array_agg(id) FROM postroom.refused_rows") == [refuses]


async def test_one_claim_looks_past_what_has_to_wait(sql: Session) -> None:
    """Hundreds of mails to one domain stand in front: the claim gives them their times and finds the next."""
    worker = await sql.worker()
    await a_line(sql, worker)
    await sql.execute(
        "INSERT INTO email_queue (to_email, subject, html) "
        "SELECT n || '@gmail.com', 's', 'h' FROM generate_series(1, 300) AS n"
    )
    other = await sql.insert()
    assert [lease.id for lease in await worker.claim(10)] == [other]
    assert await sql.fetchval("SELECT count(DISTINCT due_at) FROM email_queue WHERE lease_no = 0") == 300
