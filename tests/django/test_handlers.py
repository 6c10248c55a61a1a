"""Webhook handlers in Django: effect, mail and mark are one transaction of the ORM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from postroom import Room
from postroom.django import on
from postroom.django.handlers import registry
from postroom.errors import ConfigError, PermanentFailure
from postroom.testing import deliver, deliver_now
from tests.django.conftest import Sent


@pytest.fixture
def further() -> Iterator[None]:
    """Handlers that a test registers go with it."""
    before = {source: list(ones) for source, ones in registry.of.items()}
    yield
    registry.of.clear()
    registry.of.update(before)


def event(session: str = "cs_1", number: int = 1) -> dict[str, Any]:
    return {
        "id": f"evt_{number}",
        "type": "checkout.session.completed",
        "data": {"object": {"id": session, "customer_email": "ada@example.com"}},
    }


def orders() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT stripe_id FROM shop_order ORDER BY id")
        return [row[0] for row in cursor.fetchall()]


def test_a_handler_writes_by_the_orm_and_mails(sent: Sent) -> None:
    """An event through the door: the order is there, and the receipt goes out."""
    done = deliver_now(Room(registry=registry), "stripe", event())
    assert (done.status, done.handled_by) == ("processed", ("fulfil",)), done.errors
    assert orders() == ["cs_1"]
    assert [mail["To"] for mail in sent()] == ["ada@example.com"]


@pytest.mark.usefixtures("further")
def test_what_a_handler_raises_undoes_all_that_it_did() -> None:
    """Order and mail are undone, the event waits; the next attempt does both once."""
    raised: list[bool] = []

    @on("stripe", name="moody")
    def moody(_: Any) -> None:
        from tests.django.shop.models import Order

        Order.objects.create(stripe_id="moody")
        if not raised:
            raised.append(True)
            raise IntegrityError("not today")

    first = deliver_now(Room(registry=registry), "stripe", event())
    assert first.status == "pending"
    assert first.handled_by == ("fulfil",)
    assert "moody: IntegrityError: not today" in (first.last_error or "")
    assert orders() == ["cs_1"]
    again = deliver_now(Room(registry=registry), "stripe", event("cs_2", 2), attempts=1)
    assert again.status == "processed"
    assert orders() == ["cs_1", "cs_2", "moody"]


@pytest.mark.usefixtures("further")
def test_a_handler_that_broke_its_transaction_is_not_done() -> None:
    """A database error that the handler has swallowed: nothing can be committed, and nothing is marked."""

    @on("stripe", name="careless")
    def careless(_: Any) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 / 0")
        except Exception:
            pass

    @on("stripe", name="undecided")
    def undecided(_: Any) -> None:
        transaction.set_rollback(True)

    done = deliver_now(Room(registry=registry), "stripe", event())
    assert done.status == "pending"
    assert done.handled_by == ("fulfil",)
    assert "careless:" in (done.last_error or "")
    assert "undecided: TransactionManagementError" in (done.last_error or "")


@pytest.mark.usefixtures("further")
def test_a_handler_that_refuses_an_event_for_good_makes_it_a_dead_letter() -> None:
    """PermanentFailure undoes what it wrote, and a person decides."""

    @on("stripe", name="strict")
    def strict(_: Any) -> None:
        from tests.django.shop.models import Order

        Order.objects.create(stripe_id="strict")
        raise PermanentFailure("no such plan")

    done = deliver_now(Room(registry=registry), "stripe", event())
    assert (done.status, done.last_error) == ("dead_letter", "strict: no such plan")
    assert orders() == ["cs_1"]


async def test_a_handler_whose_lease_has_passed_on_is_undone(database_url: str) -> None:
    """The mark names the lease: a worker that comes back too late undoes its own order."""
    room = Room(registry=registry)
    async with room:
        await deliver(room, "stripe", event(), attempts=0)
        await room.prepare_handlers()
        engine = room.webhook_engine()
        (claim,) = await engine.work.claim(engine.id, 1, None, 0)
        await room.database.execute("UPDATE webhook_retry_queue SET lease_no = lease_no + 1")
        with pytest.raises(Exception, match="the lease is lost"):
            await room.webhook_delivery().handlers.of(claim.item.event)[0].run(claim, claim.item.event)
        assert await room.database.fetchval("SELECT count(*) FROM shop_order") == 0
        assert await room.database.fetchval("SELECT count(*) FROM email_queue") == 0


def _pids_of_a_handler() -> list[int]:
    """Of the connection's server process, one for each event that a handler of ours has had."""
    pids: list[int] = []

    @on("stripe", name="look")
    def look(_: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pids.append(cursor.fetchone()[0])

    return pids


@pytest.mark.usefixtures("further")
async def test_one_connection_serves_one_event_after_the_other() -> None:
    """CONN_MAX_AGE is 0 by default, which would be a new connection for each event."""
    pids = _pids_of_a_handler()
    async with Room(registry=registry) as room:
        for number in range(12):
            done = await deliver(room, "stripe", event(f"cs_{number}", number))
            assert done.status == "processed"
    assert len(pids) == 12
    assert len(set(pids)) <= 3


@pytest.mark.usefixtures("further")
async def test_a_connection_that_the_server_dropped_between_two_events_costs_no_attempt() -> None:
    """After a restart of PostgreSQL the next event gets a new connection, and not a minute's wait."""
    pids = _pids_of_a_handler()
    async with Room(registry=registry) as room:
        for number in range(3):
            done = await deliver(room, "stripe", event(f"cs_{number}", number), attempts=1)
            assert (done.status, done.last_error) == ("processed", None)
            for pid in set(pids):
                await room.database.fetchval("SELECT pg_terminate_backend($1, 10000)", pid)
    assert len(set(pids)) == 3


@pytest.mark.usefixtures("further")
def test_a_coroutine_function_is_refused() -> None:
    """Django has no transactions in coroutines, so there would be no promise."""
    with pytest.raises(ConfigError, match="write it as a plain function"):

        @on("stripe")
        async def fulfil(_: Any) -> None: ...
