"""`postroom dead-letters`: what needs a person, in both queues."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.explain import print_attempts
from postroom.cli.house import actor, opened_room, run
from postroom.cli.ids import row_id_of
from postroom.cli.moments import moment_of
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
from postroom.errors import PermanentFailure, PostroomError
from postroom.wording import count_of

if TYPE_CHECKING:
    from postroom.database.audit import Actor
    from postroom.database.connect import Database
    from postroom.queue.dead_letters import DeadLetter, Decided, What
    from postroom.queue.search import Filters
    from postroom.queue.table import QueueTable

LIMIT = 10_000

app = typer.Typer(
    help="List, show, retry, edit or discard dead letters, of both queues.", no_args_is_help=False
)

Reason = Annotated[
    str | None,
    typer.Option(
        "--reason",
        metavar="R",
        help="permanent, exhausted, uncertain, poison, transport, stale or none (an old caller's); "
        "or a part of the last error.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Said = Annotated[
    str | None,
    typer.Option(
        "--note", metavar="TEXT", help="Why: for its history and the audit trail.", show_default=False
    ),
]
Ids = Annotated[list[UUID] | None, typer.Argument(metavar="ID", parser=row_id_of, show_default=False)]


@app.command("list")
def list_(
    reason: Reason = None,
    search: Annotated[
        str | None,
        typer.Option(
            "--search",
            metavar="TEXT",
            help="Anywhere in an address, subject, type, event id or error.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="T", help="Died since: ISO 8601, or 2h, 3d ago.", show_default=False),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="T", help="Died before it.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, max=100_000, help="How many, newest first.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List dead letters, newest first."""
    from postroom.queue.search import Filters

    now = datetime.now(UTC)
    first = None if since is None else moment_of("--since", since, now)
    end = None if until is None else moment_of("--until", until, now, ends=True)
    if first is not None and end is not None and first >= end:
        raise WrongUsage(f"no time lies between --since {since} and --until {until}")
    filters = Filters(text=search or "", since=first, until=end, reason=reason)
    run(_list(filters, limit or (ROWS_ON_A_TERMINAL if is_terminal() and not json else LIMIT), json))


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
def discard(
    ids: Ids = None,
    every: Annotated[bool, typer.Option("--all", help="All dead letters, or all with --reason.")] = False,
    reason: Reason = None,
    said: Said = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --all: do not ask.")] = False,
    json: Json = False,
) -> None:
    """Discard dead letters: they are not tried again, and kept as failed until cleanup takes them."""
    if every == bool(ids):
        raise WrongUsage("name the dead letters' ids, or --all")
    if reason is not None and not every:
        raise WrongUsage("--reason goes with --all")
    if every and not yes and not (is_terminal() and sys.stdin.isatty()):
        raise WrongUsage("discard --all asks before it begins: without a terminal, say --yes")
    run(_decide("discard", ids, reason, said, json, ask=every and not yes))


@app.command("edit")
def edit(
    row_id: Annotated[UUID, typer.Argument(metavar="ID", parser=row_id_of)],
    to: Annotated[str | None, typer.Option("--to", metavar="ADDRESS", help="One address.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", metavar="TEXT")] = None,
    html_file: Annotated[
        str | None, typer.Option("--html-file", metavar="FILE", help="The HTML; - reads stdin.")
    ] = None,
    text_file: Annotated[
        str | None,
        typer.Option(
            "--text-file", metavar="FILE", help="The plain part; with --html-file alone it is made from that."
        ),
    ] = None,
) -> None:
    """Mend a dead e-mail: another one goes out in its place. Prints its id."""
    if (to, subject, html_file, text_file) == (None, None, None, None):
        raise WrongUsage("say what is to change: --to, --subject, --html-file or --text-file")
    if html_file == text_file == "-":
        raise WrongUsage("only one of --html-file and --text-file can be read from stdin")
    html = None if html_file is None else _read("--html-file", html_file)
    text = None if text_file is None else _read("--text-file", text_file)
    run(_edit(row_id, to, subject, html, text))


async def _list(filters: Filters, limit: int, json: bool) -> None:
    from postroom.queue.dead_letters import count_dead_letters, list_dead_letters
    from postroom.queues import QUEUES

    async with opened_room() as room:
        letters, more = await list_dead_letters(room.database, QUEUES, filters, limit=limit)
        total = await count_dead_letters(room.database, QUEUES, filters) if more else len(letters)
    if json:
        print_json(letters)
    elif is_terminal():
        _show_list(letters, filters)
    elif letters:
        columns = ["ID", "QUEUE", "SINCE", "REASON", "ABOUT", "LAST ERROR"]
        print_table(columns, [_row_of(letter) for letter in letters])
    if more:
        note(f"{len(letters):,} of {count_of(total, 'dead letter')}; --limit shows more")


