"""`postroom doctor`: look at the set-up, and say what is wrong with it and what to do."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from postroom.cli.errors import FAILED
from postroom.cli.house import fit_schema, run
from postroom.cli.screen import print_json, print_line, print_text, progress
from postroom.wording import count_of

if TYPE_CHECKING:
    from postroom.finding import Finding, Level
    from postroom.room import Room
    from postroom.settings import Settings

DISK_FREE_BYTES_MIN = 1 << 30


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    before_upgrade: Annotated[
        bool,
        typer.Option("--before-upgrade", help="Say what `migrate` would meet; change nothing."),
    ] = False,
) -> None:
    """Check the set-up; exit 1 where something is wrong with it."""
    found = run(_look_before_upgrade() if before_upgrade else _examine())
    problems = sum(finding.level == "problem" for finding in found)
    if json:
        print_json(found)
    else:
        for finding in found:
            _print(finding)
        warnings = sum(finding.level == "warning" for finding in found)
        print_line(f"{count_of(problems, 'problem')}, {count_of(warnings, 'warning')}")
    if problems:
        raise typer.Exit(FAILED)


async def _look_before_upgrade() -> list[Finding]:
    from postroom.database.before_upgrade import look_before_upgrade
    from postroom.room import Room

    with progress("looking at the database"):
        room = Room()
        try:
            return await look_before_upgrade(await room.database_url())
        finally:
            await room.close()


async def _examine() -> list[Finding]:
    from postroom.email.doctor import check_transports
    from postroom.errors import ConfigError, PostroomError
    from postroom.finding import problem
    from postroom.room import Room
    from postroom.webhooks.examine import check_sources

    with progress("looking") as tell:
        room = Room()
        found = [*_check_settings(room.settings), *check_sources(room.settings)]
        try:
            tell("the database")
            found += await _check_database(room)
        except PostroomError as error:
            advice = (
                "correct POSTROOM_DATABASE_URL" if isinstance(error, ConfigError) else "see whether it runs"
            )
            found.append(problem("database", str(error), advice))
        finally:
            await room.close()
        tell("the transports")
        found += await check_transports(room.settings)
    return found


def _check_settings(settings: Settings) -> list[Finding]:
    import shutil

    from postroom.finding import problem, warning
    from postroom.settings import unknown_variables

    found = [
        warning("settings", f"{name} is no setting", f"did you mean {meant}?" if meant else "remove it")
        for name, meant in unknown_variables().items()
    ]
    if settings.data_dir.is_dir():
        free = shutil.disk_usage(settings.data_dir).free
        if free < DISK_FREE_BYTES_MIN:
            left = f"{free / (1 << 20):,.0f} MiB are left on the disk of {settings.data_dir}"
            found.append(problem("disk", left, "make room, or move POSTROOM_DATA_DIR"))
    return found


async def _check_database(room: Room) -> list[Finding]:
    from postroom.database.doctor import check_access, check_server
    from postroom.errors import ConfigError, SchemaError
    from postroom.finding import ok, problem, warning
    from postroom.queue.doctor import check_queues
    from postroom.queues import QUEUES
    from postroom.schedule.doctor import check_cron
    from postroom.webhooks.examine import check_handlers

    await room.open()
    found = await check_server(room.database, listen_url=room.settings.listen_url is not None)
    try:
        await fit_schema(room)
    except SchemaError as error:
        return [*found, problem("schema", str(error), "run `postroom migrate`")]
    found.append(ok("schema", "up to date"))
    found += await check_access(room.database)
    found += await check_queues(room.database, QUEUES, worked=["email", "webhook"])
    found += await check_cron(room.database)
    with suppress(ConfigError):  # it is told already
        found += await check_handlers(room.database, room.sources)
    if room.settings.service_key is None and room.settings.database_url is not None:
        keys = await room.database.fetchval(
            "SELECT count(*) FROM postroom.service_keys WHERE role = 'operator'"
        )
        if not keys:
            advice = "run `postroom key new`, or set POSTROOM_SERVICE_KEY"
            found.append(warning("service key", "there is none: HTTP refuses every request", advice))
    return found


_COLOURS: dict[Level, int] = {"ok": 32, "warning": 33, "problem": 31}


def _print(finding: Finding) -> None:
    indent = " " * 9
    text = f"{finding.check}: {finding.found}"
    print_text(text, indent, lead=f"{finding.level:<9}", colour=_COLOURS[finding.level])
    if finding.advice is not None:
        print_text(f"→ {finding.advice}", indent)
