"""postroom dead-letters: what needs a person, in both queues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli, insert_dead_letter, insert_email, on_a_terminal
from tests.journey.programs import Programs

Db = psycopg.Connection[tuple[Any, ...]]


def _status(db: Db, row_id: str) -> tuple[Any, ...]:
    row = db.execute(
        "SELECT status, attempts, error_count FROM email_queue WHERE id = %s", (row_id,)
    ).fetchone()
    assert row is not None
    return row


def test_the_list_holds_both_queues_newest_first(cli: Cli, db: Db) -> None:
    """One line each: id, queue, since, reason, what it is about, last error."""
    mail = insert_dead_letter(db)
    insert_email(db)
    event = db.execute(
        """
        INSERT INTO webhook_retry_queue (webhook_type, payload, status, last_error, failed_at)
        VALUES ('stripe', '{}', 'dead_letter', 'handler: 410', clock_timestamp()) RETURNING id::text
        """
    ).fetchone()
    assert event is not None
    lines = cli.ok("dead-letters", "list").splitlines()
    assert lines[0].split() == ["ID", "QUEUE", "SINCE", "REASON", "ABOUT", "LAST", "ERROR"]
    assert [line.split()[:2] for line in lines[1:]] == [[event[0], "webhook"], [mail, "email"]]
    assert lines[2].endswith("550 5.1.1 no such user")


def test_attachments_are_shown_by_their_sizes(cli: Cli, db: Db) -> None:
    """Nobody wants a megabyte of base64 on his screen, nor in JSON."""
    mail = insert_dead_letter(db, attachments='[{"filename": "bill.pdf", "content": "JVBERg=="}]')
    assert cli("dead-letters", "show", mail, "--json").json["attachments"] == [
        {"filename": "bill.pdf", "content": "4 bytes"}
    ]
    shown = cli.ok("dead-letters", "show", mail)
    assert "bill.pdf" in shown
    assert "JVBERg" not in shown


def test_one_whose_attachments_are_beyond_all_bounds_is_shown_without(cli: Cli, db: Db) -> None:
    """It died of them: whoever looks why is told."""
    mail = insert_dead_letter(db)
    db.execute("UPDATE email_queue SET attachments = to_jsonb(repeat('A', 53000000)) WHERE id = %s", [mail])
    shown = cli("dead-letters", "show", mail, "--json").json
    assert shown["attachments"] == "attachments: have in base64 more than 50 MB, which no mail server takes"


@pytest.mark.parametrize(("reason", "count"), [("permanent", 1), ("EXHAUST", 0), ("timed OUT", 1), ("x", 0)])
def test_reason_is_one_of_ours_or_a_part_of_the_last_error(cli: Cli, db: Db, reason: str, count: int) -> None:
    """Whatever its case."""
    insert_dead_letter(db)
    insert_dead_letter(db, dead_reason="exhausted", last_error="421 timed out")
    assert len(cli("dead-letters", "list", "--reason", reason, "--json").json) == count


def test_the_list_is_narrowed_by_a_text_and_a_time(cli: Cli, db: Db) -> None:
    """As on the dashboard's page, together with a reason; an end that is a day is the end of that day."""
    old = insert_dead_letter(db, to_email="ada@example.com")
    db.execute("UPDATE email_queue SET failed_at = '2026-03-01T12:00Z' WHERE id = %s", (old,))
    new = insert_dead_letter(db, to_email="grace@example.com")

    def found(*options: str) -> list[str]:
        return [row["id"] for row in cli("dead-letters", "list", "--json", *options).json]

    assert found("--search", "ADA@") == [old]
    assert found("--since", "1h") == [new]
    assert found("--since", "2026-02-28", "--until", "2026-03-02") == [old]
    assert found("--until", "1h", "--reason", "permanent") == [old]
    assert found("--until", "1h", "--search", "grace@") == []
    answer = cli("dead-letters", "list", "--limit", "1", "--search", "example.com")
    assert answer.err == "1 of 2 dead letters; --limit shows more\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--since", "yesterday"], "--since: 'yesterday' is no time: write 2026-11-25, 2026-11-25 10:30,"),
        (["--since", "1h", "--until", "2h"], "no time lies between --since 1h and --until 2h"),
    ],
)
def test_a_time_that_is_none_is_wrong_usage(bare_cli: Cli, options: list[str], line: str) -> None:
    """Before any database is asked."""
    answer = bare_cli("dead-letters", "list", *options)
    assert answer.code == 2
    assert answer.error.startswith(line)


def test_limit_says_how_many_more_there_are(cli: Cli, db: Db) -> None:
    """On stderr, so that a script's rows stay rows."""
    for _ in range(3):
        insert_dead_letter(db)
    answer = cli("dead-letters", "list", "--limit", "2")
    assert (answer.code, len(answer.out.splitlines())) == (0, 3)
    assert answer.err == "2 of 3 dead letters; --limit shows more\n"


def test_no_dead_letters_is_no_output_in_a_pipe_and_a_sentence_on_a_terminal(
    cli: Cli, programs: Programs, tmp_path: Path
) -> None:
    """And an empty document as JSON."""
    assert cli.ok("dead-letters", "list") == ""
    assert cli("dead-letters", "list", "--json").json == []
    code, said = on_a_terminal("dead-letters", "list", folder=tmp_path, settings=programs.settings)
    assert (code, said.strip()) == (0, "There are no dead letters.")


