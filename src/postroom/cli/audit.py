"""`postroom audit`: who did what by hand, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.house import opened_room, run
from postroom.cli.screen import note, print_json, print_table

if TYPE_CHECKING:
    from postroom.database.audit import Entry


def audit(
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=100_000, help="How many, newest first.")
    ] = 50,
    action: Annotated[
        str | None,
        typer.Option(
            "--action", metavar="A", help="Only dead_letter, setting.change and the like.", show_default=False
        ),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option(
            "--before",
            metavar="ID",
            min=1,
            max=2**63 - 1,
            help="Only entries before this one.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show who did what by hand: the dashboard's actions, and this command line's."""
    found = run(_read(limit, action, before))
    if json:
        print_json(found)
        return
    print_table(
        ["ID", "AT", "WHO", "ROLE", "ACTION", "ABOUT", "NOTE"],
        [
            (entry.id, entry.at, entry.actor, entry.role, entry.action, entry.said, entry.note)
            for entry in found
        ],
        flexible=["ABOUT", "NOTE"],
    )
    if len(found) == limit:
        note(f"the newest {limit:,}; --limit and --before {found[-1].id} show more")


async def _read(limit: int, action: str | None, before: int | None) -> list[Entry]:
    from postroom.database.audit import Action, read_audit

    known = get_args(Action)
    if action is not None and not any(f"{each}.".startswith(f"{action}.") for each in known):
        raise WrongUsage(f"--action: nobody does {action!r} by hand; actions: {', '.join(known)}")
    async with opened_room() as room:
        return await read_audit(room.database, limit=limit, action=action, before_id=before)
