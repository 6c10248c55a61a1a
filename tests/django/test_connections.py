"""What a project may have set for its database: a pool, a pooler, server-side binding, a second one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.mail import send_mail
from django.db import connection, connections, transaction
from django.test.utils import override_settings

from postroom import Room
from postroom.django import on
from postroom.django.handlers import registry
from postroom.django.models import QueuedEmail
from postroom.testing import deliver, deliver_now
from tests.django import project
from tests.django.test_admin import EMAILS, client, text
from tests.django.test_handlers import event, orders
from tests.support.pgbouncer import running_pgbouncer
from tests.support.postgres import PostgresServer


@contextmanager
def options(**given: Any) -> Iterator[None]:
    """OPTIONS of the database for a block."""
    connection.close()
    before = connection.settings_dict["OPTIONS"]
    connection.settings_dict["OPTIONS"] = given
    try:
        yield
    finally:
        connection.close()
        connection.close_pool()
        connection.settings_dict["OPTIONS"] = before


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Of the server's processes that handled events, in a handler that takes a moment."""
    before = {source: list(ones) for source, ones in registry.of.items()}
    found: list[int] = []

    @on("stripe", name="look")
    def look(_: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            found.append(cursor.fetchone()[0])
        time.sleep(0.02)

    yield found
    registry.of.clear()
    registry.of.update(before)


def test_a_small_pool_serves_all_handlers(pids: list[int]) -> None:
    """OPTIONS["pool"] (Django 5.1): each event gives its connection back, so ten threads share two."""

    async def work() -> list[Any]:
        async with Room(registry=registry) as room:
            for number in range(20):
                await deliver(room, "stripe", event(f"cs_{number}", number), attempts=0)
            await room.prepare_handlers()
            await room.webhook_engine().run_pass(until_nothing_due=True)
            return await room.database.fetch(
                "SELECT status, attempts, last_error, count(*) FROM webhook_retry_queue GROUP BY 1, 2, 3"
            )

    with options(pool={"min_size": 1, "max_size": 2, "timeout": 5}):
        assert [tuple(row) for row in asyncio.run(work())] == [("processed", 1, None, 20)]
    assert len(pids) == 20
    assert len(set(pids)) <= 2


def test_a_pool_whose_server_was_restarted_costs_no_attempt(pids: list[int]) -> None:
    """Connections that the server has dropped are not given to a handler, nor back to the pool."""

    async def work() -> None:
        async with Room(registry=registry) as room:
            for number in range(4):
                done = await deliver(room, "stripe", event(f"cs_{number}", number), attempts=1)
                assert (done.status, done.last_error) == ("processed", None)
                await room.database.execute(
                    """
                    SELECT pg_terminate_backend(pid, 10000)
                    FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'dropped by the test'
                    """
                )

    with options(pool={"min_size": 2, "max_size": 2}, application_name="dropped by the test"):
        asyncio.run(work())
    assert len(set(pids)) == 4


@override_settings(DEBUG=True)
def test_with_debug_a_worker_does_not_remember_every_statement(pids: list[int]) -> None:
    """Django forgets its queries where a request begins, and in a worker none does: we forget them."""
    remembered: list[int] = []

    @on("stripe", name="count")
    def count(_: Any) -> None:
        remembered.append(len(connection.queries))

    async def work() -> None:
        async with Room(registry=registry) as room:
            for number in range(12):
                await deliver(room, "stripe", event(f"cs_{number}", number))

    asyncio.run(work())
    assert len(remembered) == 12
    assert max(remembered) < 10


def test_binding_on_the_servers_side_queues_and_handles() -> None:
    """OPTIONS["server_side_binding"]: every statement of ours says the types that the server cannot guess."""
    with options(server_side_binding=True):
        send_mail("Hi", "x", None, ["ada@example.com"])
        done = deliver_now(Room(registry=registry), "stripe", event())
        assert (done.status, done.errors) == ("processed", ())
        assert orders() == ["cs_1"]


def test_a_mail_of_a_savepoint_is_undone_with_it() -> None:
    """What an inner atomic() undoes takes its mail with it, and leaves that of the outer one."""
    with transaction.atomic(durable=True):
        send_mail("outer", "x", None, ["ada@example.com"])
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            send_mail("inner", "x", None, ["ada@example.com"])
            raise ZeroDivisionError
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT subject FROM email_queue")
        assert cursor.fetchall() == [("outer",)]


def test_behind_pgbouncer_events_are_handled_and_mail_is_queued(
    postgres_server: PostgresServer, database_url: str, pids: list[int]
) -> None:
    """In transaction mode, with two connections for all: no statement relies on the session of another."""
    with running_pgbouncer(postgres_server) as port:
        pooled = {**project.parameters(database_url), "HOST": "127.0.0.1", "PORT": str(port)}
        url = f"postgresql://{pooled['USER']}@127.0.0.1:{port}/{pooled['NAME']}"
        with project.database(url):
            for number in range(4):
                done = deliver_now(Room(registry=registry), "stripe", event(f"cs_{number}", number))
                assert (done.status, done.last_error) == ("processed", None)
            assert QueuedEmail.objects.filter(status="pending").count() == 4
    assert orders() == ["cs_0", "cs_1", "cs_2", "cs_3"]
    assert len(pids) == 4


def test_the_queue_may_be_in_another_database(
    postgres_server: PostgresServer,
    _migrated_template: str,  # noqa: PT019
) -> None:
    """POSTROOM["DATABASE"]: the mail is in a transaction of that one, and models and admin look there."""
    name = postgres_server.create_database(template=_migrated_template)
    connections.settings["mail"] = {
        **connections.settings["default"],
        **project.parameters(postgres_server.url_of(name)),
    }
    try:
        with override_settings(POSTROOM={"DATABASE": "mail"}):
            with pytest.raises(ZeroDivisionError), transaction.atomic("mail"):
                send_mail("Hi", "x", None, ["ada@example.com"])
                raise ZeroDivisionError
            assert QueuedEmail.objects.count() == 0
            send_mail("Hi", "x", None, ["bob@example.com"])
            assert QueuedEmail.objects.get().to_email == "bob@example.com"
            assert "bob@example.com" in text(client("view_queuedemail").get(f"{EMAILS}?state=waiting"))
        assert QueuedEmail.objects.count() == 0
    finally:
        connections["mail"].close()
        del connections.settings["mail"]
        del connections["mail"]
        postgres_server.drop_database(name)
