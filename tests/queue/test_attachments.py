"""Workers and attachments: how much they hold, and what becomes of a mail whose files cannot be sent."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID

import pytest

from postroom import DatabaseUnavailable
from postroom.email.burden import HELD_CHARACTERS_MAX
from postroom.email.message import OutgoingEmail
from postroom.email.mime import render
from tests.queue.conftest import House
from tests.support.waiting import until

FILE_CHARACTERS = 7_000_000
AT_ONCE = HELD_CHARACTERS_MAX // FILE_CHARACTERS


async def test_files_are_held_for_a_few_attempts_only(house: House) -> None:
    """
    All mails are claimed, and the files of as many are read as may be rendered side by side.

    Nothing of them is kept by what waits for its settle.
    """
    release, held, most, files = asyncio.Event(), 0, 0, set()

    async def hold(email: OutgoingEmail) -> str:
        nonlocal held, most
        held += 1
        most = max(most, held)
        assert isinstance(email.attachments, list)
        files.add(len(email.attachments[0]["content"]))
        await release.wait()
        held -= 1
        return "250"

    house.recorder.behave = hold
    await house.database.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, attachments)
        SELECT 'u' || n || '@example.com', 's', 'h', jsonb_build_array(
            jsonb_build_object('filename', 'a.bin', 'content', repeat('A', $1))
        )
        FROM generate_series(1, 14) AS n
        """,
        FILE_CHARACTERS,
        deadline_s=30.0,
    )
    engine = house.engine()
    async with house.working(engine):
        await until(lambda: held == AT_ONCE)
        await house.until("count(*) = 14 FROM email_queue WHERE status = 'processing'")
        release.set()
        await house.until_settled()
    assert (most, files) == (AT_ONCE, {FILE_CHARACTERS})
    assert await house.database.fetchval("SELECT count(*) FROM email_queue WHERE status = 'sent'") == 14


@pytest.mark.parametrize(
    ("attachments", "says"),
    [
        ('["https://example.com/a.pdf"]', "attachments[0]: must be an object of filename and content"),
        ('[{"filename": "a", "content": "ab-_"}]', "attachments[0].content: is no base64"),
        ('[{"path": "a.pdf"}]', "attachments[0].path: nothing is fetched"),
        ('{"filename": "a"}', "attachments: must be a list"),
        ("true", "attachments: must be a list"),
        (f'["{"x" * 53_000_000}"]', "attachments: have in base64 more than 50 MB"),
    ],
    ids=["a URL", "no base64", "a path", "an object", "true", "53 MB"],
)
async def test_a_mail_whose_files_cannot_be_sent_is_a_dead_letter_that_says_why(
    house: House, attachments: str, says: str
) -> None:
    """It never goes out without them, and stops no other."""

    async def rendering(email: OutgoingEmail) -> str:
        render(email)
        return "250"

    house.recorder.behave = rendering
    (bad,) = await house.queue(attachments=attachments)
    (good,) = await house.queue()
    async with house.working(house.engine()):
        await house.until_settled()
    rows = {row["id"]: row for row in await house.rows()}
    assert rows[good]["status"] == "sent"
    assert (rows[bad]["status"], rows[bad]["dead_reason"]) == ("dead_letter", "permanent")
    assert rows[bad]["last_error"].startswith(says)
    assert len(rows[bad]["last_error"]) < 200


async def test_a_database_that_goes_away_before_the_files_are_read_costs_no_attempt(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mail is given back, and goes out whole."""
    engine = house.engine()
    store = engine.work.store  # type: ignore[attr-defined]
    read, tries = store.with_attachments, 0

    async def with_attachments(email: OutgoingEmail) -> OutgoingEmail:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise DatabaseUnavailable("it went away")
        whole: OutgoingEmail = await read(email)
        return whole

    monkeypatch.setattr(store, "with_attachments", with_attachments)
    sent: list[object] = []

    async def behave(email: OutgoingEmail) -> str:
        sent.append(email.attachments)
        return "250"

    house.recorder.behave = behave
    file = {"filename": "a", "content": ""}
    (row_id,) = await house.queue(attachments=json.dumps([file]))
    async with house.working(engine):
        await house.until_settled()
    (row,) = await house.rows()
    assert (row["id"], row["status"], row["attempts"], row["error_count"]) == (
        UUID(str(row_id)),
        "sent",
        1,
        0,
    )
    assert (sent, tries) == ([[file]], 2)
