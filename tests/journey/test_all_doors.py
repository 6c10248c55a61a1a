"""1,000 mails by all doors, through real servers: each arrives once, as it was queued."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from postroom import Room
from tests.journey import relays
from tests.journey.conftest import SERVICE_KEY
from tests.journey.ledger import Delivered
from tests.journey.mails import LARGE, Mail, check_arrived, mail
from tests.journey.programs import Programs
from tests.journey.relays import OpenRelay
from tests.support.waiting import until_now

SEND = "/functions/v1/send-email"
PROCESS = "/functions/v1/process-email-queue"


@dataclass
class House:
    """What the doors need: the database as its owner, as the application, over HTTP, and the programs."""

    database_url: str
    app_url: str
    programs: Programs
    http: httpx.Client


Door = Callable[[House, Sequence[Mail]], "dict[UUID, Mail]"]


def by_insert(house: House, mails: Sequence[Mail]) -> dict[UUID, Mail]:
    """A plain INSERT of the application's own role, which may do nothing else."""
    queued = {}
    with psycopg.connect(house.app_url) as db:
        for each in mails:
            columns = {"to_email": each.to, "subject": each.subject, "html": each.html, **_columns(each)}
            statement = sql.SQL("INSERT INTO email_queue ({}) VALUES ({}) RETURNING id").format(
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.SQL(", ").join(sql.Placeholder() * len(columns)),
            )
            queued[_one(db.execute(statement, list(columns.values())))] = each
    return queued


def by_enqueue_email(house: House, mails: Sequence[Mail]) -> dict[UUID, Mail]:
    """The SQL function, called by the application's role."""
    queued = {}
    with psycopg.connect(house.app_url) as db:
        for each in mails:
            named = _columns(each)
            arguments = sql.SQL("").join(sql.SQL(", {} => %s").format(sql.Identifier(name)) for name in named)
            statement = sql.SQL("SELECT enqueue_email(%s, %s, %s{})").format(arguments)
            given = [each.to, each.subject, each.html, *named.values()]
            queued[_one(db.execute(statement, given))] = each
    return queued


def by_http_queued(house: House, mails: Sequence[Mail]) -> dict[UUID, Mail]:
    """send-email with use_queue."""
    queued = {}
    for each in mails:
        answer = house.http.post(SEND, json={**_fields(each), "use_queue": True})
        assert answer.status_code == 200, answer.text
        queued[UUID(answer.json()["queue_id"])] = each
    return queued


def by_http_direct(house: House, mails: Sequence[Mail]) -> dict[UUID, Mail]:
    """send-email, attempted at once: sent when the answer is there."""
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda each: house.http.post(SEND, json=_fields(each)), mails))
    assert {answer.status_code for answer in answers} <= {200}, [answer.text for answer in answers]
    return {UUID(answer.json()["id"]): each for answer, each in zip(answers, mails, strict=True)}


def by_command(house: House, mails: Sequence[Mail]) -> dict[UUID, Mail]:
    """postroom send, which takes neither an address for replies nor further headers."""
    mails = [replace(each, reply_to=None, headers=None) for each in mails]

    def send(each: Mail) -> UUID:
        arguments = ["send", "--to", each.to, "--subject", each.subject, "--html", each.html]
        arguments += ["--text", each.text] if each.text is not None else []
        arguments += ["--from", each.sender] if each.sender is not None else []
        ended = house.programs.run(*arguments)
        assert ended.returncode == 0, ended.stderr
        return UUID(ended.stdout.strip())

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(threads.map(send, mails), mails, strict=True))


def by_room(house: House, mails: Sequence[Mail]) -> dict[UUID, Mail]:
    """Room.send in a transaction of its own."""

    async def send_all() -> dict[UUID, Mail]:
        async with Room(database_url=house.database_url) as room:
            return {await room.send(**_arguments(each)): each for each in mails}

    return asyncio.run(send_all())


def by_send_many(house: House, mails: Sequence[Mail]) -> dict[UUID, Mail]:
    """Room.send_many, all in one call."""

    async def send_all() -> dict[UUID, Mail]:
        async with Room(database_url=house.database_url) as room:
            ids = await room.send_many([_arguments(each) for each in mails])
            return dict(zip(ids, mails, strict=True))

    return asyncio.run(send_all())


