"""postroom.testing: a user's own tests of handlers, as a user would write them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from postroom import PermanentFailure, Room
from postroom.errors import ConfigError, SchemaError
from postroom.testing import Delivered, deliver, deliver_now, new_secret
from tests.support.waiting import until

PAID = {"id": "evt_1", "type": "checkout.session.completed", "data": {"object": {"id": "cs_1"}}}
_, DISCORD_PUBLIC = DISCORD = new_secret("discord")
SOURCES = {
    "stripe": {"secrets": ["whsec_of_the_shop", "whsec_old"]},
    "github": {"secrets": ["a secret of github"]},
    "calls": {"scheme": "twilio", "secrets": ["a token of twilio"]},
    "discord": {"secrets": [DISCORD_PUBLIC]},
}


def shop(database_url: str) -> Room:
    """A user's program."""
    room = Room(database_url=database_url, webhooks=SOURCES, public_url="https://shop.example.com")

    @room.on("stripe", "checkout.*", name="fulfil")
    async def fulfil(event: Any, db: Any) -> None:
        await db.execute("INSERT INTO orders VALUES ($1)", event.payload["data"]["object"]["id"])

    @room.on("stripe", "charge.failed", name="flaky")
    async def flaky(event: Any, db: Any) -> None:
        await db.execute("INSERT INTO orders VALUES ($1)", f"try {event.attempt}")
        if event.attempt < 3:
            raise ValueError("not yet")

    @room.on("stripe", "charge.expired", name="never")
    def never(event: Any, db: Any) -> None:
        raise PermanentFailure("too old")

    @room.on("calls", name="note")
    def note(event: Any, db: Any) -> None:
        db.execute("INSERT INTO orders VALUES (%s)", (event.payload["MessageSid"],))

    return room


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Any]:
    """A connection of the user's test to its database."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE orders (id text)")
        yield connection


@pytest.fixture
async def room(database_url: str, db: Any) -> AsyncIterator[Room]:
    """The user's Room, open for one test."""
    async with shop(database_url) as room:
        yield room


async def orders(db: Any) -> list[str]:
    """What the handlers wrote."""
    return [row[0] for row in await (await db.execute("SELECT id FROM orders")).fetchall()]


async def test_an_event_is_handled_in_one_call(room: Room, db: Any) -> None:
    """Signed by the source's own secret, stored, and handled to the end."""
    done = await deliver(room, "stripe", PAID)
    assert (done.answer_status, done.answer) == (200, '{"received":true}')
    assert (done.status, done.attempts, done.last_error) == ("processed", 1, None)
    assert done.handled_by == ("fulfil",)
    assert await orders(db) == ["cs_1"]


async def test_a_repeated_event_is_a_duplicate(room: Room, db: Any) -> None:
    """And one effect; what is told is of the first."""
    first, second = await deliver(room, "stripe", PAID), await deliver(room, "stripe", PAID)
    assert (first.duplicate, second.duplicate) == (False, True)
    assert (second.id, second.status) == (first.id, "processed")
    assert await orders(db) == ["cs_1"]


async def test_a_forged_event_is_refused_and_stored_nowhere(room: Room, db: Any) -> None:
    """As by the door: 400 and the reason."""
    done = await deliver(room, "stripe", PAID, secret="whsec_of_a_stranger")
    assert done.answer_status == 400
    assert "signature" in done.answer
    assert (done.id, done.status) == (None, None)
    assert (await deliver(room, "stripe", PAID, at=1_700_000_000)).answer_status == 400
    assert await orders(db) == []


async def test_what_a_handler_raises_is_at_hand(room: Room, db: Any) -> None:
    """With its trace; the row says where, and what it wrote is undone."""
    done = await deliver(room, "stripe", {"id": "evt_2", "type": "charge.failed"})
    assert (done.status, done.attempts) == ("pending", 1)
    assert done.last_error
    assert done.last_error.startswith("flaky: ValueError: not yet (")
    assert "test_testing.py, line " in done.last_error
    assert isinstance(done.errors[0], ValueError)
    assert done.errors[0].__traceback__ is not None
    assert await orders(db) == []


async def test_further_attempts_do_not_wait(room: Room, db: Any) -> None:
    """The schedule of minutes is left out; it ends with the attempt that succeeds."""
    done = await deliver(room, "stripe", {"id": "evt_3", "type": "charge.failed"}, attempts=6)
    assert (done.status, done.attempts, len(done.errors)) == ("processed", 3, 2)
    assert await orders(db) == ["try 3"]


