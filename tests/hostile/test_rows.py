"""Rows as whoever may insert can write them: they stop no other, and every screen shows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from postroom import Room
from postroom.database.migrate import migrate
from postroom.queue.dead_letters import list_dead_letters, read_row
from postroom.queue.explain import explain
from postroom.queue.search import Filters
from postroom.queue.status import read_status
from postroom.queues import QUEUES
from tests.support.waiting import until

DEEP = "(repeat('[', 3000) || repeat(']', 3000))::jsonb"
LONG_AGO, FAR_OFF = "'4713-01-01 BC'", "'294000-01-01'"

EMAILS: dict[str, dict[str, str]] = {
    "headers of 3,000 levels": {"headers": DEEP},
    "headers with 100,000 digits": {"headers": "('{\"a\": ' || repeat('9', 100000) || '}')::jsonb"},
    "headers beyond a float": {"headers": "'{\"a\": 1e100000}'"},
    "headers that are none": {"headers": "'[1]'"},
    **{
        f"{column} {what}": {column: moment}
        for column in ("created_at", "updated_at", "next_retry_at", "due_at", "failed_at", "sent_at")
        for what, moment in {
            "before Christ": LONG_AGO,
            "in the year 294000": FAR_OFF,
            "infinity": "'infinity'",
            "minus infinity": "'-infinity'",
        }.items()
    },
    **{
        f"{column} {what}": {column: number}
        for column in ("attempts", "max_attempts", "error_count", "priority", "crashes")
        for what, number in {"max": "2147483647", "min": "-2147483648"}.items()
    },
    "lease_no max": {"lease_no": "9223372036854775807"},
    "attempt_log of 3,000 levels": {"attempt_log": DEEP},
    "attempt_log that is none": {"attempt_log": "'{\"a\": 1}'"},
    "metadata of 3,000 levels": {"metadata": DEEP},
    "metadata that is none": {"metadata": "'1'"},
    "a ticket that was never given": {"waits_for": "'limit:email:global'", "planned_under": "'x'"},
    "somebody else's lease": {
        "status": "'processing'",
        "leased_by": "gen_random_uuid()",
        "due_at": "'infinity'",
    },
    "attachments of 3,000 levels": {"attachments": DEEP},
    "attachments with 100,000 digits": {
        "attachments": "('[{\"content\": ' || repeat('9', 100000) || '}]')::jsonb"
    },
    "attachments that are none": {"attachments": "'\"a.pdf\"'"},
    "attachments of 60 MB": {"attachments": "to_jsonb(repeat('a', 60000000))"},
    "a status of its own": {"status": r"E'\x1b[2Jwell'"},
    "a dead letter before Christ": {"status": "'dead_letter'", "failed_at": LONG_AGO},
    "a dead letter in the year 294000": {"status": "'dead_letter'", "failed_at": FAR_OFF},
    "sent before Christ": {"status": "'sent'", "sent_at": LONG_AGO},
    "an address of 10 MB": {"to_email": "repeat('a', 10000000) || '@example.com'"},
    "a subject of 10 MB": {"subject": "repeat('a', 10000000)"},
    "a body of 60 MB": {"html": "repeat('<p>hello</p>', 5000000)"},
    "a subject of two lines": {"subject": r"E'a\r\nBcc: x@example.com'"},
    "a sender of two lines": {"from_email": r"E'a@example.com\r\nBcc: x@example.com'"},
}

EVENTS: dict[str, dict[str, str]] = {
    "headers of 3,000 levels": {"headers": DEEP},
    "headers beyond a float": {"headers": "'{\"a\": 1e100000}'"},
    "payload of 3,000 levels": {"payload": DEEP},
    "payload beyond a float": {"payload": "'{\"a\": 1e100000}'"},
    "created before Christ": {"created_at": LONG_AGO},
    "next try in the year 294000": {"next_retry_at": FAR_OFF},
    "next try never": {"next_retry_at": "'infinity'"},
    "attempt_log of 3,000 levels": {"attempt_log": DEEP},
    "a lane place that is infinite": {"lane": "'a'", "lane_place": "'infinity'"},
    "a type that is none": {"event_type": r"E'\x1b[2J'"},
}


@pytest.fixture(params=["embedded", "15"])
def url(request: pytest.FixtureRequest) -> str:
    """A migrated database on PostgreSQL as postroom brings it, and on the oldest that it knows."""
    if request.param == "embedded":
        return str(request.getfixturevalue("database_url"))
    address = str(request.getfixturevalue("debian15_url"))
    asyncio.run(migrate(address))
    return address


@pytest.fixture
async def room(url: str, tmp_path: Path) -> AsyncIterator[Room]:
    """A house over it."""
    async with Room(
        database_url=url, sender="shop@example.com", transport=f"maildir:{tmp_path / 'mail'}"
    ) as one:
        for limit in ("global", "recipient"):
            await one.database.execute("SELECT postroom.set_setting($1, 'off')", f"email.limit.{limit}")
        yield one


async def _insert(room: Room, table: str, columns: dict[str, str]) -> str:
    names, values = ", ".join(columns), ", ".join(columns.values())
    return str(
        await room.database.fetchval(f"INSERT INTO {table} ({names}) VALUES ({values}) RETURNING id::text")
    )


async def _all_screens_show(room: Room, row_id: str) -> None:
    explanation = await explain(room.database, QUEUES, UUID(row_id))
    assert explanation is not None
    assert explanation.why
    for queue in QUEUES:
        row = await read_row(room.database, queue, UUID(row_id))
        assert row is None or row["id"] == row_id


async def test_no_row_stops_another_e_mail_and_each_can_be_explained(
    room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    """Times, numbers, JSON, lengths that PostgreSQL takes: what is behind them goes out, no claim fails."""
    mail = {"to_email": "'ada@example.com'", "subject": "'s'", "html": "'<p>h</p>'"}
    hostile = {name: await _insert(room, "email_queue", mail | columns) for name, columns in EMAILS.items()}
    plain = [await _insert(room, "email_queue", mail | {"to_email": f"'u{n}@example.com'"}) for n in range(5)]
    stop = asyncio.Event()
    working = asyncio.create_task(room.email_engine().run(stop))

    async def are_sent() -> bool:
        query = "SELECT bool_and(status = 'sent') FROM email_queue WHERE id = ANY ($1::text[]::uuid[])"
        return bool(await room.database.fetchval(query, plain))

    async def has_ended() -> bool:
        query = "SELECT status = 'dead_letter' FROM email_queue WHERE id = $1::text::uuid"
        return bool(await room.database.fetchval(query, hostile["a body of 60 MB"]))

    await until(are_sent)
    await until(has_ended)  # it takes a while to be read, and nothing waits for it
    await asyncio.sleep(0.3)  # a look for what is due next, at least
    stop.set()
    await working
    said = capfd.readouterr().err
    assert "claim.failed" not in said
    assert "tend.failed" not in said
    assert "settle.repeated" not in said

    with_headers = await room.database.fetch("SELECT status FROM email_queue WHERE headers IS NOT NULL")
    assert {row["status"] for row in with_headers} == {"dead_letter"}  # none is sent without its headers
    with_files = await room.database.fetch("SELECT status FROM email_queue WHERE attachments IS NOT NULL")
    assert {row["status"] for row in with_files} == {"dead_letter"}  # nor without its attachments
    query = "SELECT status, last_error FROM email_queue WHERE id = $1::text::uuid"
    row = await room.database.fetchrow(query, hostile.pop("a body of 60 MB"))
    assert row is not None
    assert tuple(row) == ("dead_letter", "html: with text it has more than 50 MB, which no mail server takes")
    for row_id in hostile.values():
        await _all_screens_show(room, row_id)
    letters, _ = await list_dead_letters(room.database, QUEUES, Filters(), limit=100)
    assert {str(letter.id) for letter in letters} >= {
        hostile["a dead letter before Christ"],
        hostile["a dead letter in the year 294000"],
    }
    await read_status(room.database, QUEUES)


async def test_no_row_stops_another_event_and_each_can_be_explained(
    room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same for the rows that an old caller writes into webhook_retry_queue."""
    event = {"webhook_type": "'shop'", "payload": "'{}'"}
    hostile = [await _insert(room, "webhook_retry_queue", event | columns) for columns in EVENTS.values()]
    plain = await _insert(room, "webhook_retry_queue", event)

    @room.on("shop")
    async def handle(_event: object, _db: object) -> None:
        """Take anything."""

    stop = asyncio.Event()
    await room.prepare_handlers()
    working = asyncio.create_task(room.webhook_engine().run(stop))

    async def is_processed() -> bool:
        query = "SELECT status = 'processed' FROM webhook_retry_queue WHERE id = $1::text::uuid"
        return bool(await room.database.fetchval(query, plain))

    await until(is_processed)
    await asyncio.sleep(0.3)
    stop.set()
    await working
    said = capfd.readouterr().err
    assert "claim.failed" not in said
    assert "settle.repeated" not in said
    for row_id in hostile:
        await _all_screens_show(room, row_id)
