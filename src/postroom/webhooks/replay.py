"""Replay: events run the handlers that they have missed, or one of them again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from postroom.database.audit import Actor, record, record_alone
from postroom.database.connect import Database
from postroom.errors import ConfigError
from postroom.webhooks.source import Handler, Source

BATCH_ROWS = 1_000
PAGE_ROWS = 100_000
"""Ids that are read at once. No index leads to them: each page reads the table once."""

_DEADLINE_S = 600.0

# $1 source, $2 since, $3 until, $4 the handler that runs again, $5 and $6 handlers and their patterns.
_CHOSEN = """
    FROM public.webhook_retry_queue AS event
    CROSS JOIN LATERAL (
        SELECT array_agg(DISTINCT wanted.handler ORDER BY wanted.handler) AS handlers
        FROM unnest($5::text[], $6::text[]) AS wanted (handler, pattern)
        WHERE (wanted.pattern = '%' OR event.event_type LIKE wanted.pattern)
            AND (wanted.handler = $4 OR wanted.handler <> ALL (event.handlers_done))
    ) AS due
    WHERE event.webhook_type = $1
        AND event.status IN ('processed', 'dead_letter')
        AND event.payload <> '{"_emptied": true}'  -- retention.body: there is nothing left to handle
        AND event.created_at >= $2
        AND event.created_at < $3
        AND CASE WHEN $4::text IS NULL THEN due.handlers IS NOT NULL ELSE $4 = ANY (due.handlers) END
"""


class UnknownSource(ConfigError):
    """Neither postroom.toml nor a program's handler names this source."""


class UnknownHandler(ConfigError):
    """Neither postroom.toml nor a program has this handler of the source."""