async def test_a_permanent_failure_is_a_dead_letter(room: Room) -> None:
    """By a plain function, too."""
    done = await deliver(room, "stripe", {"id": "evt_4", "type": "charge.expired"}, attempts=6)
    assert (done.status, done.attempts, done.last_error) == ("dead_letter", 1, "never: too old")


async def test_an_event_that_another_worker_took_first_is_waited_for(room: Room, db: Any) -> None:
    """As where `postroom up` runs beside the tests: what is told is how it ended there."""
    delivery = await taken_first(room, db)
    await db.execute("SELECT mark_webhook_processed(id) FROM webhook_retry_queue")
    assert (await delivery).status == "processed"
    assert await orders(db) == []


async def test_an_event_that_another_worker_gives_back_is_handled_here(room: Room, db: Any) -> None:
    """One that does not know the source has it for a moment."""
    delivery = await taken_first(room, db)
    await db.execute("UPDATE webhook_retry_queue SET status = 'pending'")
    assert (await delivery).status == "processed"
    assert await orders(db) == ["cs_1"]


async def taken_first(room: Room, db: Any) -> asyncio.Task[Delivered]:
    """A delivery whose event is another worker's before it is looked at; it waits."""
    await db.execute(
        """
        CREATE FUNCTION take_first() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN NEW.status := 'processing'; RETURN NEW; END $$;
        CREATE TRIGGER a_worker BEFORE INSERT ON webhook_retry_queue
        FOR EACH ROW EXECUTE FUNCTION take_first()
        """
    )
    delivery = asyncio.create_task(deliver(room, "stripe", PAID))

    async def is_taken() -> bool:
        return bool(await (await db.execute("SELECT FROM webhook_retry_queue")).fetchall())

    await until(is_taken)
    ended, _ = await asyncio.wait({delivery}, timeout=1)
    assert not ended
    return delivery


async def test_an_event_that_nobody_wants_says_so(room: Room) -> None:
    """It is processed and marked."""
    done = await deliver(room, "github", {"zen": "…"}, headers={"X-GitHub-Event": "ping"}, event_id="1")
    assert (done.status, done.unhandled, done.handled_by) == ("processed", True, ())


async def test_a_form_and_a_signed_address_are_as_the_provider_sends_them(room: Room, db: Any) -> None:
    """The source's scheme says how."""
    done = await deliver(room, "calls", {"MessageSid": "SM1", "MessageStatus": "sent"})
    assert (done.answer, done.status) == ("<Response/>", "processed")
    assert await orders(db) == ["SM1"]


@pytest.mark.parametrize("public_url", ["https://shop.example.com/hooks/", "http://localhost:8400"])
async def test_the_public_address_may_have_a_path(database_url: str, public_url: str) -> None:
    """A proxy takes it away before it reaches the door; it is signed all the same."""
    async with Room(database_url=database_url, webhooks=SOURCES, public_url=public_url) as room:
        done = await deliver(room, "calls", {"MessageSid": "SM1"})
    assert (done.answer_status, done.status) == (200, "processed")


async def test_a_source_with_a_public_key_needs_the_private_one(room: Room) -> None:
    """The error says so; with it the event is stored."""
    with pytest.raises(ConfigError, match="give deliver\\(\\) the private one"):
        await deliver(room, "discord", {"type": 2, "id": "1", "token": "t"})
    private, _ = DISCORD
    done = await deliver(room, "discord", {"type": 2, "id": "1", "token": "t"}, secret=private)
    assert (done.answer_status, done.status) == (200, "processed")


async def test_a_source_that_is_not_there_is_named(room: Room) -> None:
    """With those that are."""
    with pytest.raises(ConfigError, match=r"no source 'strip' in .*; sources: stripe, github"):
        await deliver(room, "strip", PAID)


def test_there_need_be_no_event_loop(database_url: str) -> None:
    """And the room need not be open: it is closed again each time."""
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("CREATE TABLE orders (id text)")
        room = shop(database_url)
        assert deliver_now(room, "stripe", PAID).status == "processed"
        assert deliver_now(room, "stripe", PAID).duplicate
        assert not room.is_open
        assert db.execute("SELECT id FROM orders").fetchall() == [("cs_1",)]


def test_a_database_without_tables_is_told(empty_database_url: str) -> None:
    """With what to do."""
    with pytest.raises(SchemaError, match="postroom migrate"):
        deliver_now(shop(empty_database_url), "stripe", PAID)
