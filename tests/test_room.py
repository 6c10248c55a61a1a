"""Room: what a program queues is queued, in its own transaction or in the caller's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import psycopg.rows
import pytest

import postroom
from postroom import Attachment, DatabaseUnavailable, Email, InvalidEmail, PostroomError, Room, SchemaError
from postroom.email import enqueue
from tests.support.postgres import free_port
from tests.support.waiting import until

MAIL: dict[str, Any] = {"to": "ada@example.com", "subject": "Your order", "html": "<p>Thank you</p>"}


class Caller:
    """A program with a connection of its own, in a transaction that it has begun."""

    def __init__(
        self, connection: Any, commit: Callable[[], Awaitable[None]], rollback: Callable[[], Awaitable[None]]
    ) -> None:
        self.connection = connection
        self.commit = commit
        self.rollback = rollback


@asynccontextmanager
async def _asyncpg(url: str) -> AsyncIterator[Caller]:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    yield Caller(connection, transaction.commit, transaction.rollback)
    await connection.close()


@asynccontextmanager
async def _asyncpg_pool(url: str) -> AsyncIterator[Caller]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield Caller(connection, transaction.commit, transaction.rollback)


@asynccontextmanager
async def _psycopg_async(url: str) -> AsyncIterator[Caller]:
    connection = await psycopg.AsyncConnection.connect(url, row_factory=psycopg.rows.dict_row)
    yield Caller(connection, connection.commit, connection.rollback)
    await connection.close()


@asynccontextmanager
async def _psycopg(url: str) -> AsyncIterator[Caller]:
    connection = psycopg.connect(url, row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.RawCursor)

    async def commit() -> None:
        connection.commit()

    async def rollback() -> None:
        connection.rollback()

    yield Caller(connection, commit, rollback)
    connection.close()


DRIVERS = {
    "asyncpg": _asyncpg,
    "asyncpg's pool": _asyncpg_pool,
    "psycopg async": _psycopg_async,
    "psycopg": _psycopg,
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """How a caller connects."""
    return DRIVERS[request.param]


@pytest.fixture
async def room(database_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    """A room over a fresh database, with a maildir as the way out."""
    settings: dict[str, Any] = {"transport": f"maildir:{tmp_path / 'mail'}", "sender": "shop@example.com"}
    async with Room(database_url=database_url, **settings) as one:
        yield one


@pytest.fixture
def rows(database_url: str) -> Iterator[Callable[[], list[Any]]]:
    """The queue as somebody else sees it."""
    with closing(psycopg.connect(database_url, autocommit=True, row_factory=psycopg.rows.dict_row)) as look:
        yield lambda: look.execute("SELECT * FROM email_queue ORDER BY created_at, to_email").fetchall()


async def test_a_queued_email_has_its_fields_in_the_row(
    room: Room, rows: Callable[[], list[dict[str, Any]]]
) -> None:
    """Every argument of send() is a column of the row."""
    at = datetime.now(UTC) + timedelta(hours=1)
    email_id = await room.send(
        **MAIL,
        text="Thank you",
        from_email="Shop <shop@example.org>",
        reply_to="help@example.org",
        headers={"List-Unsubscribe": "<https://example.org/u>"},
        metadata={"order": 17, "large": 2**80, "name": "Ada Łovelace"},
        email_type="receipt",
        idempotency_key="order-17",
        send_at=at,
        priority=5,
        max_attempts=3,
    )
    (row,) = rows()
    assert isinstance(email_id, UUID)
    assert row["id"] == email_id
    assert (row["to_email"], row["subject"], row["html"]) == tuple(MAIL.values())
    assert (row["text"], row["from_email"]) == ("Thank you", "Shop <shop@example.org>")
    assert (row["reply_to"], row["email_type"]) == ("help@example.org", "receipt")
    assert row["headers"] == {"List-Unsubscribe": "<https://example.org/u>"}
    assert row["metadata"] == {"order": 17, "large": 2**80, "name": "Ada Łovelace"}
    assert (row["idempotency_key"], row["next_retry_at"]) == ("order-17", at)
    assert (row["priority"], row["max_attempts"], row["status"]) == (5, 3, "pending")


async def test_what_is_not_given_is_the_tables_default(
    room: Room, rows: Callable[[], list[dict[str, Any]]]
) -> None:
    """As a plain INSERT of the three columns would have it."""
    await room.send(**MAIL)
    (row,) = rows()
    assert (row["max_attempts"], row["priority"], row["metadata"]) == (6, 0, {})
    assert row["from_email"] is row["text"] is row["headers"] is row["next_retry_at"] is None


async def test_a_rollback_leaves_nothing(
    room: Room, driver: Callable[[str], Any], database_url: str, rows: Callable[[], list[Any]]
) -> None:
    """With connection= the e-mail is part of the caller's transaction."""
    async with driver(database_url) as caller:
        await room.send(**MAIL, connection=caller.connection)
        await room.send_many([MAIL, MAIL], connection=caller.connection)
        assert rows() == []
        await caller.rollback()
        assert rows() == []


