"""`postroom psql`: the database that postroom uses, in psql, or one statement of SQL."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import Annotated
from urllib.parse import unquote

import typer

from postroom.cli.errors import DONE, FAILED
from postroom.cli.house import run
from postroom.cli.screen import note, print_line, print_records
from postroom.errors import ConfigError

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}

_PASSWORD = re.compile(r"^(?P<before>postgres(?:ql)?://[^/@:?]*):(?P<password>[^/@]*)(?=@)")


def psql(
    context: typer.Context,
    commands: Annotated[
        list[str] | None,
        typer.Option("-c", "--command", metavar="SQL", help="Run this, print its rows, and end."),
    ] = None,
) -> None:
    """
    Open the database that postroom uses.

    With -c and one statement it needs no psql. Other options and arguments are psql's own, such as -At
    or -f FILE.
    """
    run(_psql(commands or [], context.args))


async def _psql(commands: list[str], arguments: list[str]) -> None:
    from postroom.room import Room

    room = Room()
    try:
        url = await room.database_url()
        if len(commands) == 1 and not arguments and not commands[0].lstrip().startswith("\\"):
            await _print_result(url, commands[0])
            return
        given = [word for command in commands for word in ("-c", command)]
        if _open(url, [*given, *arguments]) != DONE:
            raise typer.Exit(FAILED)
    finally:
        await room.close()


def _open(url: str, arguments: list[str]) -> int:
    import signal
    import subprocess

    program = _program()
    if program is None:
        raise ConfigError(
            "psql is not installed: install Debian's postgresql-client, or run one statement with -c"
        )
    environment = dict(os.environ)
    # A command line is seen by everybody on the machine.
    if match := _PASSWORD.match(url):
        environment["PGPASSWORD"] = unquote(match["password"])
        url = _PASSWORD.sub(match["before"], url)
    environment.setdefault("PGAPPNAME", "postroom psql")
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C speaks to psql alone
    try:
        with subprocess.Popen(
            [program, "-d", url, *arguments],
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            return process.wait()
    finally:
        signal.signal(signal.SIGINT, kept)


def _program() -> str | None:
    from postroom.database import embedded

    return shutil.which("psql") or embedded.psql()


async def _print_result(url: str, sql: str) -> None:
    import asyncpg

    from postroom.database.connect import name_of
    from postroom.database.connection import unavailable

    try:
        connection = await asyncpg.connect(url, timeout=10, statement_cache_size=0)
    except Exception as error:
        raise unavailable(error, name_of(url)) from error
    try:
        statement = await connection.prepare(sql)
        rows = await statement.fetch()
        columns = [attribute.name for attribute in statement.get_attributes()]
        if columns:
            print_records(columns, [[_shown(value) for value in row] for row in rows])
        if not columns or sys.stdout.isatty():
            print_line(statement.get_statusmsg() or "")
    except asyncpg.PostgresSyntaxError as error:
        if "multiple commands" not in str(error):
            raise
        print_line(await connection.execute(sql))
        note("these were several statements: their rows are shown by psql alone")
    finally:
        await connection.close(timeout=5)


def _shown(value: object) -> object:
    """A value as psql would show it, more or less."""
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, list):
        return "{" + ",".join(str(_shown(item)) for item in value) + "}"
    if isinstance(value, int | float | None):
        return value
    return str(value)
