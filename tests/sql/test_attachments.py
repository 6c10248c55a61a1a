"""Attachments in SQL: a plain INSERT, enqueue_emails, and who is given such rows."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from postroom.email.attachments import check_attachments
from tests.sql.session import Session

FILE = {"filename": "a.pdf", "content": "JVBERg=="}
MAIL = {"to_email": "ada@example.com", "subject": "s", "html": "h"}
CLAIM = "SELECT id, attached FROM postroom.claim_emails($1, 10, NULL, NULL, 0, true)"


async def enqueue(sql: Session, *emails: dict[str, Any]) -> list[UUID]:
    """What enqueue_emails answers; the three columns that each must have are given."""
    ids: list[UUID] = await sql.fetchval(
        "SELECT enqueue_emails($1::text::jsonb)", json.dumps([MAIL | email for email in emails])
    )
    return ids


async def test_an_email_with_files_is_a_plain_insert(sql: Session) -> None:
    """A claim says how many bytes they are, about; they are read by another function."""
    row_id = await sql.insert(attachments=json.dumps([FILE | {"content": "A" * 10_000}]))
    worker = await sql.worker()
    row = await sql.connection.fetchrow(CLAIM, worker.id)
    assert row is not None
    assert row["id"] == row_id
    assert 10_000 < row["attached"] < 10_100
    read = await sql.fetchval("SELECT postroom.email_attachments($1)", row_id)
    assert json.loads(read) == [FILE | {"content": "A" * 10_000}]


async def test_their_size_is_asked_by_functions_of_postgresql_alone(sql: Session) -> None:
    """Who may create in public would else run his to_jsonb(jsonb) as a worker: it fits better."""
    await sql.connection.execute(
        "CREATE FUNCTION to_jsonb(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT (1 / 0)::text::jsonb'"
    )
    try:
        assert await sql.fetchval("SELECT postroom.attached_bytes('[]'::jsonb)") is None
    finally:
        await sql.connection.execute("DROP FUNCTION to_jsonb(jsonb)")


async def test_many_are_queued_with_their_files(sql: Session) -> None:
    """By the same key a file is queued once; those beside it have none."""
    files = [
        FILE,
        {"filename": "b.txt", "content": "QUJD\nREVG", "content_type": "text/x", "content_id": "b"},
    ]
    first = await enqueue(sql, {}, {"attachments": files, "idempotency_key": "k"}, {"attachments": None})
    again = await enqueue(sql, {"attachments": [FILE], "idempotency_key": "k"})
    assert again == first[1:2]
    found = await sql.fetch("SELECT id, attachments FROM email_queue")
    by_id = {row["id"]: json.loads(row["attachments"] or "[]") for row in found}
    assert [by_id[row_id] for row_id in first] == [[], files, []]
    (alone,) = await enqueue(sql, {})
    assert (await sql.row(alone))["attachments"] is None


@pytest.mark.parametrize(
    "file",
    [
        FILE | {"filename": '\u202e "\u00e4\U0001f600'},
        FILE | {"content": "QQ=\n=\t"},
        FILE | {"content_type": 'a*b\'/c%d\t; x="y \\"z" ;'},
        FILE | {"content_type": "", "content_id": ""},
        FILE | {"content_type": None, "contentType": "text/x", "content_id": "<logo>"},
        FILE | {"path": None},
    ],
)
async def test_what_other_doors_take_is_queued_by_sql_too(sql: Session, file: dict[str, Any]) -> None:
    """One check: what one of the doors takes, no other refuses."""
    assert check_attachments([file])
    assert await enqueue(sql, {"attachments": [file]})


@pytest.mark.parametrize(
    ("attachments", "error"),
    [
        ("a.pdf", ": must be an array"),
        ({"filename": "a"}, ": must be an array"),
        ([FILE] * 101, ": are more than 100"),
        ([FILE | {"content": "A" * 36_700_160}], ": have with their encoding more than 35 MiB"),
        ([FILE, "https://example.com/a.pdf"], "[1]: must be an object"),
        ([FILE | {"path": "https://example.com/a.pdf"}], "[0].path: nothing is fetched"),
        ([FILE | {"cid": "x"}], "[0]: has fields besides filename"),
        ([{"content": ""}], "[0].filename: must be a text"),
        ([FILE | {"filename": ""}], "[0].filename: must be one line"),
        ([FILE | {"filename": "a\nb"}], "[0].filename: must be one line"),
        ([{"filename": "a"}], "[0].content: must be a text"),
        ([FILE, FILE | {"content": "ab-_"}], "[1].content: is no base64"),
        ([FILE | {"content": "QQ"}], "[0].content: is no base64"),
        ([FILE | {"content_type": "pdf"}], "[0].content_type: must be a type"),
        ([FILE | {"contentType": "a/b\r\nBcc: x"}], "[0].content_type: must be a type"),
        ([FILE | {"content_id": "a b"}], "[0].content_id: must be a word"),
        ([FILE | {"filename": "a\u2028b"}], "[0].filename: must be one line"),
        ([FILE | {"filename": " \u3000"}], "[0].filename: must not be empty"),
        ([FILE | {"content": "QQ==QQ=="}], "[0].content: is no base64"),
        ([FILE | {"content_type": "Multipart/mixed"}], "[0].content_type: must be a file's"),
        ([FILE | {"content_type": 'text/x; a="b'}], "[0].content_type: must be a type"),
        ([FILE | {"content_type": "a" * 199 + "/b"}], "[0].content_type: must be a type"),
        ([FILE | {"content_type": 5}], "[0].content_type: must be a text"),
        ([FILE | {"content_id": 5}], "[0].content_id: must be a text"),
    ],
)
async def test_what_cannot_be_attached_is_refused_by_place_and_field(
    sql: Session, attachments: object, error: str
) -> None:
    """None of the call is queued, and the file's own bytes are in no error."""
    with pytest.raises(asyncpg.InvalidParameterValueError) as refused:
        await enqueue(sql, {}, {"attachments": attachments})
    assert str(refused.value).startswith(f"emails[1].attachments{error}")
    assert len(str(refused.value)) < 150
    assert await sql.fetchval("SELECT count(*) FROM email_queue") == 0


