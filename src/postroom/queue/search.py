"""
Lists of a queue's rows, a page at a time, and what is found in them by a text.

A page costs the same with ten rows and with ten million: it is read from an index, from where the page before
ended. A search goes through such pages until it has found enough or has looked for long enough, and says how
far it came: no index of all addresses and subjects has to be kept, which each mail would pay for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import asyncpg
import orjson

from postroom.database.connect import Database
from postroom.queue.table import QueueTable

PAGE_ROWS = 50
LOOK_S = 0.12
"""A search answers after about this time, with what it has, and where it goes on from."""

SCAN_ROWS = (2_000, 20_000)
"""Rows that are looked through at once: at first, and at most."""

STATES = ("waiting", "in_flight", "done", "dead_letter", "failed")
_DEADLINE_S = 10.0


class InvalidCursor(ValueError):
    """A place in a list that was not made here."""


@dataclass(frozen=True, slots=True)
class Listing:
    """
    A page of a list.

    Attributes:
        rows: id, status, `at` (the time that the list goes by; None where it has none), attempts,
            last_error, created_at, and the queue's own columns.
        next: Where the next page begins; None where this is the last one.
        looked_through: Rows that were read for it.
        looked_back_to: The time of the last of them.
    """

    rows: list[dict[str, Any]]
    next: str | None
    looked_through: int
    looked_back_to: str | None


async def list_rows(
    database: Database,
    queue: QueueTable,
    state: str,
    *,
    text: str = "",
    cursor: str | None = None,
    limit: int = PAGE_ROWS,
) -> Listing:
    """
    Rows in one state: those that wait in the order in which they go, all others newest first.

    Args:
        state: One of STATES.
        text: Found in any case, anywhere in an address, subject, type, event id or error; empty takes all.
        cursor: Listing.next of the page before.

    Raises:
        InvalidCursor: The cursor is none of ours.
        DatabaseUnavailable: No answer in time.
    """
    place = _read_cursor(cursor)
    rows: list[dict[str, Any]] = []
    looked_through, looked_back_to = 0, None
    scan = SCAN_ROWS[0] if text else limit + 1
    ends = monotonic() + LOOK_S
    parts = _parts(state, queue)
    if place.part not in range(len(parts)):
        raise InvalidCursor(cursor)
    for number in range(place.part, len(parts)):
        part = parts[number]
        key = place.key if number == place.part else None
        beyond = list(part.beyond if key else ("true",))
        while beyond:
            sql = _sql(queue, part, beyond[0], searched=bool(text))
            found = await _fetch(database, sql, scan, key or [], *([_pattern(text)] if text else []))
            hits = [dict(row) for row in found if row["hit"]]
            wanted = limit - len(rows)
            if len(hits) > wanted:
                rows += hits[:wanted]
                key = rows[-1]["key"] if wanted else key
                return Listing(rows, _write_cursor(number, key or []), looked_through, looked_back_to)
            rows += hits
            scanned = 0
            if found:
                scanned, key, looked_back_to = (found[-1][name] for name in ("scanned", "key", "at"))
            looked_through += scanned
            if scanned < scan:
                beyond.pop(0)
                continue
            if monotonic() > ends:
                return Listing(rows, _write_cursor(number, key or []), looked_through, looked_back_to)
            beyond = list(part.beyond)
            scan = min(scan * 3, SCAN_ROWS[1])
    return Listing(rows, None, looked_through, looked_back_to)


async def _fetch(database: Database, sql: str, *values: object) -> list[Any]:
    try:
        return await database.fetch(sql, *values, deadline_s=_DEADLINE_S)
    except asyncpg.DataError as error:
        raise InvalidCursor(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Place:
    part: int
    key: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class _Part:
    """
    A part of a list that one index has in order.

    Attributes:
        where: Which rows.
        at: The time that the list goes by.
        order: As in ORDER BY.
        key: What makes a place in it, as SQL.
        beyond: Conditions that together, one after the other, are all that stands behind the place $2.
    """

    where: str
    at: str
    order: str
    key: tuple[str, ...]
    beyond: tuple[str, ...]


def _parts(state: str, queue: QueueTable) -> list[_Part]:
    if state in ("waiting", "in_flight"):
        return [_live("pending" if state == "waiting" else "processing")]
    status = queue.done if state == "done" else state
    at = queue.done_at if state == "done" else "failed_at"
    return [
        _Part(
            where=f"item.status = '{status}' AND item.{at} IS NOT NULL",
            at=f"item.{at}",
            order=f"item.{at} DESC, item.id DESC",
            key=(f"item.{at}", "item.id"),
            beyond=(
                f"item.{at} <= ($2::text[])[1]::timestamptz AND (item.{at}, item.id) "
                "< (($2::text[])[1]::timestamptz, ($2::text[])[2]::uuid)",
            ),
        ),
        # An old caller may have left the time out.
        _Part(
            where=f"item.status = '{status}' AND item.{at} IS NULL",
            at="NULL",
            order="item.id",
            key=("item.id",),
            beyond=("item.id > ($2::text[])[1]::uuid",),
        ),
    ]


def _live(status: str) -> _Part:
    """By the index of claims: behind a place stand the rest of its priority, then the lower ones."""
    due = "COALESCE(item.due_at, item.next_retry_at, '-infinity'::timestamptz)"
    return _Part(
        where=f"item.status = '{status}'",
        at=due,
        order=f"item.priority DESC, {due}, item.id",
        key=("item.priority", due, "item.id"),
        beyond=(
            f"item.priority = ($2::text[])[1]::integer AND {due} >= ($2::text[])[2]::timestamptz "
            f"AND ({due}, item.id) > (($2::text[])[2]::timestamptz, ($2::text[])[3]::uuid)",
            "item.priority < ($2::text[])[1]::integer",
        ),
    )


def _sql(queue: QueueTable, part: _Part, beyond: str, *, searched: bool) -> str:
    """Rows that are hits, and the last that was looked at. $1 how many are, $2 the place, $3 the pattern."""
    columns = ", ".join(f"item.{column}" for column in queue.listed)
    key = ", ".join(f"({column})::text" for column in part.key)
    hit = " OR ".join(f"looked_at.{column} ILIKE $3" for column in queue.searched) if searched else "true"
    return f"""
        SELECT found.*
        FROM (
            SELECT
                looked_at.*, COALESCE({hit}, false) AS hit,
                row_number() OVER () AS place, count(*) OVER () AS scanned
            FROM (
                SELECT
                    item.id, item.status, ({part.at})::text AS at, COALESCE(item.attempts, 0) AS attempts,
                    item.last_error, item.created_at::text AS created_at, item.waits_for, item.dead_reason,
                    ARRAY[{key}] AS key, {columns}
                FROM {queue.table} AS item
                WHERE {part.where} AND {beyond} AND $2::text[] IS NOT NULL
                ORDER BY {part.order}
                LIMIT $1
            ) AS looked_at
        ) AS found
        WHERE found.hit OR found.place = found.scanned
        ORDER BY found.place
    """  # noqa: S608 - names of ours


def _pattern(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _write_cursor(part: int, key: Sequence[str]) -> str:
    return orjson.dumps([part, *key]).decode()


def _read_cursor(cursor: str | None) -> _Place:
    if cursor is None:
        return _Place(0, None)
    try:
        part, *key = orjson.loads(cursor)
    except (orjson.JSONDecodeError, ValueError, TypeError):
        raise InvalidCursor(cursor) from None
    if not isinstance(part, int) or not all(isinstance(each, str) for each in key) or len(key) > 3:
        raise InvalidCursor(cursor)
    return _Place(part, key)