def test_show_tells_all_of_one_and_its_body(cli: Cli, db: Db) -> None:
    """As facts, and as JSON the whole row."""
    row_id = insert_dead_letter(db, html="<p>Hello\x1b[2J</p>")
    out = cli.ok("dead-letters", "show", row_id)
    assert "550 5.1.1 no such user" in out
    assert "<p>Hello [2J</p>" in out, "a terminal would have obeyed it"
    found = cli("dead-letters", "show", row_id, "--json").json
    assert (found["queue"], found["id"], found["html"]) == ("email", row_id, "<p>Hello\x1b[2J</p>")


def test_retry_gives_all_attempts_again(cli: Cli, db: Db) -> None:
    """attempts begins anew, error_count stays."""
    one, other = insert_dead_letter(db), insert_dead_letter(db)
    assert cli.ok("dead-letters", "retry", one) == "1 dead letter retried\n"
    assert _status(db, one) == ("pending", 0, 1)
    assert _status(db, other) == ("dead_letter", 1, 1)


def test_retry_all_takes_all_or_those_with_a_reason(cli: Cli, db: Db) -> None:
    """Others are left alone."""
    one = insert_dead_letter(db)
    other = insert_dead_letter(db, dead_reason="poison", last_error="poison: three workers died")
    assert cli("dead-letters", "retry", "--all", "--reason", "poison", "--json").json == {
        "retried": [other],
        "missed": {},
    }
    assert _status(db, one)[0] == "dead_letter"
    assert cli.ok("dead-letters", "retry", "--all") == "1 dead letter retried\n"


def test_discard_makes_it_failed(cli: Cli, db: Db) -> None:
    """Kept until cleanup takes it."""
    row_id = insert_dead_letter(db)
    assert cli.ok("dead-letters", "discard", row_id) == "1 dead letter discarded\n"
    assert _status(db, row_id)[0] == "failed"


def test_discard_all_asks_on_a_terminal_and_wants_yes_elsewhere(
    cli: Cli, db: Db, programs: Programs, tmp_path: Path
) -> None:
    """Nothing is discarded by a slip; the note is kept."""
    row_id = insert_dead_letter(db)
    assert cli("dead-letters", "discard", "--all").code == 2
    assert _status(db, row_id)[0] == "dead_letter"
    assert cli.ok("dead-letters", "discard", "--all", "--yes", "--note", "old list").endswith("discarded\n")
    assert _status(db, row_id)[0] == "failed"
    assert ": old list" in cli.ok("explain", row_id)


def test_edit_queues_another_one_and_prints_its_id(cli: Cli, db: Db, tmp_path: Path) -> None:
    """What is not named is kept; a plain part that says what the HTML said before is made anew."""
    row_id = insert_dead_letter(db, text="Hi", from_email="shop@example.com", email_type="receipt")
    (tmp_path / "new.html").write_text("<p>Good day</p>")
    answer = cli(
        "dead-letters", "edit", row_id, "--to", "bob@example.com", "--html-file", str(tmp_path / "new.html")
    )
    assert (answer.code, answer.err) == (
        0,
        "its plain part is made from the new HTML; --text-file gives one\n",
    )
    row = db.execute(
        """
        SELECT to_email, subject, html, text, from_email, email_type, status, metadata ->> 'replaces'
        FROM email_queue WHERE id = %s
        """,
        (answer.out.strip(),),
    ).fetchone()
    kept = ("Hi", "<p>Good day</p>", None, "shop@example.com", "receipt", "pending", row_id)
    assert row == ("bob@example.com", *kept)
    assert _status(db, row_id)[0] == "failed"
    assert f"e-mail {answer.out.strip()} goes out in its place" in cli.ok("explain", row_id)
    assert "is failed, no dead letter" in cli("dead-letters", "edit", row_id, "--to", "b@example.com").error


def test_edit_refuses_what_send_refuses(cli: Cli, db: Db) -> None:
    """One line that names the field, and nothing is queued."""
    row_id = insert_dead_letter(db)
    answer = cli("dead-letters", "edit", row_id, "--to", "nobody")
    assert (answer.code, answer.error.split(" ")[0]) == (2, "to:")
    assert cli("dead-letters", "edit", row_id).code == 2
    assert cli("dead-letters", "edit", row_id, "--html-file", "nowhere").code == 2
    assert _status(db, row_id)[0] == "dead_letter"


def test_what_is_no_dead_letter_is_named_and_the_others_are_done(cli: Cli, db: Db) -> None:
    """Exit 1."""
    dead, pending = insert_dead_letter(db), insert_email(db)
    answer = cli("dead-letters", "retry", dead, pending)
    assert (answer.code, answer.out) == (1, "1 dead letter retried\n")
    assert f"{pending} is pending, no dead letter" in answer.err
    assert _status(db, dead)[0] == "pending"


@pytest.mark.parametrize(
    "arguments",
    [
        ("retry",),
        ("retry", "00000000-0000-0000-0000-000000000000", "--all"),
        ("retry", "00000000-0000-0000-0000-000000000000", "--reason", "poison"),
        ("discard",),
    ],
    ids=" ".join,
)
def test_ids_or_all_is_asked_for(bare_cli: Cli, arguments: tuple[str, ...]) -> None:
    """Exit 2, before any database is asked."""
    answer = bare_cli("dead-letters", *arguments)
    assert answer.code == 2
    assert answer.error
