"""A transport's limit is taken by the start, once it is known which transport the mail goes out by."""

from __future__ import annotations

import asyncio

import pytest

from postroom.email.delivery import Delivery
from postroom.email.message import OutgoingEmail
from postroom.email.store import BOOKS_A_LOOK, EmailStore
from postroom.email.transports.failover import Failover
from postroom.errors import TransportDown
from postroom.queue.engine import Engine
from postroom.queue.pauses import Pauses
from tests.queue.conftest import House, Recorder

FIRST, SECOND = "smtp://first.example:25", "resend"


async def down(_: OutgoingEmail) -> str:
    """A server that closes the connection at the first command."""
    raise TransportDown("421 closing")


def engine_of(house: House, *recorders: Recorder, start_good_s: float | None = None) -> Engine[OutgoingEmail]:
    """A worker with several transports."""
    delivery = Delivery(
        EmailStore(house.database, sender="shop@example.com"), Failover(recorders), Pauses(house.database)
    )
    if start_good_s is not None:
        delivery.start_good_s = start_good_s
    return Engine(delivery, house.database)


async def booked(house: House) -> dict[str, int]:
    """What each book counts."""
    rows = await house.database.fetch("SELECT key, count FROM rate_limit_counters")
    return {row["key"]: row["count"] for row in rows}


async def test_a_failover_takes_one_slot_of_each_transport_and_no_other_twice(house: House) -> None:
    """The first transport goes down after the start; the second one's start follows at once."""
    first, second = Recorder(FIRST, behave=down), Recorder(SECOND)
    await house.set("email.limit.recipient", "1/60s")
    await house.set("email.limit.transport.smtp", "5/60s")
    await house.set("email.limit.transport.resend", "5/60s")
    (email_id,) = await house.queue(to="ada@example.com")
    # On a busy machine the second start may come later than 250 ms, and takes all slots anew, as it must.
    async with house.working(engine_of(house, first, second, start_good_s=60.0)):
        await house.until_settled()
    assert second.handed_over == [email_id]
    assert await booked(house) == {
        "email:recipient:ada@example.com": 1,
        "email:transport:smtp": 1,
        "email:transport:resend": 1,
    }


async def test_a_failover_that_comes_late_takes_all_slots_anew(house: House) -> None:
    """A slot is good for 250 ms, by whichever transport: the receiver sees the mail when it begins."""

    async def down_at_last(_: OutgoingEmail) -> str:
        await asyncio.sleep(0.3)
        raise TransportDown("no answer")

    first, second = Recorder(FIRST, behave=down_at_last), Recorder(SECOND)
    await house.set("email.limit.recipient", "100/60s")
    (email_id,) = await house.queue(to="ada@example.com")
    async with house.working(engine_of(house, first, second)):
        await house.until_settled()
    assert second.handed_over == [email_id]
    assert (await booked(house))["email:recipient:ada@example.com"] >= 2


async def test_a_reached_limit_waits_and_does_not_fail_over(house: House) -> None:
    """The order of the transports is a person's choice: only one that is down is passed over."""
    first, second = Recorder(FIRST), Recorder(SECOND)
    await house.set(f"email.limit.transport.{FIRST}", "2/60s")
    await house.queue(5)
    async with house.working(engine_of(house, first, second)):
        await house.until("(SELECT count(*) = 3 FROM email_queue WHERE waits_for IS NOT NULL)")
    assert (len(first.handed_over), second.handed_over) == (2, [])
    waiting = [row for row in await house.rows() if row["status"] == "pending"]
    assert {row["waits_for"] for row in waiting} == {f"limit:email:transport:{FIRST}"}
    assert {row["attempts"] for row in waiting} == {0}


async def test_a_failover_to_a_transport_at_its_limit_waits_for_that_one(house: House) -> None:
    """No attempt is counted, and the mail comes back when the second transport has a slot."""
    first, second = Recorder(FIRST, behave=down), Recorder(SECOND)
    await house.set("email.limit.transport.resend", "1/2s")
    await house.queue(2)
    async with house.working(engine_of(house, first, second)):
        await house.until("EXISTS (SELECT FROM email_queue WHERE waits_for = 'limit:email:transport:resend')")
        await house.until_settled()
    assert len(second.handed_over) == 2
    assert [(row["status"], row["attempts"]) for row in await house.rows()] == [("sent", 1)] * 2


@pytest.mark.parametrize("count", [12_000, pytest.param(250_000, marks=pytest.mark.chaos)])
async def test_workers_forget_the_books_of_all_recipients_in_turn(house: House, count: int) -> None:
    """Many books whose windows have ended: a worker deletes them as it goes, those that count stay."""
    await house.database.execute(
        """
        INSERT INTO rate_limit_counters (key, count, window_start, window_end, taken_at, taken, taken_total)
        SELECT
            'email:recipient:u' || n || '@example.com', 1, now() - interval '2m', now() - interval '1m',
            ARRAY[now() - interval '2m'], '{1}', 1
        FROM generate_series(1, $1) AS n
        """,
        count,
        deadline_s=120,
    )
    await house.set("email.limit.recipient", "5/60s")
    await house.queue(to="ada@example.com")
    async with house.working(engine_of(house, Recorder())):
        await house.until_settled()
        async with asyncio.timeout(60 + 3 * count / BOOKS_A_LOOK):
            while await house.database.fetchval("SELECT count(*) > 1 FROM rate_limit_counters"):
                await asyncio.sleep(0.2)
    assert await booked(house) == {"email:recipient:ada@example.com": 1}
