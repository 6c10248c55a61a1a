"""postroom explain: why a message is where it is. What it says of each state is proved in tests/queue."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.cli.conftest import Cli, insert_dead_letter, insert_email

Db = psycopg.Connection[tuple[Any, ...]]


def test_a_mail_that_waits_says_for_what(cli: Cli, db: Db) -> None:
    """What it is about, and the reason."""
    row_id = insert_email(db, subject="Your order")
    out = cli.ok("explain", row_id)
    assert out.startswith(f"email {row_id}: pending\n  ada@example.com · Your order\n")
    assert "no worker runs" in out


def test_a_mail_that_waits_for_a_limit_says_for_which_and_until_when(cli: Cli, db: Db) -> None:
    """With what the setting says at present."""
    db.execute("SELECT postroom.set_setting('email.limit.domain.gmail.com', '2/1h')")
    row_id = insert_email(db, to_email="ada@gmail.com")
    db.execute(
        "UPDATE email_queue SET due_at = now() + interval '1h', waits_for = 'limit:email:domain:gmail.com'"
    )
    assert "It waits for the limit email:domain:gmail.com (2/1h) until " in cli.ok("explain", row_id)
    assert cli("explain", row_id, "--json").json["reason"] == "limit:email:domain:gmail.com"


def test_a_dead_letter_says_why_and_what_to_do(cli: Cli, db: Db) -> None:
    """With the commands to copy."""
    row_id = insert_dead_letter(db)
    out = cli.ok("explain", row_id)
    assert "Last error: 550 5.1.1 no such user" in out
    assert f"postroom dead-letters retry {row_id}" in out


def test_json_has_the_reason_for_programs(cli: Cli, db: Db) -> None:
    """A word to compare with, and the sentences."""
    row_id = insert_email(db, next_retry_at="2999-01-01")
    found = cli("explain", row_id, "--json").json
    assert (found["id"], found["queue"], found["status"]) == (row_id, "email", "pending")
    assert found["reason"] == "send_at"
    assert found["attempts"] == []


def test_an_id_that_nobody_knows_is_exit_1(cli: Cli) -> None:
    """It is well written, but there is no such row."""
    answer = cli("explain", "00000000-0000-0000-0000-000000000000")
    assert answer.code == 1
    assert "in either queue" in answer.error


def test_a_subject_cannot_speak_to_the_terminal(cli: Cli, db: Db) -> None:
    """It may be anybody's text: escape codes and line breaks are taken out."""
    row_id = insert_email(db, subject="a\x1b]0;evil\x07\nb")
    out = cli.ok("explain", row_id)
    assert "\x1b" not in out
    assert "a ]0;evil  b" in out
