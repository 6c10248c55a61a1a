"""`postroom migrate`: bring the database up to date, or say what that would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from postroom.cli.errors import FAILED, WrongUsage
from postroom.cli.house import run
from postroom.cli.screen import note, print_line, progress

LOOK_DEADLINE_S = 600.0


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 where the database is behind.")
    ] = False,
    export: Annotated[
        str | None,
        typer.Option(
            "--export", metavar="DIR", help="Write DIR/migrations and DIR/functions for Supabase instead."
        ),
    ] = None,
    app_role: Annotated[
        str | None,
        typer.Option("--app-role", metavar="NAME", help="A role that may queue e-mails and read the queue."),
    ] = None,
    deliver_newer_than: Annotated[
        str,
        typer.Option(
            "--deliver-newer-than",
            metavar="SPAN",
            help="Rows from before postroom that have waited for longer become dead letters; or all.",
        ),
    ] = "7d",
) -> None:
    """Bring the database up to date. Callers and workers go on meanwhile."""
    if export is not None and check:
        raise WrongUsage("--check and --export do not go together")
    if export == "":
        raise WrongUsage("--export: name a folder; . is the one where you are")
    _require_span(deliver_newer_than)
    if export is not None:
        _export(Path(export), app_role, deliver_newer_than)
    elif check:
        run(_check())
    else:
        run(_migrate(app_role, deliver_newer_than))


def _require_span(text: str) -> None:
    from postroom.spans import parse_span

    try:
        if text != "all":
            parse_span(text)
    except ValueError as error:
        raise WrongUsage(f"--deliver-newer-than: {error}; or all") from None


def _export(directory: Path, app_role: str | None, deliver_newer_than: str) -> None:
    from postroom.supabase.functions import export_functions
    from postroom.supabase.migrations import export_migrations

    functions = export_functions(directory / "functions")
    for path in export_migrations(
        directory / "migrations", app_role=app_role, deliver_newer_than=deliver_newer_than
    ):
        print_line(str(path))
    for written in functions:
        print_line(str(written.path))
        if written.kept is not None:
            note(f"postroom: the {written.path} that was there is {written.kept} now")


async def _check() -> None:
    from postroom.database.migrate import pending
    from postroom.room import Room

    room = Room()
    try:
        steps = (await pending(await room.database_url())).steps
    finally:
        await room.close()
    for step in steps:
        print_line(f"to do: {step}")
    if steps:
        note("postroom: the database is behind: run `postroom migrate`")
        raise typer.Exit(FAILED)
    print_line("up to date")


async def _migrate(app_role: str | None, deliver_newer_than: str) -> None:
    from postroom.database.migrate import migrate as upgrade
    from postroom.room import Room
    from postroom.schedule.pg_cron import adopt

    room = Room()
    try:
        url = await room.database_url()
        with progress("migrating") as tell:

            def report(line: str) -> None:
                print_line(line)
                tell(line)

            await upgrade(url, app_role=app_role, deliver_newer_than=deliver_newer_than, report=report)
            await room.open()
            for line in await adopt(room.database, room.settings.public_url):
                report(line)
            for row in await room.database.fetch(
                "SELECT postroom.awaiting_cleanup() AS line", deadline_s=LOOK_DEADLINE_S
            ):
                report(row["line"])
    finally:
        await room.close()
