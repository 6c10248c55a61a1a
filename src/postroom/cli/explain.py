"""`postroom explain`: why a message is where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from postroom.cli.house import opened_room, run
from postroom.cli.ids import row_id_of
from postroom.cli.screen import heading, print_json, print_line, print_table, print_text
from postroom.errors import PostroomError

if TYPE_CHECKING:
    from postroom.queue.explain import Attempt, Explanation


def explain(
    row_id: Annotated[
        UUID, typer.Argument(metavar="ID", parser=row_id_of, help="Of an e-mail or a webhook event.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say why a message is where it is, and what became of its attempts."""
    explanation = run(_explain(row_id))
    if explanation is None:
        raise PostroomError(f"there is no row {row_id} in either queue: nobody queued it, or cleanup took it")
    if json:
        print_json(explanation)
    else:
        _print(explanation)


async def _explain(row_id: UUID) -> Explanation | None:
    from postroom.queue.explain import explain as find
    from postroom.queues import QUEUES

    async with opened_room() as room:
        return await find(room.database, QUEUES, row_id, ways=room.transport_names)


def _print(explanation: Explanation) -> None:
    about = " · ".join(value for value in explanation.about.values() if value)
    print_line(f"{explanation.queue} {explanation.id}: {explanation.status}")
    if about:
        print_text(about, "  ")
    for line in explanation.why:
        print_text(line)
    if explanation.attempts:
        heading(f"Attempts ({explanation.attempts_counted} of {explanation.attempts_max} counted)")
        print_attempts(explanation.attempts)


def print_attempts(attempts: Sequence[Attempt]) -> None:
    """Print the attempts of a row, oldest first."""
    print_table(
        ["AT", "OUTCOME", "MS", "REPLY"],
        [(attempt.at, attempt.outcome, attempt.ms, _said(attempt)) for attempt in attempts],
        flexible=["REPLY"],
    )


def _said(attempt: Attempt) -> str | None:
    if attempt.by_email is not None:
        return (
            f"by e-mail {attempt.by_email}, by {attempt.by}"
            if attempt.by
            else f"by e-mail {attempt.by_email}"
        )
    if attempt.by is None:
        return attempt.reply
    return f"by {attempt.by}: {attempt.reply}" if attempt.reply else f"by {attempt.by}"
