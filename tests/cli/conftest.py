"""The command line as its user sees it: an exit code, what it prints, and what it says beside."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from postroom.cli.main import run
from tests.journey.programs import COMMAND, Programs

NOWHERE = "postgresql://nobody:secret-word@127.0.0.1:1/nothing"


@dataclass(frozen=True)
class Answer:
    """What one command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which is one JSON document."""
        return orjson.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr that says what is wrong; nothing is on stdout."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("postroom: "), self.err
        assert self.out == ""
        return lines[0].removeprefix("postroom: ")


class Cli:
    """Runs commands inside of this process, which is ten times as fast as processes of their own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Answer:
        self._capsys.readouterr()
        code = run(list(arguments))
        said = self._capsys.readouterr()
        return Answer(code, said.out, said.err)

    def ok(self, *arguments: str) -> str:
        """Run one that must succeed and say nothing beside; what it prints."""
        answer = self(*arguments)
        assert (answer.code, answer.err) == (0, ""), answer
        return answer.out


@pytest.fixture
def bare_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Commands in an empty folder, with a database that is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTROOM_DATABASE_URL", NOWHERE)
    return Cli(capsys)


@pytest.fixture
def cli(bare_cli: Cli, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands over a fresh migrated database."""
    monkeypatch.setenv("POSTROOM_DATABASE_URL", database_url)
    return bare_cli


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """The same database, as its owner."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def programs(database_url: str, tmp_path: Path) -> Programs:
    """Commands as processes of their own, over the same database."""
    settings = {
        "POSTROOM_DATABASE_URL": database_url,
        "POSTROOM_FROM": "shop@example.com",
        "POSTROOM_PORT": "0",
        "POSTROOM_LOG": "json",
    }
    return Programs(tmp_path, settings)


def on_a_terminal(
    *arguments: str, folder: Path, settings: Mapping[str, str], columns: int = 100, limit_s: float = 30.0
) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit code and what the terminal was sent."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env={**os.environ, **settings, "COLUMNS": str(columns), "TERM": "xterm"},
        cwd=folder,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    said, ends = b"", time.monotonic() + limit_s
    try:
        while time.monotonic() < ends:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    said += os.read(ours, 65536)
                except OSError:  # the terminal's other end is closed
                    break
        return process.wait(10), said.decode()
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)


def insert_email(
    db: psycopg.Connection[tuple[Any, ...]], to: str = "ada@example.com", **columns: object
) -> str:
    """Insert a row as a plain caller does; its id."""
    values = {"to_email": to, "subject": "Hi", "html": "<p>Hi</p>", **columns}
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    row = db.execute(
        f"INSERT INTO email_queue ({names}) VALUES ({places}) RETURNING id::text",
        list(values.values()),
    ).fetchone()
    assert row is not None
    return str(row[0])


def insert_dead_letter(
    db: psycopg.Connection[tuple[Any, ...]], to: str = "ada@example.com", **columns: object
) -> str:
    """Insert a dead letter, refused for good by the other side."""
    dead = {
        "status": "dead_letter",
        "dead_reason": "permanent",
        "last_error": "550 5.1.1 no such user",
        "attempts": 1,
        "error_count": 1,
    }
    row_id = insert_email(db, to, **{**dead, **columns})
    db.execute("UPDATE email_queue SET failed_at = clock_timestamp() WHERE id = %s", (row_id,))
    return row_id