async def test_a_commit_delivers(
    room: Room, driver: Callable[[str], Any], database_url: str, rows: Callable[[], list[Any]]
) -> None:
    """The caller's commit is what queues the e-mails; then they go out."""
    async with driver(database_url) as caller:
        one = await room.send(**MAIL, connection=caller.connection)
        many = await room.send_many([MAIL, MAIL], connection=caller.connection)
        await caller.commit()
    done = await room.email_engine().run_pass()
    assert done.done == 3
    assert {row["id"]: row["status"] for row in rows()} == dict.fromkeys([one, *many], "sent")


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_the_same_key_in_two_transactions_is_one_email(
    room: Room, driver: Callable[[str], Any], database_url: str, rows: Callable[[], list[Any]], ends: str
) -> None:
    """
    The second waits for the first: it gets the first id, or an e-mail of its own where that rolled back.

    The event loop goes on meanwhile, also where the connection is a synchronous one.
    """
    async with driver(database_url) as first, driver(database_url) as second:
        id_1 = await room.send(**MAIL, idempotency_key="k", connection=first.connection)
        waiting = asyncio.create_task(room.send(**MAIL, idempotency_key="k", connection=second.connection))

        async def is_blocked() -> bool:
            return bool(
                await room.database.fetchval(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')"
                )
            )

        await until(is_blocked)
        await (first.commit() if ends == "commit" else first.rollback())
        id_2 = await waiting
        await second.commit()
    assert (id_2 == id_1) == (ends == "commit")
    assert [row["id"] for row in rows()] == [id_2]


async def test_a_wrong_email_does_not_touch_the_callers_transaction(
    room: Room, driver: Callable[[str], Any], database_url: str, rows: Callable[[], list[Any]]
) -> None:
    """It is refused before anything is said to the database."""
    async with driver(database_url) as caller:
        await room.send(**MAIL, connection=caller.connection)
        with pytest.raises(InvalidEmail, match=r"^to:"):
            await room.send(to="nobody", subject="s", html="h", connection=caller.connection)
        await caller.commit()
    assert len(rows()) == 1


async def test_a_callers_own_codecs_change_nothing(
    room: Room, database_url: str, rows: Callable[[], list[Any]]
) -> None:
    """A connection that encodes jsonb, uuid and timestamps in its own way can be used."""
    connection = await asyncpg.connect(database_url)
    for name in ("jsonb", "uuid", "timestamptz", "text"):
        await connection.set_type_codec(
            name,
            schema="pg_catalog",
            encoder=lambda value: str(value),
            decoder=lambda value: value,
            format="text",
        )
    email_id = await room.send(**MAIL, metadata={"a": 1}, send_at=datetime.now(UTC), connection=connection)
    await connection.close()
    (row,) = rows()
    assert (row["id"], row["metadata"]) == (email_id, {"a": 1})


