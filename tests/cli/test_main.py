"""What holds for all commands: help, usage, errors in one line, exit codes, pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from postroom.cli.main import app
from tests.cli.conftest import NOWHERE, Cli, on_a_terminal
from tests.journey.programs import COMMAND, Programs


def commands() -> list[tuple[str, ...]]:
    """Every command, as it is called."""
    found: list[tuple[str, ...]] = []
    top = typer.main.get_command(app)
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        found += [(name, inner) for inner in getattr(command, "commands", {})] or [(name,)]
    return found


NEED_THE_DATABASE = [
    ("migrate",),
    ("migrate", "--check"),
    ("send", "--to", "ada@example.com", "--subject", "Hi", "--text", "Hi"),
    ("status",),
    ("explain", "00000000-0000-0000-0000-000000000000"),
    ("dead-letters", "list"),
    ("dead-letters", "retry", "--all"),
    ("settings", "list"),
    ("settings", "set", "lease", "60s"),
    ("key", "new"),
    ("psql", "-c", "SELECT 1"),
]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_each_command_says_what_it_does(bare_cli: Cli, command: tuple[str, ...]) -> None:
    """--help of each: exit 0, a usage line, and not a word on stderr."""
    out = bare_cli.ok(*command, "--help")
    assert f"postroom {' '.join(command)}" in out


def test_help_lists_the_commands_in_the_order_in_which_one_meets_them(bare_cli: Cli) -> None:
    """Groups of commands stand where they belong, not behind all others."""
    out = bare_cli.ok("--help")
    places = [
        out.index(f"  {name} ") for name in ("up", "send", "status", "dead-letters", "settings", "psql")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("arguments", [("--version",), ("version",)])
def test_the_version_is_one_line(bare_cli: Cli, arguments: tuple[str, ...]) -> None:
    """Both spellings."""
    assert bare_cli.ok(*arguments).startswith("postroom 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ("sned",),
        ("status", "--bogus"),
        ("send",),
        ("send", "--to"),
        ("explain",),
        ("explain", "no-id"),
        ("settings",),
        ("dead-letters", "list", "--limit", "0"),
        ("migrate", "--deliver-newer-than", "soon"),
        ("migrate", "--check", "--export", "somewhere"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2_and_one_line(bare_cli: Cli, arguments: tuple[str, ...]) -> None:
    """It is known before any database is asked."""
    answer = bare_cli(*arguments)
    assert answer.code == 2
    assert answer.error


def test_no_command_at_all_shows_the_help_and_is_wrong_usage(bare_cli: Cli) -> None:
    """Help on stdout, the line on stderr."""
    answer = bare_cli()
    assert (answer.code, answer.err) == (2, "postroom: give a command\n")
    assert "dead-letters" in answer.out


@pytest.mark.parametrize("command", NEED_THE_DATABASE, ids=" ".join)
def test_a_database_that_is_away_is_one_line_that_says_what_to_do(
    bare_cli: Cli, command: tuple[str, ...]
) -> None:
    """Exit 1; the line names the database and the setting, and never the password."""
    answer = bare_cli(*command)
    assert answer.code == 1
    assert "127.0.0.1:1" in answer.error
    assert "POSTROOM_DATABASE_URL" in answer.error
    assert "secret-word" not in answer.err


@pytest.mark.parametrize("command", ["up", "serve", "worker"])
def test_a_program_that_stays_ends_at_once_where_its_database_is_away(
    programs: Programs, command: str
) -> None:
    """The last line on stderr says it, in words; stdout never says ready."""
    programs.settings["POSTROOM_DATABASE_URL"] = NOWHERE
    done = programs.run(command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("postroom: database nothing at 127.0.0.1:1: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("transport = [", "postroom.toml is no TOML"),
        ('trnsport = "x"', "trnsport is no setting; did you mean transport?"),
        ('port = "abc"', "port is wrong; allowed is a number from 0 to 65535"),
    ],
)
def test_a_bad_postroom_toml_is_named_with_what_is_allowed(
    bare_cli: Cli, tmp_path: Path, written: str, said: str
) -> None:
    """Exit 1, one line, before anything is opened."""
    (tmp_path / "postroom.toml").write_text(written)
    answer = bare_cli("status")
    assert answer.code == 1
    assert said in answer.error


def test_a_mistake_of_ours_is_one_line_too(bare_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a traceback, but where somebody asks for it."""

    def broken(**_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("postroom.room.load_settings", broken)
    answer = bare_cli("status")
    assert answer.code == 1
    assert "RuntimeError: two lines" in answer.error
    monkeypatch.setenv("POSTROOM_LOG_LEVEL", "debug")
    assert "Traceback" in bare_cli("status").err


def test_a_reader_that_goes_away_hears_no_complaint(programs: Programs) -> None:
    """As in `postroom psql -c ... | head -1`."""
    command = [*COMMAND, "psql", "-c", "SELECT generate_series(1, 100000)"]
    process = subprocess.Popen(
        command,
        env=programs._environment(),
        cwd=programs.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 1


@pytest.mark.parametrize(("redirection", "code"), [(">&-", 0), (">/dev/full", 1)])
def test_a_stdout_that_takes_nothing_is_no_traceback(programs: Programs, redirection: str, code: int) -> None:
    """Closed, or on a full disk."""
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m postroom settings list {redirection}"],
        env=programs._environment(),
        cwd=programs.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == code


def test_a_home_that_is_closed_hinders_no_command(programs: Programs, tmp_path: Path) -> None:
    """As under systemd's ProtectHome: nobody looks for a client certificate where nobody may look."""
    home = tmp_path / "home"
    home.mkdir(mode=0)
    as_others = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*as_others, *COMMAND, "psql", "-c", "SELECT 1 AS one"],
        env={**programs._environment(), "HOME": str(home)},
        cwd=programs.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["one", "1"], "")


def test_help_loads_neither_the_database_nor_the_settings() -> None:
    """It is what one waits for first: what costs a tenth of a second is imported where it is needed."""
    heavy = ["asyncio", "asyncpg", "pydantic_settings", "postroom.settings", "structlog", "uvicorn"]
    program = (
        "import sys; from postroom.cli.main import run; run(['--help']); "
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr.strip() == "[]"


def test_a_terminal_gets_drawn_tables_and_a_pipe_plain_ones(programs: Programs, tmp_path: Path) -> None:
    """Escape codes and lines for a person; columns for a program."""
    piped = programs.run("settings", "list").stdout
    code, drawn = on_a_terminal("settings", "list", folder=tmp_path, settings=programs.settings)
    assert code == 0
    assert "\x1b[" in drawn
    assert "───" in drawn
    assert piped.splitlines()[0].split() == ["KEY", "VALUE", "DEFAULT"]
    assert piped.isascii()