@pytest.mark.parametrize("nothing", ["null", "[]", "{}", '""'])
async def test_an_old_caller_is_given_no_email_with_files(sql: Session, nothing: str) -> None:
    """He does not know the column and would send it without; workers of before do not either."""
    held, plain = await sql.insert(attachments=json.dumps([FILE])), await sql.insert(attachments=nothing)
    before = await sql.worker()
    assert [lease.id for lease in await before.claim()] == [plain]
    await sql.make_due(plain)
    assert [row["id"] for row in await sql.fetch("SELECT id FROM get_email_queue_batch(10)")] == [plain]
    assert [tuple(row) for row in await sql.fetch(CLAIM, before.id)] == [
        (held, await sql.fetchval("SELECT pg_column_size(attachments) FROM email_queue WHERE id = $1", held))
    ]


async def test_a_direct_email_has_its_files_in_its_row(sql: Session) -> None:
    """It is attempted at once, and its row says what it was."""
    worker = await sql.worker()
    row_id = await sql.fetchval(
        """
        SELECT id FROM postroom.begin_direct_email(
            $1, $2, 'a@example.com', 's', 'h', NULL, NULL, NULL, NULL, NULL, NULL, NULL, $3
        )
        """,
        worker.id,
        uuid4(),
        json.dumps([FILE]),
    )
    assert json.loads((await sql.row(row_id))["attachments"]) == [FILE]


async def test_a_mended_email_keeps_its_files(sql: Session) -> None:
    """As they are, whatever is wrong with them."""
    old = await sql.insert(status="dead_letter", attachments='[{"url": "https://example.com/a.pdf"}]')
    new = await sql.fetchval(
        "SELECT postroom.replace_dead_email($1, 'b@example.com', NULL, NULL, NULL, 'ada')", old
    )
    assert (await sql.row(new))["attachments"] == (await sql.row(old))["attachments"]


async def test_retention_of_bodies_takes_the_files_too(sql: Session) -> None:
    """Also where html and text are empty already."""
    for html in ("h", ""):
        await sql.insert(html=html, attachments=json.dumps([FILE]), status="sent")
    await sql.execute("UPDATE email_queue SET sent_at = now() - interval '3 days'")
    await sql.set("retention.body", "1d")
    found = await sql.fetch("SELECT * FROM postroom.cleanup_emails('(0,0)', '(100,0)', false)")
    assert {row["rule"]: row["count"] for row in found} == {"body": 2}
    assert await sql.fetchval("SELECT count(*) FROM email_queue WHERE attachments IS NULL") == 2
    found = await sql.fetch("SELECT * FROM postroom.cleanup_emails('(0,0)', '(100,0)', false)")
    assert {row["rule"]: row["count"] for row in found} == {"body": 0}