@dataclass(frozen=True, slots=True)
class Selection:
    """
    Which events of a source are replayed.

    Attributes:
        until: They came before it.
        handler: The one that runs again where it is done; None where none does.
        handlers: All that the source has, of postroom.toml and of programs.
    """

    source: str
    since: datetime
    until: datetime
    handler: str | None
    handlers: tuple[Handler, ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """
    An event that a replay would take.

    Attributes:
        handlers: Those that would run.
    """

    id: UUID
    event_id: str | None
    type: str | None
    status: str
    created_at: datetime
    handlers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """
    What became of a replay.

    Attributes:
        count: The events that run again.
        refused: How many rows refuse their update, by a trigger of the application's own.
        why: The first one's error.
    """

    count: int
    refused: int = 0
    why: str | None = None


async def select_events(
    database: Database,
    sources: dict[str, Source],
    name: str,
    since: datetime,
    until: datetime | None = None,
    handler: str | None = None,
) -> Selection:
    """
    What a replay is about.

    Args:
        until: None stands for now, by the database's clock.

    Raises:
        UnknownSource: Nobody has it.
        UnknownHandler: The source has none of this name.
        ConfigError: The source has no handler at all.
    """
    rows = await database.fetch(_OF_PROGRAMS)
    if name not in sources and not any(row["source"] == name for row in rows):
        known = ", ".join(dict.fromkeys((*sources, *(row["source"] for row in rows))))
        raise UnknownSource(f"there is no source {name!r}; sources: {known or 'none'}")
    handlers = _handlers(sources, rows, name)
    if not handlers:
        raise ConfigError(
            f"source {name} has no handler: write one into postroom.toml, or start its worker --app"
        )
    names = dict.fromkeys(one.name for one in handlers)
    if handler is not None and handler not in names:
        raise UnknownHandler(f"source {name} has no handler {handler!r}; handlers: {', '.join(names)}")
    now: datetime = await database.fetchval("SELECT clock_timestamp()")
    return Selection(name, since, until or now, handler, handlers)


async def handlers_of(database: Database, sources: dict[str, Source], name: str) -> tuple[Handler, ...]:
    """The handlers that a source has, of postroom.toml and of programs."""
    return _handlers(sources, await database.fetch(_OF_PROGRAMS), name)


async def replay_event(
    database: Database, event_id: UUID, handler: str | None, by: Actor, *, all_handlers: bool = False
) -> bool:
    """
    Run the handlers that an event has missed, and one of them that is done, or all.

    Returns:
        False where the event is neither processed nor a dead letter, or its body was emptied.
    """
    async with database.transaction() as connection:
        rows = await connection.fetch(
            "SELECT postroom.replay_webhooks(ARRAY[$1::uuid], $2, $3, $4) AS id",
            event_id,
            handler,
            all_handlers,
            by.name,
        )
        if rows:
            chosen = "all" if all_handlers else handler
            about = {"queue": "webhook", "ids": [str(event_id)]} | ({"handler": chosen} if chosen else {})
            await record(connection, by, "webhook.replay", about)
    return bool(rows)


async def preview(database: Database, selection: Selection, limit: int) -> tuple[list[Chosen], int]:
    """The oldest events that a replay would take, and how many there are in all."""
    arguments = _arguments(selection)
    total: int = await database.fetchval(f"SELECT count(*) {_CHOSEN}", *arguments, deadline_s=_DEADLINE_S)
    rows = await database.fetch(
        f"""
        SELECT
            event.id, event.webhook_event_id, event.event_type, event.status, event.created_at, due.handlers
        {_CHOSEN}
        ORDER BY event.created_at, event.id
        LIMIT $7
        """,
        *arguments,
        limit,
        deadline_s=_DEADLINE_S,
    )
    return [
        Chosen(
            id=row["id"],
            event_id=row["webhook_event_id"],
            type=row["event_type"],
            status=row["status"],
            created_at=row["created_at"],
            handlers=tuple(row["handlers"]),
        )
        for row in rows
    ], total


async def replay(
    database: Database, selection: Selection, by: Actor, report: Callable[[int], None] = lambda _done: None
) -> Replayed:
    """
    Make these events pending again, oldest first, in batches that each commit.

    One that is handled again meanwhile is not taken twice: they are gone through as they came. Where there
    are any, the audit trail has two entries: one before the first batch, one with what became of them.

    Args:
        report: Takes how many are done so far.
    """
    count, refused, why = 0, 0, None
    begun = False
    async for ids in _batches(database, selection):
        if not begun:
            await record_alone(database, by, "webhook.replay", _about(selection) | {"state": "begun"})
            begun = True
        done, errors = await _replay_batch(database, ids, selection.handler, by)
        count += done
        refused += len(errors)
        why = why or next(iter(errors), None)
        report(count)
    if begun:
        ended = {"count": count, "refused": refused, "state": "done"}
        await record_alone(database, by, "webhook.replay", _about(selection) | ended)
    return Replayed(count, refused, why)


async def _batches(database: Database, selection: Selection) -> AsyncIterator[list[UUID]]:
    after, last = selection.since, UUID(int=0)
    while True:
        page = await database.fetch(
            f"""
            SELECT event.id, event.created_at
            {_CHOSEN}
                AND (event.created_at, event.id) > ($7, $8)
            ORDER BY event.created_at, event.id
            LIMIT $9
            """,
            *_arguments(selection),
            after,
            last,
            PAGE_ROWS,
            deadline_s=_DEADLINE_S,
        )
        for start in range(0, len(page), BATCH_ROWS):
            yield [row["id"] for row in page[start : start + BATCH_ROWS]]
        if len(page) < PAGE_ROWS:
            return
        after, last = page[-1]["created_at"], page[-1]["id"]


def _about(selection: Selection) -> dict[str, Any]:
    about: dict[str, Any] = {"source": selection.source, "since": selection.since, "until": selection.until}
    return about | ({"handler": selection.handler} if selection.handler else {})


async def _replay_batch(
    database: Database, ids: Sequence[UUID], handler: str | None, by: Actor
) -> tuple[int, list[str]]:
    """How many run again, and the errors of rows that refuse their update."""
    try:
        rows = await database.fetch(
            "SELECT postroom.replay_webhooks($1, $2, p_by => $3) AS id",
            list(ids),
            handler,
            by.name,
            deadline_s=_DEADLINE_S,
        )
        return len(rows), []
    except asyncpg.InsufficientPrivilegeError:
        raise
    except asyncpg.PostgresError as error:
        if len(ids) == 1:
            return 0, [str(error)]
    # A row's own trigger or constraint refuses: one by one, and the others go on.
    count, errors = 0, []
    for row_id in ids:
        done, refused = await _replay_batch(database, [row_id], handler, by)
        count += done
        errors += refused
    return count, errors


_OF_PROGRAMS = "SELECT source, name, events FROM postroom.handlers ORDER BY source, name"


def _handlers(sources: dict[str, Source], rows: Sequence[Any], name: str) -> tuple[Handler, ...]:
    written = sources[name].handlers if name in sources else ()
    of_programs = [Handler(row["name"], tuple(row["events"])) for row in rows if row["source"] == name]
    return (*written, *of_programs)


def _arguments(selection: Selection) -> tuple[object, ...]:
    wanted = [(one.name, _like(pattern)) for one in selection.handlers for pattern in one.events]
    return (
        selection.source,
        selection.since,
        selection.until,
        selection.handler,
        [name for name, _ in wanted],
        [pattern for _, pattern in wanted],
    )


def _like(pattern: str) -> str:
    """A pattern of types as LIKE has it; `*` alone also takes events without a type, see Handler.wants."""
    return "".join({"*": "%", "%": r"\%", "_": r"\_", "\\": r"\\"}.get(one, one) for one in pattern)