async def _in_asyncpg(house: House, send: Callable[[object], Awaitable[None]], commits: bool) -> None:
    connection = await asyncpg.connect(house.app_url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await send(connection)
        await (transaction.commit() if commits else transaction.rollback())
    finally:
        await connection.close()


async def _in_psycopg(house: House, send: Callable[[object], Awaitable[None]], commits: bool) -> None:
    with psycopg.connect(house.app_url) as connection:
        await send(connection)
        connection.commit() if commits else connection.rollback()


async def _in_psycopg_async(house: House, send: Callable[[object], Awaitable[None]], commits: bool) -> None:
    async with await psycopg.AsyncConnection.connect(house.app_url) as connection:
        await send(connection)
        await (connection.commit() if commits else connection.rollback())


def within(transaction: Callable[..., Awaitable[None]]) -> Door:
    """Room.send(connection=…) inside the caller's own transaction; what it rolls back never goes out."""

    def door(house: House, mails: Sequence[Mail]) -> dict[UUID, Mail]:
        queued: dict[UUID, Mail] = {}
        room = Room(database_url=house.database_url)

        async def send_all(connection: object) -> None:
            for each in mails:
                queued[await room.send(**_arguments(each), connection=connection)] = each

        async def send_one(connection: object) -> None:
            await room.send(to="nobody@example.com", subject="rolled back", html="x", connection=connection)

        async def both() -> None:
            await transaction(house, send_one, False)
            await transaction(house, send_all, True)
            await room.close()

        asyncio.run(both())
        return queued

    return door


DOORS: dict[str, tuple[Door, int]] = {
    "INSERT": (by_insert, 300),
    "enqueue_email()": (by_enqueue_email, 146),
    "HTTP, queued": (by_http_queued, 100),
    "HTTP, direct": (by_http_direct, 100),
    "postroom send": (by_command, 4),
    "Room.send": (by_room, 100),
    "Room.send_many": (by_send_many, 100),
    "inside asyncpg": (within(_in_asyncpg), 50),
    "inside psycopg": (within(_in_psycopg), 50),
    "inside psycopg, async": (within(_in_psycopg_async), 50),
}
COUNT = 1_000


@pytest.mark.parametrize(
    "open_relay", [relays.postfix, relays.aiosmtpd], ids=["Postfix", "STARTTLS and AUTH"]
)
def test_a_thousand_mails_by_all_doors_arrive_once_and_as_they_were_queued(
    database_url: str, programs: Programs, app_url: str, tmp_path: Path, open_relay: OpenRelay
) -> None:
    """
    No worker runs for the first half, which leaves by passes of process-email-queue; then one does.

    The server, the commands and the worker are processes that know the environment alone.
    """
    assert sum(count for _, count in DOORS.values()) == COUNT
    with open_relay(tmp_path) as relay:
        programs.settings["POSTROOM_TRANSPORT"] = relay.url
        with programs.running("serve") as server, _client(server.ready()) as http:
            house = House(database_url, app_url, programs, http)
            queued = by_insert(house, [LARGE])
            queued |= _through_doors(house, 0)
            _pass(http, len(queued) - _sent(database_url))
            with programs.running("worker") as worker:
                worker.working()
                queued |= _through_doors(house, 1)
                until_now(lambda: _sent(database_url) == len(queued))
        until_now(lambda: len(relay.delivered) >= len(queued))
    assert len(queued) == COUNT + 1
    arrived = {UUID(_message_id(each).split("@")[0]): each for each in relay.delivered}
    assert len(relay.delivered) == len(arrived), "a mail arrived twice"
    assert arrived.keys() == queued.keys()
    for email_id, each in queued.items():
        check_arrived(each, arrived[email_id])
    assert _counts(database_url) == [("sent", 1, 0, None, COUNT + 1)]


def _through_doors(house: House, half: int) -> dict[UUID, Mail]:
    """One half of each door's mails; all doors together get each kind of mail."""
    queued: dict[UUID, Mail] = {}
    number = half * COUNT // 2
    for door, count in DOORS.values():
        queued |= door(house, [mail(number + place) for place in range(count // 2)])
        number += count // 2
    return queued


def _pass(http: httpx.Client, due: int) -> None:
    answer = http.post(PROCESS)
    assert answer.status_code == 200
    assert answer.json() == {"processed": due, "failed": 0, "rateLimited": 0, "total": due}


def _client(url: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {SERVICE_KEY}"}
    return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


@pytest.fixture
def app_url(database_url: str, programs: Programs) -> Iterator[str]:
    """The address of a role that `migrate --app-role` has named, and that owns nothing."""
    role = f"shop_{secrets.token_hex(4)}"
    with _role(database_url, role):
        migrated = programs.run("migrate", "--app-role", role)
        assert migrated.returncode == 0, migrated.stderr
        yield database_url.replace("postgres@", f"{role}@")


@contextmanager
def _role(database_url: str, role: str) -> Iterator[None]:
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        try:
            yield
        finally:
            db.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def _columns(each: Mail) -> dict[str, Any]:
    """What a mail has beyond the three columns that it must have, by column."""
    given = {
        "from_email": each.sender,
        "reply_to": each.reply_to,
        "text": each.text,
        "headers": None if each.headers is None else Jsonb(each.headers),
    }
    return {name: value for name, value in given.items() if value is not None}


def _fields(each: Mail) -> dict[str, Any]:
    """A mail as HTTP has it; absent fields as null, as programs write what they do not have."""
    return {
        "to": each.to,
        "subject": each.subject,
        "html": each.html,
        "text": each.text,
        "from": each.sender,
        "replyTo": each.reply_to,
        "headers": each.headers,
    }


def _arguments(each: Mail) -> dict[str, Any]:
    """A mail as Room.send takes it."""
    given = {"to": each.to, "subject": each.subject, "html": each.html, **_columns(each)}
    return given | ({"headers": each.headers} if each.headers else {})


def _one(cursor: psycopg.Cursor[tuple[Any, ...]]) -> UUID:
    row = cursor.fetchone()
    assert row is not None
    return UUID(str(row[0]))


def _message_id(arrived: Delivered) -> str:
    return arrived.content.split(b"Message-ID: <", 1)[1].split(b">", 1)[0].decode()


def _sent(database_url: str) -> int:
    with psycopg.connect(database_url) as db:
        row = db.execute("SELECT count(*) FROM email_queue WHERE status = 'sent'").fetchone()
    assert row is not None
    return int(row[0])


def _counts(database_url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url) as db:
        return db.execute(
            """
            SELECT status, attempts, error_count, last_error, count(*)
            FROM email_queue
            GROUP BY status, attempts, error_count, last_error
            """
        ).fetchall()
