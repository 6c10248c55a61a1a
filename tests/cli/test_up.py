"""postroom up and serve: they say when they are ready, and end as they are told."""

from __future__ import annotations

import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import on_a_terminal
from tests.journey.programs import Programs


@pytest.mark.parametrize("command", ["up", "serve"])
def test_ready_is_the_one_line_on_stdout(programs: Programs, command: str) -> None:
    """`ready http://HOST:PORT`, when it serves; everything else is the log, on stderr."""
    with programs.running(command) as program:
        address = program.ready()
        with urllib.request.urlopen(f"{address}/readyz", timeout=10) as answer:
            assert answer.status == 200
    assert program.answer == f"ready {address}\n"
    assert address.startswith("http://127.0.0.1:")
    assert program.log.splitlines()
    assert all(line.startswith("{") for line in program.log.splitlines()), program.log


def test_serve_sends_nothing(programs: Programs, db: psycopg.Connection[tuple[Any, ...]]) -> None:
    """HTTP alone: no worker shows itself but the one that direct e-mails have."""
    with programs.running("serve") as program:
        program.ready()
        assert db.execute("SELECT count(*) FROM postroom.workers WHERE claims").fetchone() == (0,)


def test_a_port_that_is_taken_is_exit_1_and_says_what_to_do(programs: Programs) -> None:
    """Nothing was begun, and stdout stays empty."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        programs.settings["POSTROOM_PORT"] = str(taken.getsockname()[1])
        done = programs.run("up")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].endswith(
        "something else uses this port; end it, or set POSTROOM_PORT"
    )
    assert "worker.started" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"POSTROOM_TRANSPORT": "smpt://mail:25"}, "POSTROOM_TRANSPORT begins with no known scheme"),
        ({"POSTROOM_FROM": "Shop at example.com"}, "POSTROOM_FROM: "),
        ({"POSTROOM_HOST": "nowhere.invalid"}, "set POSTROOM_HOST"),
        ({}, "python = nowhere:handle: there is no module nowhere"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_changed(
    programs: Programs, empty_database_url: str, settings: dict[str, str], told: str
) -> None:
    """One line, exit 1, and the database is as empty as it was."""
    if not settings:
        (programs.folder / "postroom.toml").write_text(
            """
            [webhooks.stripe]
            secrets = ["whsec_c2VjcmV0"]
            [[webhooks.stripe.handlers]]
            name = "shop"
            python = "nowhere:handle"
            """
        )
    programs.settings |= {"POSTROOM_DATABASE_URL": empty_database_url, **settings}
    done = programs.run("up")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert told in line
    with psycopg.connect(empty_database_url) as db:
        assert db.execute("SELECT to_regnamespace('postroom')").fetchone() == (None,)


@pytest.mark.parametrize("command", ["serve", "worker", "scheduler"])
def test_a_wrong_transport_is_told_before_the_database_is_opened(programs: Programs, command: str) -> None:
    """That one is away as well: who starts a program mends one thing after the other."""
    programs.settings |= {
        "POSTROOM_DATABASE_URL": "postgresql://postgres@127.0.0.1:9/nowhere",
        "POSTROOM_TRANSPORT": "smpt://mail:25",
    }
    done = programs.run(command)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("postroom: POSTROOM_TRANSPORT begins with no known scheme")


def test_up_brings_an_empty_database_up_to_date(programs: Programs, empty_database_url: str) -> None:
    """And says in the log what it did."""
    programs.settings["POSTROOM_DATABASE_URL"] = empty_database_url
    with programs.running("up") as program:
        program.ready()
    assert program.events("migration.step")


def test_the_first_mail_needs_no_setting_at_all(data_dir: Path) -> None:
    """
    The README's first lines: `postroom up`, then `send --wait` from another terminal.

    The mail lies in the maildir; kill -9, and the next command finds the row.
    """
    data_dir.mkdir(mode=0o711)
    programs = Programs(data_dir, {"POSTROOM_PORT": "0", "POSTROOM_LOG": "json"})
    up = programs.start("up")
    try:
        up.ready()
        done = programs.run(
            "send", "--to", "you@example.com", "--subject", "Hi", "--html", "<p>Hi</p>", "--wait"
        )
        assert done.returncode == 0, done.stderr
        (mail,) = (data_dir / ".postroom/mail/new").iterdir()
        assert b"Subject: Hi" in mail.read_bytes()
        up.process.send_signal(signal.SIGKILL)
        up.process.wait(30)
        code, said = on_a_terminal("explain", done.stdout.strip(), folder=data_dir, settings={})
        assert code == 0
        assert "It was sent at " in said
    finally:
        up.kill()
