"""
What can never be sent: refused at each door with the field's name, a dead letter where it came by INSERT.

HTTP's answers to the same are in tests/http/test_doors.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from postroom import InvalidEmail, Room
from tests.journey.house import house_of
from tests.journey.ledger import running_ledger
from tests.journey.programs import Programs
from tests.support.waiting import until

SMUGGLED = "\r\nBcc: eve@example.com"
TEN_MB = "x" * 10_000_000
GOOD: dict[str, Any] = {"to": "ada@example.com", "subject": "Hi", "html": "<p>Hi</p>"}

# What is wrong, and the field that the error begins with.
PYTHON: list[tuple[dict[str, Any], str]] = [
    ({"to": "nobody"}, "to"),
    ({"to": ""}, "to"),
    ({"to": "a@b@example.com"}, "to"),
    ({"to": "a@example.com, b@example.com"}, "to"),
    ({"to": ["a@example.com", "b@example.com"]}, "to"),
    ({"to": None}, "to"),
    ({"to": "a\0@example.com"}, "to"),
    ({"to": f"a@example.com{SMUGGLED}"}, "to"),
    ({"subject": TEN_MB}, "subject"),
    ({"subject": f"Hi{SMUGGLED}"}, "subject"),
    ({"subject": "Hi\0"}, "subject"),
    ({"subject": 7}, "subject"),
    ({"subject": None}, "subject"),
    ({"html": "a\0b"}, "html"),
    ({"html": b"<p>"}, "html"),
    ({"html": ""}, "html"),
    ({"text": "a\0b"}, "text"),
    ({"text": 7}, "text"),
    ({"from_email": "nobody"}, "from"),
    ({"from_email": f"Shop{SMUGGLED} <a@example.com>"}, "from"),
    ({"from_email": "a@example.com, b@example.com"}, "from"),
    ({"reply_to": "nobody"}, "reply_to"),
    ({"reply_to": f"a@example.com{SMUGGLED}"}, "reply_to"),
    ({"headers": ["X-A"]}, "headers"),
    ({"headers": {f"X-A{SMUGGLED}": "a"}}, "headers"),
    ({"headers": {"Bcc": "eve@example.com"}}, "headers"),
    ({"headers": {"X-A": f"a{SMUGGLED}"}}, "headers: X-A"),
    ({"headers": {"X-A": "a\0"}}, "headers: X-A"),
    ({"headers": {"X-A": 7}}, "headers: X-A"),
    ({"metadata": "text"}, "metadata"),
    ({"metadata": {"a": "\0"}}, "metadata"),
    ({"email_type": f"a{SMUGGLED}"}, "email_type"),
    ({"idempotency_key": ""}, "idempotency_key"),
    ({"idempotency_key": f"a{SMUGGLED}"}, "idempotency_key"),
    ({"send_at": "tomorrow"}, "send_at"),
    ({"send_at": datetime(2030, 1, 1)}, "send_at"),  # noqa: DTZ001 - the point
    ({"priority": "high"}, "priority"),
    ({"priority": 2**31}, "priority"),
    ({"max_attempts": 0}, "max_attempts"),
]

SQL: list[tuple[dict[str, Any], str]] = [
    ({"to_email": "nobody"}, "to_email"),
    ({"to_email": ""}, "to_email"),
    ({"to_email": None}, "to_email"),
    ({"to_email": "a@b@example.com"}, "to_email"),
    ({"to_email": "a@example.com, b@example.com"}, "to_email"),
    ({"to_email": f"a@example.com{SMUGGLED}"}, "to_email"),
    ({"subject": None}, "subject"),
    ({"subject": TEN_MB}, "subject"),
    ({"subject": f"Hi{SMUGGLED}"}, "subject"),
    ({"html": None}, "html"),
    ({"from_email": "nobody"}, "from_email"),
    ({"from_email": f"Shop{SMUGGLED} <a@example.com>"}, "from_email"),
    ({"reply_to": "nobody"}, "reply_to"),
    ({"reply_to": f"a@example.com{SMUGGLED}"}, "reply_to"),
    ({"headers": Jsonb(["X-A"])}, "headers"),
    ({"headers": Jsonb({f"X-A{SMUGGLED}": "a"})}, "headers"),
    ({"headers": Jsonb({"X-A": f"a{SMUGGLED}"})}, "headers"),
    ({"headers": Jsonb({"X-A": 7})}, "headers"),
    ({"metadata": Jsonb([])}, "metadata"),
    ({"max_attempts": 0}, "max_attempts"),
]

COMMANDS: list[tuple[dict[str, str], str]] = [
    ({"--to": "nobody"}, "to: "),
    ({"--to": ""}, "to: "),
    ({"--to": "a@example.com, b@example.com"}, "to: "),
    ({"--to": f"a@example.com{SMUGGLED}"}, "to: "),
    ({"--subject": f"Hi{SMUGGLED}"}, "subject: "),
    ({"--from": f"Shop{SMUGGLED} <a@example.com>"}, "from: "),
    ({"--cc": "eve@example.com"}, "No such option: --cc"),
]

# A row of an old caller, whom nothing may refuse, and what its last_error begins with.
ROWS: list[tuple[dict[str, Any], str]] = [
    ({"to_email": "nobody"}, "to_email: "),
    ({"to_email": ""}, "to_email: "),
    ({"to_email": "a@example.com, b@example.com"}, "to_email: "),
    ({"to_email": f"a@example.com{SMUGGLED}"}, "to_email: "),
    ({"subject": f"Hi{SMUGGLED}"}, "subject: "),
    ({"subject": TEN_MB}, "subject: "),
    ({"subject": "bell \x07"}, "subject: "),
    ({"from_email": "nobody"}, "from_email: "),
    ({"from_email": f"Shop{SMUGGLED} <a@example.com>"}, "from_email: "),
    ({"reply_to": f"a@example.com{SMUGGLED}"}, "reply_to: "),
    ({"headers": Jsonb(["X-A"])}, "headers"),
    ({"headers": Jsonb("text")}, "headers"),
    ({"headers": Jsonb({"X-A": f"a{SMUGGLED}"})}, "headers: X-A: "),
    ({"headers": Jsonb({f"X-A{SMUGGLED}": "a"})}, "headers: "),
    ({"headers": Jsonb({"Bcc": "eve@example.com"})}, "headers: "),
    ({"headers": Jsonb({"X-A": 7})}, "headers: X-A: "),
]

# What looks odd and is a mail all the same.
ODD: list[dict[str, Any]] = [
    {"html": f"<p>Hi</p>{SMUGGLED}", "text": f"Hi{SMUGGLED}\r\n.\r\nMAIL FROM:<eve@example.com>"},
    {"html": "", "text": ""},
    {"subject": ""},
    {"metadata": Jsonb([1, "two"])},
    {"metadata": None, "attempts": None, "max_attempts": None, "error_count": None, "created_at": None},
    {"max_attempts": 0},
    {"from_email": ""},
    {"reply_to": ""},
    {"headers": Jsonb(None)},
]


async def test_python_refuses_what_can_never_be_sent_and_names_the_field(database_url: str) -> None:
    """Alone or among others of send_many: no row, and one line that shows no body."""
    async with Room(database_url=database_url) as room:
        for wrong, named in PYTHON:
            for send, prefix in (
                (lambda fields: room.send(**fields), ""),
                (lambda fields: room.send_many([GOOD, fields]), "emails[1]."),
            ):
                with pytest.raises(InvalidEmail) as refused:
                    await send(GOOD | wrong)
                assert str(refused.value).startswith(f"{prefix}{named}: "), str(wrong)[:200]
                assert len(str(refused.value)) < 1_000
                assert "\n" not in str(refused.value)
        with pytest.raises(InvalidEmail, match=r"^emails\[0\]\.cc: "):
            await room.send_many([{**GOOD, "cc": "eve@example.com"}])
        assert await room.database.fetchval("SELECT count(*) FROM email_queue") == 0


def test_sql_refuses_what_can_never_be_sent_and_names_the_argument(database_url: str) -> None:
    """enqueue_email() raises invalid_parameter_value, and the transaction has no row."""
    good = {"to_email": "ada@example.com", "subject": "Hi", "html": "<p>Hi</p>"}
    with psycopg.connect(database_url, autocommit=True) as db:
        for wrong, named in SQL:
            given = good | wrong
            arguments = ", ".join(f"{name} => %({name})s" for name in given)
            with pytest.raises(psycopg.DataError) as refused:
                db.execute(f"SELECT enqueue_email({arguments})".encode(), given)
            assert refused.value.sqlstate == "22023"
            message = str(refused.value).partition("\n")[0]
            assert message.startswith(f"{named}: "), str(wrong)[:200]
            assert len(message) < 200
        assert db.execute("SELECT count(*) FROM email_queue").fetchone() == (0,)


def test_sql_names_the_place_of_the_email_that_can_never_be_sent(database_url: str) -> None:
    """enqueue_emails() asks of each what enqueue_email() asks, and of its JSON that it means something."""
    good = {"to_email": "ada@example.com", "subject": "Hi", "html": "<p>Hi</p>"}
    wrong_types: list[tuple[dict[str, Any], str]] = [
        ({"subject": 7}, "subject"),
        ({"html": ["<p>"]}, "html"),
        ({"metadata": "{}"}, "metadata"),
        ({"priority": "high"}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"max_attempts": 2**31}, "max_attempts"),
        ({"send_at": "tomorrow, or so"}, "send_at"),
        ({"send_at": "2030-13-01T00:00:00Z"}, "send_at"),
        ({"send_at": 1_900_000_000}, "send_at"),
    ]
    with psycopg.connect(database_url, autocommit=True) as db:
        for wrong, named in SQL + wrong_types:
            plain = {name: value.obj if isinstance(value, Jsonb) else value for name, value in wrong.items()}
            with pytest.raises(psycopg.DataError) as refused:
                db.execute("SELECT enqueue_emails(%s)", [Jsonb([good, good, good | plain, good])])
            assert refused.value.sqlstate == "22023"
            message = str(refused.value).partition("\n")[0]
            assert message.startswith(f"emails[2].{named}: "), str(wrong)[:200]
            assert len(message) < 200
        for document, message in (
            ([good, None], "emails[1]: must be an object"),
            (
                [good, good | {"cc": "eve@example.com"}],
                "emails[1].cc: is no field of an e-mail; those are to_email, ",
            ),
            (good, "emails: must be an array"),
            (None, "emails: must be an array"),
            ([good] * 10_001, "emails: must be an array of at most 10,000 e-mails"),
        ):
            with pytest.raises(psycopg.DataError) as refused:
                db.execute("SELECT enqueue_emails(%s)", [Jsonb(document)])
            assert str(refused.value).startswith(message)
        assert db.execute("SELECT count(*) FROM email_queue").fetchone() == (0,)


def test_the_command_refuses_what_can_never_be_sent_and_names_the_option(
    programs: Programs, database_url: str
) -> None:
    """Wrong usage: exit 2, one line on stderr, nothing on stdout."""
    good = {"--to": "ada@example.com", "--subject": "Hi", "--html": "<p>Hi</p>"}

    def run(wrong: dict[str, str]) -> tuple[int, str, str]:
        ended = programs.run("send", *(word for pair in (good | wrong).items() for word in pair))
        return ended.returncode, ended.stdout, ended.stderr

    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(run, [wrong for wrong, _ in COMMANDS]))
    for (wrong, says), (returncode, stdout, stderr) in zip(COMMANDS, ends, strict=True):
        assert (returncode, stdout) == (2, ""), wrong
        assert stderr.startswith(f"postroom: {says}"), wrong
        assert stderr.count("\n") == 1
    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT count(*) FROM email_queue").fetchone() == (0,)


async def test_a_bad_row_is_a_dead_letter_that_says_why_and_others_go_on(database_url: str) -> None:
    """Each bad row between good ones, by plain INSERT; nothing that it smuggles reaches the receiver."""
    with running_ledger() as ledger, psycopg.connect(database_url, autocommit=True) as db:
        bad = [_insert(db, wrong) for wrong, _ in ROWS]
        odd = [_insert(db, columns) for columns in ODD]
        good = [_insert(db, {}) for _ in range(10)]
        async with house_of(database_url, f"smtp://127.0.0.1:{ledger.port}") as house, house.working():
            for email_id, (wrong, says) in zip(bad, ROWS, strict=True):
                row = await house.settled(email_id)
                assert (row["status"], row["attempts"]) == ("dead_letter", 1), str(wrong)[:200]
                assert row["last_error"].startswith(says), (row["last_error"], str(wrong)[:200])
                assert len(row["last_error"]) < 1_000
                assert row["failed_at"] is not None
            for email_id in (*odd, *good):
                row = await house.settled(email_id)
                assert (row["status"], row["attempts"], row["last_error"]) == ("sent", 1, None)
            await until(lambda: len(ledger.delivered) == len(odd) + len(good))
    assert {mail.recipient for mail in ledger.delivered} == {"ada@example.com"}
    for mail in ledger.delivered:
        assert mail.message["Bcc"] is None


def _insert(db: psycopg.Connection[tuple[Any, ...]], columns: dict[str, Any]) -> Any:
    given = {"to_email": "ada@example.com", "subject": "Hi", "html": "<p>Hi</p>"} | columns
    names, places = ", ".join(given), ", ".join(f"%({name})s" for name in given)
    row = db.execute(
        f"INSERT INTO email_queue ({names}) VALUES ({places}) RETURNING id".encode(), given
    ).fetchone()
    assert row is not None
    return row[0]
