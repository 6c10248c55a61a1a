"""A hand-made table that has a column `attachments` already, of whatever type."""

from __future__ import annotations

import json

import psycopg
import pytest

from postroom.database.before_upgrade import look_before_upgrade
from postroom.database.migrate import migrate
from postroom.errors import InvalidEmail
from postroom.room import Room
from tests.upgrade.conftest import Project

FILE = {"filename": "a.pdf", "content": "JVBERg=="}
MAIL = {"to_email": "ada@example.com", "subject": "s", "html": "h"}

HAND_MADE = {
    "jsonb DEFAULT '[]' NOT NULL": ('[{"filename": "a.pdf", "content": "JVBERg=="}]', True),
    "json": ('[{"filename": "a.pdf", "content": "JVBERg=="}]', True),
    "text DEFAULT '' NOT NULL": ('[{"filename": "a.pdf", "content": "JVBERg=="}]', True),
    "text[] DEFAULT '{}' NOT NULL": ("{https://example.com/a.pdf}", False),
    "boolean DEFAULT false NOT NULL": ("true", False),
    "integer DEFAULT 0 NOT NULL": ("2", False),
    "bytea": ("\\x255044462d", False),
}


async def test_a_look_before_the_upgrade_says_what_becomes_of_such_a_column(project: Project) -> None:
    """How many e-mails have something in it, and of how many nobody can send that."""
    assert not [one for one in await look_before_upgrade(project.url) if one.check == "attachments"]
    project.execute("ALTER TABLE email_queue ADD COLUMN attachments jsonb DEFAULT '[]'")
    (found,) = [one for one in await look_before_upgrade(project.url) if one.check == "attachments"]
    assert (found.level, found.found) == ("ok", "email_queue.attachments is there, and stays jsonb")
    for held in (f"[{json.dumps(FILE)}]", '["a.pdf"]', '[{"path": "a.pdf"}]', '"a.pdf"', "7", "{}"):
        project.execute(
            "INSERT INTO email_queue (to_email, subject, html, attachments) "
            f"VALUES ('a@b.example', 's', 'h', '{held}')"
        )
    (found,) = [one for one in await look_before_upgrade(project.url) if one.check == "attachments"]
    assert found.level == "warning"
    assert found.found.startswith("5 that wait have something in email_queue.attachments (jsonb)")
    assert found.found.endswith("and 4 hold something else: they become dead letters")


def test_old_callers_claim_while_the_functions_are_replaced(database_url: str) -> None:
    """
    By the text that get_email_queue_batch had before there were attachments: it is the last to be replaced.

    Minutes may lie between, where many rows are settled. What has files is not given to it.
    """
    with psycopg.connect(database_url, autocommit=True) as connection:
        for files in ([], [FILE], []):
            connection.execute(
                "SELECT enqueue_emails(%s::jsonb)",
                (json.dumps([MAIL | {"email_type": f"{len(files)} files", "attachments": files}]),),
            )
        claimed = connection.execute(
            """
            SELECT claimed.email_type
            FROM postroom.lease_emails(NULL, 10, interval '15 minutes', NULL, NULL)
            WITH ORDINALITY AS claimed (
                id, lease_no, lease_s, to_email, subject, html, text, from_email, reply_to, headers,
                created_at, attempts, max_attempts, email_type, place
            )
            ORDER BY claimed.place
            """
        ).fetchall()
    assert claimed == [("0 files",), ("0 files",)]