@pytest.mark.parametrize("connection", [object(), "postgresql://localhost/x", 5])
async def test_another_kind_of_connection_is_refused(room: Room, connection: object) -> None:
    """The error names what can be given."""
    with pytest.raises(TypeError, match="asyncpg or psycopg 3"):
        await room.send(**MAIL, connection=connection)


async def test_many_emails_keep_their_order(room: Room, rows: Callable[[], list[dict[str, Any]]]) -> None:
    """The ids come in the order of the call, over several statements, whatever the keys are."""
    emails = [
        Email(
            to=f"u{n}@example.com",
            subject="s",
            html="h",
            idempotency_key=f"key-{n * 7919 % 1201}" if n % 2 else None,
        )
        for n in range(1200)
    ]
    ids = await room.send_many(emails)
    found = {row["id"]: row["to_email"] for row in rows()}
    assert [found[email_id] for email_id in ids] == [email.to for email in emails]


async def test_one_file_goes_with_many_e_mails_and_is_not_held_for_each(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 mails with one of 1 MB take several statements, each written when it is its turn."""
    content, written = bytes(1_000_000), []
    document = enqueue._document

    def noted(email: enqueue.QueueableEmail) -> str:
        written.append(email.accepted.to)
        return document(email)

    monkeypatch.setattr(enqueue, "_document", noted)
    emails = [
        Email(**MAIL | {"to": f"u{n}@example.com", "attachments": [Attachment("a", content)]})
        for n in range(40)
    ]
    batches = enqueue._batches(enqueue.check_many(emails))
    assert [len(batch.places) for batch in batches] == [6] * 6 + [4]
    assert written == []
    ids = await room.send_many(emails)
    rows = await room.database.fetch(
        "SELECT id, to_email, octet_length(attachments::text) > 1333333 AS whole FROM email_queue"
    )
    assert {row["id"]: (row["to_email"], row["whole"]) for row in rows} == {
        row_id: (f"u{n}@example.com", True) for n, row_id in enumerate(ids)
    }


async def test_many_emails_are_queued_all_or_none(room: Room, rows: Callable[[], list[Any]]) -> None:
    """One wrong e-mail among many is named, and nothing is queued."""
    emails = [MAIL, MAIL, MAIL, MAIL | {"to": "a@b, c@d"}]
    with pytest.raises(InvalidEmail) as caught:
        await room.send_many(emails)
    assert caught.value.field == "emails[3].to"
    assert rows() == []
    assert await room.send_many([]) == []


async def test_the_same_key_twice_in_one_call_is_one_email(room: Room, rows: Callable[[], list[Any]]) -> None:
    """As it is in two calls."""
    first = await room.send(**MAIL, idempotency_key="b")
    ids = await room.send_many(
        [MAIL | {"idempotency_key": "a"}, MAIL | {"idempotency_key": "b"}, MAIL | {"idempotency_key": "a"}]
    )
    assert ids[1] == first
    assert ids[0] == ids[2] != first
    assert len(rows()) == 2


async def test_calls_with_the_same_keys_in_opposite_orders_do_not_wait_for_each_other(
    room: Room, rows: Callable[[], list[Any]]
) -> None:
    """Keys are waited for in one order, so there is no deadlock, and every caller gets the same ids."""
    emails = [MAIL | {"idempotency_key": f"k{n}"} for n in range(700)]
    calls = [room.send_many(emails if n % 2 else emails[::-1]) for n in range(6)]
    results = await asyncio.gather(*calls)
    assert {tuple(ids if n % 2 else ids[::-1]) for n, ids in enumerate(results)} == {tuple(results[1])}
    assert len(rows()) == 700


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"send_at": datetime(2030, 1, 1)}, "send_at"),  # noqa: DTZ001
        ({"send_at": "tomorrow"}, "send_at"),
        ({"priority": True}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"bcc": "x@example.com"}, "bcc"),
        ({"metadata": {"a": float("nan")}}, "metadata"),
        ({"subject": "a\r\nBcc: x@example.com"}, "subject"),
    ],
)
async def test_a_wrong_field_is_named(room: Room, fields: dict[str, Any], field: str) -> None:
    """What can never be stored or sent is refused at the door."""
    with pytest.raises(InvalidEmail) as caught:
        await room.send_many([MAIL | fields])
    assert caught.value.field == f"emails[0].{field}"


async def test_from_may_be_written_as_it_is_in_http(room: Room, rows: Callable[[], list[Any]]) -> None:
    """In a dictionary `from` is possible, though it is no name in Python."""
    await room.send_many([MAIL | {"from": "shop@example.org"}])
    assert rows()[0]["from_email"] == "shop@example.org"
    with pytest.raises(InvalidEmail, match="subject: is missing"):
        await room.send_many([{"to": "a@example.com"}])
    with pytest.raises(InvalidEmail, match="at most 10,000"):
        await room.send_many([MAIL] * 10_001)


async def test_a_database_that_is_not_migrated_says_what_to_do(empty_database_url: str) -> None:
    """In a transaction of the house, and in the caller's."""
    async with Room(database_url=empty_database_url) as room, _psycopg(empty_database_url) as caller:
        with pytest.raises(SchemaError, match="run `postroom migrate`"):
            await room.send(**MAIL)
        with pytest.raises(SchemaError, match="run `postroom migrate`"):
            await room.send(**MAIL, connection=caller.connection)


async def test_a_database_that_is_away_is_one_error(database_url: str) -> None:
    """Nobody answers: DatabaseUnavailable, which means repeat it."""
    room = Room(database_url=f"postgresql://postgres@127.0.0.1:{free_port()}/x")
    with pytest.raises(DatabaseUnavailable):
        await room.send(**MAIL)
    await room.close()


async def test_the_first_calls_at_once_open_the_database_once(
    database_url: str, rows: Callable[[], list[Any]]
) -> None:
    """A room opens itself at its first call, and can be opened again when it was closed."""
    room = Room(database_url=database_url)
    await asyncio.gather(*(room.send(**MAIL) for _ in range(8)))
    opened = room.database
    await room.send(**MAIL)
    assert room.database is opened
    await room.close()
    await room.send(**MAIL)
    await room.close()
    assert len(rows()) == 10


def test_a_room_lives_longer_than_an_event_loop(database_url: str, rows: Callable[[], list[Any]]) -> None:
    """A program without a loop of its own calls asyncio.run() for each e-mail."""
    program = (
        "import asyncio\n"
        "from postroom import Room\n"
        f"room = Room(database_url={database_url!r})\n"
        "for _ in range(3):\n"
        f"    print(asyncio.run(room.send(**{MAIL!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert [str(row["id"]) for row in rows()] == done.stdout.split()


async def test_a_room_of_another_running_loop_is_refused(room: Room) -> None:
    """Two loops cannot share connections; the error says so."""
    with pytest.raises(PostroomError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, room.send(**MAIL))


def test_importing_postroom_costs_nothing() -> None:
    """The large libraries are imported when a Room is made; every public name can be had."""
    program = (
        "import sys, postroom\n"
        "print(*(name for name in ('asyncpg', 'pydantic', 'starlette', 'asyncio') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    for name in postroom.__all__:
        assert getattr(postroom, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = postroom.Envelope  # type: ignore[attr-defined]


def test_a_body_never_shows_in_a_repr() -> None:
    """Neither the e-mail nor an error about it shows what is written in it."""
    email = Email(
        to="a@example.com", subject="secret", html="secret", text="secret", metadata={"a": "secret"}
    )
    assert "secret" not in repr(email)
