"""`postroom cleanup`: applies the retention settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from postroom.cli.house import actor, opened_room, run
from postroom.cli.screen import print_json, print_line, progress
from postroom.errors import PostroomError
from postroom.wording import count_of

if TYPE_CHECKING:
    from postroom.schedule.cleanup import Cleaned

_RULES = {
    "e-mails": ("sent", "dead_letter", "failed", "body"),
    "webhook events": ("processed", "dead_letter", "failed", "body"),
    "known event ids": ("seen",),
    "limits": ("ended",),
    "runs of jobs": ("cron",),
    "minutes of figures": ("stats",),
    "entries of the audit trail": ("audit",),
    "runs of pg_cron": ("cron",),
}


def cleanup(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what would be forgotten.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forget what the retention settings say is old. It may be broken off, and begun again."""
    found, settings = run(_cleanup(dry_run))
    if json:
        print_json(
            {
                "dry_run": dry_run,
                "counts": {
                    each.step.name: {rule: each.counts[rule] for rule in _RULES[each.step.name]}
                    for each in found
                },
                "refused": sum(each.refused for each in found),
            }
        )
    else:
        for each in found:
            _print(each, settings, dry_run)
    if any(each.stopped for each in found):
        raise PostroomError("it was told to end before the last page; what is above is done: run it again")


async def _cleanup(dry_run: bool) -> tuple[list[Cleaned], dict[str, str]]:
    import asyncio
    import signal

    from postroom.database.audit import record_alone
    from postroom.jobs import CLEANUP
    from postroom.queue.policy import read_settings
    from postroom.schedule.cleanup import cleanup

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with opened_room() as room:
        if not dry_run:
            await record_alone(room.database, actor(), "job.run", {"job": "cleanup"})
        settings = {setting.key: setting.value for setting in await read_settings(room.database)}
        with progress("looking") as tell:
            found = await cleanup(room.database, CLEANUP, dry_run=dry_run, stop=stop, report=tell)
    return found, settings


def _print(cleaned: Cleaned, settings: dict[str, str], dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    for rule in _RULES[cleaned.step.name]:
        count = cleaned.counts[rule]
        if rule == "seen":
            print_line(f"{cleaned.step.name} older than 30d: {count:,} {would}forgotten")
        elif rule == "ended":
            print_line(f"{cleaned.step.name} whose window has ended: {count:,} {would}forgotten")
        else:
            done = "emptied" if rule == "body" else "deleted"
            print_line(
                f"{cleaned.step.name}, retention.{rule} = {settings[f'retention.{rule}']}: "
                f"{count:,} {would}{done}"
            )
    if cleaned.refused:
        print_line(f"{cleaned.step.name}: {count_of(cleaned.refused, 'row')} refused: {cleaned.why}")
