"""`postroom send`: queue an e-mail, and follow it to its end where asked."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, TypeVar
from uuid import UUID

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.house import opened_room, run
from postroom.cli.screen import note, print_line, progress
from postroom.errors import DatabaseUnavailable, PostroomError

if TYPE_CHECKING:
    from postroom.database.connect import Database
    from postroom.email.attachments import Attachment
    from postroom.queue.explain import Explanation

T = TypeVar("T")

LOOK_S = (0.02, 0.5)
"""How often a followed e-mail is looked at: at first, and after a while."""

TELL_S = 1.0
"""An e-mail that is not sent within this time waits for something: that is told."""

PATIENCE_S = 60.0
"""For how long the database may be away while an e-mail is followed."""


def send(
    to: Annotated[str, typer.Option("--to", metavar="ADDRESS", help="One address.")],
    subject: Annotated[str, typer.Option("--subject", metavar="TEXT")],
    html: Annotated[str | None, typer.Option("--html", metavar="HTML", help="The e-mail as HTML.")] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", help="The plain part; made from the HTML where missing."),
    ] = None,
    sender: Annotated[
        str | None, typer.Option("--from", metavar="ADDRESS", help="POSTROOM_FROM where missing.")
    ] = None,
    attach: Annotated[
        list[Path] | None,
        typer.Option("--attach", metavar="FILE", help="A file that goes with it; several times for several."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow it to its end; exit 1 if it is not sent.")
    ] = False,
) -> None:
    """Queue an e-mail and print its id."""
    if html is None and text is None:
        raise WrongUsage("give the e-mail's --html, its --text, or both")
    files = [_read(path) for path in attach or ()]
    run(_send(to, subject, html, text, sender, files, wait))


def _read(path: Path) -> Attachment:
    from postroom.email.attachments import Attachment

    try:
        return Attachment.from_file(path)
    except OSError as error:
        raise WrongUsage(f"--attach: {path} cannot be read: {error.strerror or error}") from None


async def _send(
    to: str,
    subject: str,
    html: str | None,
    text: str | None,
    sender: str | None,
    files: list[Attachment],
    wait: bool,
) -> None:
    async with opened_room() as room:
        row_id = await room.send(
            to=to, subject=subject, html=html or "", text=text, from_email=sender, attachments=files
        )
        print_line(str(row_id))
        if wait:
            sys.stdout.flush()
            await _follow(room.database, row_id)


async def _follow(database: Database, row_id: UUID) -> None:
    """Return once it is sent."""
    with progress("waiting") as tell:
        end = await _end_of(database, row_id, tell)
    if end is None:
        raise PostroomError(f"{row_id} is gone: somebody deleted it, or cleanup took it")
    if end.status != "sent":
        reason = end.last_error or end.why[0]
        raise PostroomError(f"it was not sent: {reason}; see `postroom explain {row_id}`")
    reply = end.attempts[-1].reply if end.attempts else None
    note(f"sent: {reply}" if reply else "sent")


async def _end_of(database: Database, row_id: UUID, tell: Callable[[str], None]) -> Explanation | None:
    """What there is to say once it is neither pending nor processing; None where it is gone."""
    import asyncio

    look_s, tell_at, told = LOOK_S[0], monotonic() + TELL_S, ""
    while await _patiently(lambda: _status(database, row_id)) in ("pending", "processing"):
        if monotonic() >= tell_at:
            explanation = await _patiently(lambda: _explained(database, row_id))
            told = _tell(explanation, tell, told)
            tell_at = monotonic() + TELL_S
        await asyncio.sleep(look_s)
        look_s = min(look_s * 1.3, LOOK_S[1])
    return await _patiently(lambda: _explained(database, row_id))


def _tell(explanation: Explanation | None, tell: Callable[[str], None], told: str) -> str:
    """Say what it waits for: on a terminal all the time, elsewhere when the reason is another one."""
    if explanation is None:
        return told
    if sys.stderr.isatty():
        tell(explanation.why[0])
    elif explanation.reason not in (told, "due", "lease"):
        note(explanation.why[0])
        return explanation.reason
    return told


async def _status(database: Database, row_id: UUID) -> str | None:
    status: str | None = await database.fetchval(
        "SELECT email.status FROM public.email_queue AS email WHERE email.id = $1", row_id
    )
    return status


async def _explained(database: Database, row_id: UUID) -> Explanation | None:
    from postroom.queue.explain import explain
    from postroom.queues import EMAILS

    return await explain(database, [EMAILS], row_id)


async def _patiently(look: Callable[[], Awaitable[T]]) -> T:
    """Look again while the database is away: the e-mail is queued, whatever happens."""
    import asyncio

    ends = monotonic() + PATIENCE_S
    while True:
        try:
            return await look()
        except DatabaseUnavailable:
            if monotonic() > ends:
                raise
            await asyncio.sleep(LOOK_S[1])