@pytest.mark.parametrize(("kind", "written"), HAND_MADE.items(), ids=HAND_MADE)
async def test_a_column_of_this_name_that_was_there_is_kept_and_read(
    project: Project,
    kind: str,
    written: tuple[str, bool],
) -> None:
    """
    Its type, its default and what it holds: the upgrade touches none of them, and mail goes on.

    What is in it is seen by every claim; only a column that can hold JSON takes files from our functions.
    """
    value, holds_files = written
    project.execute(f"ALTER TABLE email_queue ADD COLUMN attachments {kind}")
    project.execute(
        f"""
        INSERT INTO email_queue (to_email, subject, html, email_type, attachments)
        VALUES ('ada@example.com', 's', 'h', 'with files', '{value}')
        """
    )
    before = project.execute("SELECT attachments::text FROM email_queue WHERE email_type = 'with files'")
    await migrate(project.url)
    after = project.execute(
        """
        SELECT attachments::text, postroom.attached_bytes(attachments) > 0 AS has, id
        FROM email_queue WHERE email_type = 'with files'
        """
    )
    assert [row["attachments"] for row in after] == [row["attachments"] for row in before]
    assert [row["has"] for row in after] == [True]
    read = project.execute(f"SELECT postroom.email_attachments('{after[0]['id']}') AS found")
    assert json.loads(read[0]["found"])

    emails = json.dumps([MAIL, MAIL | {"subject": "t"}])
    (queued,) = project.execute(
        f"SELECT enqueue_emails('{emails}') AS ids, enqueue_email('a@b.example', 's', 'h')"
    )
    assert len(queued["ids"]) == 2
    none = project.execute(
        f"""
        SELECT count(*) FROM email_queue
        WHERE id = '{queued["ids"][0]}' AND postroom.attached_bytes(attachments) IS NULL
        """
    )
    assert none[0]["count"] == 1
    with_files = json.dumps([MAIL | {"attachments": [FILE]}, MAIL])
    if holds_files:
        (queued,) = project.execute(f"SELECT enqueue_emails('{with_files}') AS ids")
        read = project.execute(f"SELECT postroom.email_attachments('{queued['ids'][0]}') AS found")
        found = json.loads(read[0]["found"])
        assert (json.loads(found) if isinstance(found, str) else found) == [FILE]
    else:
        with pytest.raises(psycopg.errors.DatatypeMismatch, match='column "attachments" is of type'):
            project.execute(f"SELECT enqueue_emails('{with_files}')")


@pytest.mark.parametrize(
    ("kind", "has_files"),
    [
        ("""jsonb DEFAULT '{"files": [], "note": "of our own"}' NOT NULL""", False),
        ("text DEFAULT 'it''s none'", False),
        ("varchar(9) DEFAULT 'none'", False),
        ("bytea DEFAULT '' NOT NULL", False),
        ("numeric(3, 1) DEFAULT -1", False),
        ("text[] DEFAULT '{none}'", False),
        ("double precision DEFAULT 'NaN'", False),
        (f"jsonb DEFAULT '[{json.dumps(FILE)}]'", True),
        (f"text DEFAULT '[{json.dumps(FILE)}]'", True),
    ],
)
async def test_an_email_that_names_no_attachments_has_none_whatever_that_column_s_default_is(
    project: Project, kind: str, has_files: bool
) -> None:
    """An INSERT of three columns goes out as it did, also by an old caller; files of each mail are files."""
    project.execute(f"ALTER TABLE email_queue ADD COLUMN attachments {kind}")
    (waits,) = project.execute(
        "INSERT INTO email_queue (to_email, subject, html) VALUES ('a@b.example', 's', 'h') RETURNING id"
    )
    looked = [one.found for one in await look_before_upgrade(project.url) if one.check == "attachments"]
    assert has_files == any("go out with them" in found for found in looked)
    assert not any("dead letters" in found for found in looked)
    await migrate(project.url)
    (queued,) = project.execute("SELECT enqueue_email('b@c.example', 's', 'h') AS id")
    mails = project.execute(
        f"""
        SELECT postroom.attached_bytes(attachments) IS NOT NULL AS has
        FROM email_queue WHERE id IN ('{waits["id"]}', '{queued["id"]}')
        """
    )
    assert [mail["has"] for mail in mails] == [has_files] * 2
    given = project.execute("SELECT id FROM get_email_queue_batch(1000)")
    assert ({waits["id"], queued["id"]} <= {row["id"] for row in given}) is not has_files


@pytest.mark.parametrize("kind", ["text[]", "jsonb GENERATED ALWAYS AS ('[]'::jsonb) STORED"])
async def test_a_file_for_a_column_that_takes_none_is_refused_with_its_reason(
    project: Project, kind: str
) -> None:
    """One line that names the field, not what the statement looks like."""
    project.execute(f"ALTER TABLE email_queue ADD COLUMN attachments {kind}")
    await migrate(project.url)
    async with Room(database_url=project.url) as room:
        with pytest.raises(InvalidEmail, match=r"^attachments: email_queue of this database takes none: "):
            await room.send(to="c@d.example", subject="s", html="h", attachments=[FILE])
