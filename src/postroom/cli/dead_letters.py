"""`postroom dead-letters`: what needs a person, in both queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.explain import print_attempts
from postroom.cli.house import actor, opened_room, run
from postroom.cli.ids import row_id_of
from postroom.cli.screen import (
    ROWS_ON_A_TERMINAL,
    Row,
    heading,
    is_terminal,
    note,
    print_facts,
    print_json,
    print_line,
    print_table,
    print_text,
    progress,
)
from postroom.errors import PostroomError
from postroom.wording import count_of

if TYPE_CHECKING:
    from postroom.queue.dead_letters import DeadLetter, Decided, What
    from postroom.queue.table import QueueTable

LIMIT = 10_000

app = typer.Typer(help="List, show, retry or discard dead letters, of both queues.", no_args_is_help=False)

Reason = Annotated[
    str | None,
    typer.Option(
        "--reason",
        metavar="R",
        help="permanent, exhausted, uncertain, poison, transport or stale; or a part of the last error.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Said = Annotated[
    str | None, typer.Option("--note", metavar="TEXT", help="Why, for the audit trail.", show_default=False)
]
Ids = Annotated[list[UUID] | None, typer.Argument(metavar="ID", parser=row_id_of, show_default=False)]


@app.command("list")
def list_(
    reason: Reason = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="How many, newest first.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """List dead letters, newest first."""
    run(_list(reason, limit or (ROWS_ON_A_TERMINAL if is_terminal() and not json else LIMIT), json))


@app.command("show")
def show(row_id: Annotated[UUID, typer.Argument(metavar="ID", parser=row_id_of)], json: Json = False) -> None:
    """Show one dead letter: all that is known of it, its attempts and its body."""
    run(_show(row_id, json))


@app.command("retry")
def retry(
    ids: Ids = None,
    every: Annotated[bool, typer.Option("--all", help="All dead letters, or all with --reason.")] = False,
    reason: Reason = None,
    said: Said = None,
    json: Json = False,
) -> None:
    """Give dead letters all their attempts again."""
    if every == bool(ids):
        raise WrongUsage("name the dead letters' ids, or --all")
    if reason is not None and not every:
        raise WrongUsage("--reason goes with --all")
    run(_decide("retry", ids, reason, said, json))


@app.command("discard")
def discard(ids: Ids = None, said: Said = None, json: Json = False) -> None:
    """Give dead letters up: they are kept as failed until cleanup takes them."""
    if not ids:
        raise WrongUsage("name the dead letters' ids")
    run(_decide("discard", ids, None, said, json))


async def _list(reason: str | None, limit: int, json: bool) -> None:
    from postroom.queue.dead_letters import list_dead_letters
    from postroom.queues import QUEUES

    async with opened_room() as room:
        letters, total = await list_dead_letters(room.database, QUEUES, reason=reason, limit=limit)
    if json:
        print_json(letters)
    elif is_terminal():
        _show_list(letters, reason)
    elif letters:
        columns = ["ID", "QUEUE", "SINCE", "REASON", "ABOUT", "LAST ERROR"]
        print_table(columns, [_row_of(letter) for letter in letters])
    if total > len(letters):
        note(f"{len(letters):,} of {count_of(total, 'dead letter')}; --limit shows more")


def _row_of(letter: DeadLetter) -> Row:
    about = next(iter(letter.about.values()))
    return letter.id, letter.queue, letter.failed_at, letter.reason or "-", about, letter.last_error


def _show_list(letters: Sequence[DeadLetter], reason: str | None) -> None:
    """In cards: an id that is cut off cannot be copied, and a table of these needs 150 columns."""
    if not letters:
        print_line("There are no dead letters." if reason is None else f"No dead letter has {reason!r}.")
    for letter in letters:
        since = f"{letter.failed_at.astimezone():%Y-%m-%d %H:%M:%S}" if letter.failed_at else ""
        print_line(f"{letter.id}  {letter.queue}  {letter.reason or '-'}  {since}")
        print_text(" · ".join(value for value in letter.about.values() if value), "    ")
        if letter.last_error:
            print_text(letter.last_error, "    ")


async def _show(row_id: UUID, json: bool) -> None:
    from postroom.queue.dead_letters import read_row
    from postroom.queues import QUEUES

    async with opened_room() as room:
        for queue in QUEUES:
            row = await read_row(room.database, queue, row_id)
            if row is not None:
                break
        else:
            raise PostroomError(f"there is no row {row_id} in either queue: `postroom dead-letters list`")
    if row["status"] != "dead_letter":
        raise PostroomError(f"{row_id} is {row['status']}, no dead letter: `postroom explain {row_id}`")
    if json:
        print_json({"queue": queue.name, **row})
    else:
        _print_row(queue, row)


def _print_row(queue: QueueTable, row: Mapping[str, Any]) -> None:
    from postroom.queue.explain import attempts_of

    attempts = attempts_of(row["attempt_log"])
    apart = {*queue.hidden, "attempt_log"}
    facts = {name: value for name, value in row.items() if name not in apart and value not in (None, {}, [])}
    print_facts({"queue": queue.name, **facts})
    if attempts:
        heading("Attempts")
        print_attempts(attempts)
    for column in queue.hidden:
        if row.get(column):
            heading(column)
            _print_body(row[column])


def _print_body(body: object) -> None:
    """A body as it is, but for what a terminal would obey."""
    if isinstance(body, str):
        for line in body.splitlines():
            print_line(line)
    else:
        print_json(body)


async def _decide(
    what: What, ids: list[UUID] | None, reason: str | None, said: str | None, json: bool
) -> None:
    from postroom.queue.dead_letters import decide, decide_all
    from postroom.queues import QUEUES

    word, by = ("retried" if what == "retry" else "discarded"), actor()
    async with opened_room() as room:
        with progress(f"{word} 0") as tell:

            def report(done: int) -> None:
                tell(f"{word} {done:,}")

            if ids:
                decided = await decide(room.database, QUEUES, what, ids, by=by, note=said, report=report)
            else:
                decided = await decide_all(
                    room.database, QUEUES, what, reason=reason, by=by, note=said, report=report
                )
    if json:
        print_json({word: decided.done, "missed": {str(key): value for key, value in decided.missed.items()}})
    else:
        print_line(f"{count_of(len(decided.done), 'dead letter')} {word}")
    if decided.missed:
        raise PostroomError(_missed(decided))


def _missed(decided: Decided) -> str:
    row_id, state = next(iter(decided.missed.items()))
    what = f"is {state}, no dead letter" if " " not in state else state
    if state == "unknown":
        what = "is in neither queue"
    more = f"; and {len(decided.missed) - 1:,} more" if len(decided.missed) > 1 else ""
    return f"{row_id} {what}{more}; `postroom dead-letters list` shows what there is"
