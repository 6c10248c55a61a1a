"""`postroom pause` and `resume`: a queue or a transport rests, for all workers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.house import actor, opened_room, run
from postroom.cli.screen import print_json, print_text

if TYPE_CHECKING:
    from postroom.queue.pauses import Kind, Pause
    from postroom.room import Room

WHAT = "emails, webhooks, or transport with its name"

What = Annotated[str, typer.Argument(metavar="emails|webhooks|transport", help=f"One of {WHAT}.")]
Name = Annotated[
    str | None, typer.Argument(metavar="NAME", help="Of a transport, as `postroom status` shows it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def pause(
    what: What,
    name: Name = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why: shown wherever it is asked.")
    ] = None,
    span: Annotated[
        str | None, typer.Option("--for", metavar="SPAN", help="Such as 30m: then it ends by itself.")
    ] = None,
    json: Json = False,
) -> None:
    """Pause a queue or a transport for all workers; what is in flight is finished, no attempt is counted."""
    made = run(_pause(what, name, reason, _seconds(span)))
    if json:
        print_json(made)
        return
    print_text(f"{made.what} is {made.said(datetime.now(UTC))}")
    print_text(f"it goes on by: {made.resume_command}")


def resume(what: What, name: Name = None, json: Json = False) -> None:
    """End the pause of a queue or a transport."""
    kind, found, before, down = run(_resume(what, name))
    if json:
        print_json({"kind": kind, "name": found, "was_paused": before is not None})
        return
    if before is not None:
        print_text(f"{kind} {found} goes on; it was {before.said(datetime.now(UTC))}")
    elif down is not None:
        print_text(f"nobody has paused {kind} {found}; it is down and tried again by itself: {down.reason}")
    else:
        print_text(f"{kind} {found} is not paused")


async def _pause(what: str, name: str | None, reason: str | None, for_s: float | None) -> Pause:
    from postroom.queue.pauses import pause

    async with opened_room() as room:
        kind, found = await _found(room, what, name)
        return await pause(room.database, kind, found, by=actor(), reason=reason, for_s=for_s)


async def _resume(what: str, name: str | None) -> tuple[Kind, str, Pause | None, Pause | None]:
    from postroom.queue.pauses import read_pauses, resume

    async with opened_room() as room:
        kind, found = await _found(room, what, name)
        before = await resume(room.database, kind, found, by=actor())
        left = await read_pauses(room.database)
        return kind, found, before, next((one for one in left if (one.kind, one.name) == (kind, found)), None)


async def _found(room: Room, what: str, name: str | None) -> tuple[Kind, str]:
    from postroom.queue.pauses import QUEUE_WORDS, find_transport
    from postroom.queue.transports import read_transports

    queue = QUEUE_WORDS.get(what, what if what in QUEUE_WORDS.values() else None)
    if queue is not None:
        if name is not None:
            raise WrongUsage(f"{what} is a queue and takes no name; a transport is `transport NAME`")
        return "queue", queue
    if what != "transport":
        raise WrongUsage(f"{what!r} cannot be paused; write {WHAT}")
    known = [one.name for one in await read_transports(room.database, room.transport_names, [])]
    found = find_transport(known, name or "")
    if found is None:
        # What was written may hold a password: it is not shown.
        said = "name a transport" if name is None else "there is no such transport"
        raise WrongUsage(f"{said}; known are: {', '.join(known) or 'none'}")
    return "transport", found


def _seconds(span: str | None) -> float | None:
    if span is None:
        return None
    from postroom.queue.pauses import PauseRefused, seconds_of

    try:
        return seconds_of(span)
    except PauseRefused as error:
        raise WrongUsage(f"--for: {error}") from None
