"""What strangers have written into a row is shown on a screen, and never obeyed by it."""

from __future__ import annotations

import re
from typing import Any

import orjson
import psycopg
import pytest

from tests.cli.conftest import Cli, insert_dead_letter, on_a_terminal
from tests.journey.programs import Programs

# Clear the screen, CSI as one character, ring, a title of the window, right to left, a second line.
HOSTILE = "a\x1b[2J\x9b31m\x07\x1b]0;mine\x07\u202eb\r\nc\x7f\x85d\u2028e"
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def hostile_id(db: psycopg.Connection[tuple[Any, ...]]) -> str:
    """A dead letter in which everything that is text is hostile."""
    entry = {"at": HOSTILE, "outcome": HOSTILE, "reply": HOSTILE, "worker": HOSTILE}
    return insert_dead_letter(
        db,
        HOSTILE,
        subject=HOSTILE,
        html=HOSTILE,
        from_email=HOSTILE,
        email_type=HOSTILE,
        last_error=HOSTILE,
        dead_reason=HOSTILE,
        metadata=orjson.dumps({HOSTILE: HOSTILE}).decode(),
        attempt_log=orjson.dumps([entry]).decode(),
    )


def _commands(row_id: str) -> list[list[str]]:
    plain = [["explain", row_id], ["dead-letters", "list"], ["dead-letters", "show", row_id], ["status"]]
    query = "SELECT to_email, subject, metadata FROM email_queue"
    return [*plain, *([*command, "--json"] for command in plain), ["psql", "-c", query]]


def test_no_command_prints_what_a_terminal_obeys(cli: Cli, hostile_id: str) -> None:
    """In a pipe: no control character but the end of a line, and JSON says what was there."""
    for command in _commands(hostile_id):
        said = cli.ok(*command)
        assert not OBEYED.search(said), command
    shown = cli("dead-letters", "show", hostile_id, "--json").json
    assert shown["subject"] == shown["html"] == HOSTILE


def test_a_terminal_is_sent_colours_and_nothing_else(programs: Programs, hostile_id: str) -> None:
    """On a terminal, too, in its tables and cards."""
    show = ["dead-letters", "show", hostile_id, "--json"]
    for command in (["explain", hostile_id], ["dead-letters", "list"], show):
        code, said = on_a_terminal(*command, folder=programs.folder, settings=programs.settings)
        assert code == 0, said
        assert not OBEYED.search(COLOUR.sub("", said).replace("\r\n", "\n")), command


def test_an_error_is_one_line_whatever_it_quotes(bare_cli: Cli) -> None:
    """What was given on the command line comes back in it."""
    for command in (["explain", HOSTILE], ["settings", "get", HOSTILE], [HOSTILE], ["send", "--to", HOSTILE]):
        answer = bare_cli(*command)
        assert answer.code in (1, 2)
        assert not OBEYED.search(answer.error), command