def _row_of(letter: DeadLetter) -> Row:
    about = next(iter(letter.about.values()))
    return letter.id, letter.queue, letter.failed_at, letter.reason or "-", about, letter.last_error


def _show_list(letters: Sequence[DeadLetter], filters: Filters) -> None:
    """In cards: an id that is cut off cannot be copied, and a table of these needs 150 columns."""
    if not letters:
        print_line(_none(filters))
    for letter in letters:
        since = f"{letter.failed_at.astimezone():%Y-%m-%d %H:%M:%S}" if letter.failed_at else ""
        print_line(f"{letter.id}  {letter.queue}  {letter.reason or '-'}  {since}")
        print_text(" · ".join(value for value in letter.about.values() if value), "    ")
        if letter.last_error:
            print_text(letter.last_error, "    ")


def _none(filters: Filters) -> str:
    if filters.text or filters.timed:
        return "No dead letter is like that."
    return (
        "There are no dead letters." if filters.reason is None else f"No dead letter has {filters.reason!r}."
    )


async def _show(row_id: UUID, json: bool) -> None:
    from postroom.email.attachments import without_contents
    from postroom.queue.dead_letters import read_row
    from postroom.queues import EMAILS, QUEUES

    async with opened_room() as room:
        for queue in QUEUES:
            row = await read_row(room.database, queue, row_id)
            if row is not None:
                break
        else:
            raise PostroomError(f"there is no row {row_id} in either queue: `postroom dead-letters list`")
        if queue is EMAILS:
            try:
                row["attachments"] = without_contents(await room.emails.attachments(row_id))
            except PermanentFailure as error:
                row["attachments"] = str(error)
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
    what: What, ids: list[UUID] | None, reason: str | None, said: str | None, json: bool, *, ask: bool = False
) -> None:
    from postroom.queue.dead_letters import count_dead_letters, decide
    from postroom.queue.search import Filters
    from postroom.queues import QUEUES

    word, by, stopped = ("retried" if what == "retry" else "discarded"), actor(), None
    async with opened_room() as room:
        if ask:
            group = Filters(reason=reason)
            total = count_of(await count_dead_letters(room.database, QUEUES, group), "dead letter")
            if not typer.confirm(f"Discard {total}?"):
                raise PostroomError("nothing was discarded")
        with progress(f"{word} 0") as tell:

            def report(done: int) -> None:
                tell(f"{word} {done:,}")

            if ids:
                decided = await decide(room.database, QUEUES, what, ids, by=by, note=said, report=report)
            else:
                decided, stopped = await _decide_all(room.database, what, reason, said, by, report)
    if json:
        print_json({word: decided.done, "missed": {str(key): value for key, value in decided.missed.items()}})
    else:
        print_line(f"{count_of(len(decided.done), 'dead letter')} {word}")
    if stopped is not None:
        raise PostroomError(f"{stopped} has stopped it; calling it again goes on")
    if decided.missed:
        raise PostroomError(_missed(decided))


async def _decide_all(
    database: Database,
    what: What,
    reason: str | None,
    said: str | None,
    by: Actor,
    report: Callable[[int], None],
) -> tuple[Decided, str | None]:
    """What has changed, and who stopped it where somebody did."""
    from postroom.queue import bulk
    from postroom.queue.dead_letters import Decided
    from postroom.queues import QUEUES

    action_id = await bulk.begin(database, QUEUES, what, reason=reason, by=by, note=said)
    changed = await bulk.run(database, action_id, by, report=report)
    action = await bulk.read_action(database, action_id)
    return Decided(changed.done, changed.missed), None if action is None else action.stopped_by


async def _edit(
    row_id: UUID, to: str | None, subject: str | None, html: str | None, text: str | None
) -> None:
    from postroom.email.replace import Mended, read_mendable, replace_dead

    async with opened_room() as room:
        if html is not None and text is None and (await read_mendable(room.database, row_id))["text"]:
            text = ""  # the plain part that was there says what the HTML said before
            note("its plain part is made from the new HTML; --text-file gives one")
        mended = Mended(to=to, subject=subject, html=html, text=text)
        print_line(str(await replace_dead(room.database, row_id, mended, actor())))


def _read(option: str, name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise WrongUsage(f"{option} {name}: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise WrongUsage(f"{option} {name}: it is not written in UTF-8") from None


def _missed(decided: Decided) -> str:
    row_id, state = next(iter(decided.missed.items()))
    what = f"is {state}, no dead letter" if " " not in state else state
    if state == "unknown":
        what = "is in neither queue"
    more = f"; and {len(decided.missed) - 1:,} more" if len(decided.missed) > 1 else ""
    return f"{row_id} {what}{more}; `postroom dead-letters list` shows what there is"
