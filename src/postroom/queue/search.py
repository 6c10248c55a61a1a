"""
Lists of rows, a page at a time and in both directions, and what is found in them.

A page costs the same with ten rows and with ten million: it is read from an index, from where the page
beside it ends. A search goes through such pages until it has found enough or has looked for long enough, and
says how far it came: no index of all addresses and subjects has to be kept, which each mail would pay for
(docs/decisions/0030).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from time import monotonic
from typing import Any, LiteralString

import asyncpg
import orjson

from postroom.database.connect import Database
from postroom.database.connection import Connection
from postroom.queue.parts import REASONS, Argument, Part, State, parts_of
from postroom.queue.table import QueueTable

PAGE_ROWS = 50
LOOK_S = 0.12
"""A search answers after about this time, with what it has, and where it goes on from."""

SCAN_ROWS = (2_000, 50_000)
"""Rows that are looked through at once: at first, and at most."""

_IN_ORDER: LiteralString = (
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"
)
_WHOLLY: LiteralString = "SET LOCAL enable_incremental_sort = off"

_DEADLINE_S = 10.0


def in_order(reason: str | None) -> LiteralString:
    """
    Statements that have PostgreSQL walk along an index for the rest of a transaction.

    Where it believes a table to be empty (a fresh installation, a restored dump) it reads all rows and
    sorts them, once for each page. Rows with equal times are sorted all the same, but those of one reason,
    whose index is wholly in order: by statistics that know of no dead letters it would take the index of all
    reasons, and sort.
    """
    return _IN_ORDER if reason is None else f"{_IN_ORDER}; {_WHOLLY}"


class InvalidCursor(ValueError):
    """A place in a list that was not made here."""


@dataclass(frozen=True, slots=True)
class Filters:
    """
    What is asked for; a row must have all of it. A text is found in any case, anywhere.

    Attributes:
        text: In any of the columns that are searched.
        columns: In this one: by a name of QueueTable.filters, such as `to`.
        since, until: By the time that the list goes by, of live rows by when they were queued; `since`
            belongs to it, `until` does not.
        reason: Of dead letters: one of REASONS, `none` (an old caller gave it up), or a part of the last
            error.
    """

    text: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    reason: str | None = None

    @property
    def known_reason(self) -> str | None:
        """The reason where it is one that stands in the row."""
        return self.reason if self.reason in (*REASONS, "none") else None

    @property
    def searches(self) -> bool:
        """Whether rows must be looked at one by one: no index has what is asked for."""
        return bool(self.text or self.columns) or self.reason != self.known_reason

    @property
    def timed(self) -> bool:
        """Whether only rows with a time are asked for."""
        return self.since is not None or self.until is not None


@dataclass(frozen=True, slots=True)
class Listing:
    """
    A page of a list.

    Attributes:
        rows: id, queue, status, `at` (the time that the list goes by; None where it has none), attempts,
            last_error, waits_for, dead_reason, created_at, `about` (the values of the queue's columns of this
            name) and, of one queue, the columns that are listed.
        next: Where the next page begins; None where this is the last one.
        previous: Where the page before ends; None where this is the first one.
        looked_through: Rows that were read without an end of the list or of the page being reached.
        looked_to: The time of the last of them.
    """

    rows: list[dict[str, Any]]
    next: str | None
    previous: str | None
    looked_through: int = 0
    looked_to: datetime | None = None


async def list_rows(
    database: Database,
    queues: Sequence[QueueTable],
    state: State,
    filters: Filters | None = None,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int = PAGE_ROWS,
    look_s: float | None = None,
) -> Listing:
    """
    Rows in one state: those that wait in the order in which they go, all others newest first.

    Args:
        queues: One; or several, of dead letters only.
        state: One of STATES; `all` has them one after the other: in flight and waiting, dead letters, given
            up, done.
        after: Listing.next of the page before.
        before: Listing.previous of the page behind.
        look_s: How long a search looks; LOOK_S.

    Raises:
        InvalidCursor: That is no place in this list.
        DatabaseUnavailable: No answer in time.
    """
    filters = filters or Filters()
    back = before is not None
    place = _read_cursor(before or after)
    beyond_row = before is not None or after is not None
    async with database.transaction(deadline_s=_DEADLINE_S) as connection:
        await connection.execute(in_order(filters.known_reason))
        search = _Search(
            connection,
            queues,
            filters,
            back=back,
            parts=parts_of(queues[0], state, timed=filters.timed, reason=filters.known_reason),
            ends=monotonic() + (LOOK_S if look_s is None else look_s),
        )
        await search.look(place, limit)
    if back:
        search.rows.reverse()
    onward = None if search.onward is None else _write_cursor(search.onward)
    # What lies behind us begins before the first row that was looked at, whether or not it is shown.
    behind = None
    if beyond_row:
        behind = _write_cursor(search.first or replace(place, including=True))
    ahead, behind = (behind, onward) if back else (onward, behind)
    looked_through = search.looked_through if search.onward is not None else 0
    return Listing(search.rows, ahead, behind, looked_through, search.looked_to)


@dataclass(frozen=True, slots=True)
class _Place:
    """
    A place in a list.

    Attributes:
        part: The number of its part; None is the list's first or last one.
        key: None stands for the part's end at which one comes in.
        including: Whether a row at this very place lies beyond it.
    """

    part: int | None
    key: Sequence[str] | None
    including: bool = False


@dataclass(slots=True)
class _Search:
    """
    One way through a list, until a page is full, the time is over or the list ends.

    Attributes:
        rows: What was found.
        first: The place of the first row that was looked at.
        onward: Where it goes on; None where the list has ended.
    """

    connection: Connection
    queues: Sequence[QueueTable]
    filters: Filters
    back: bool
    parts: list[Part]
    ends: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    first: _Place | None = None
    onward: _Place | None = None
    looked_through: int = 0
    looked_to: datetime | None = None
    scan_rows: int = 0

    async def look(self, place: _Place, limit: int) -> None:
        numbers = list(range(len(self.parts)))
        if self.back:
            numbers.reverse()
        begin = numbers[0] if place.part is None else place.part
        if begin not in numbers:
            raise InvalidCursor(place)
        for number in numbers[numbers.index(begin) :]:
            part_place = place if number == begin else _Place(number, None)
            if await self._look_into(number, part_place, limit):
                return

    async def _look_into(self, number: int, place: _Place, limit: int) -> bool:
        """Whether it is enough: onward says where the rest begins."""
        part, key = self.parts[number], place.key
        beyond = part.beyond("$2::text[]", back=self.back, including=place.including) if key else ["true"]
        while beyond:
            if monotonic() > self.ends and self.first is not None:
                self.onward = _Place(number, key)
                return True
            wanted = limit - len(self.rows)
            scan = self._rows_at_once(part, wanted)
            began = monotonic()
            found = await self._fetch(part, beyond[0], key, scan, wanted + 1)
            hits = [row for row in found if row["hit"]]
            if self.first is None and found:
                self.first = _Place(number, found[0]["key"])
            if len(hits) > wanted:
                self.rows += [self._readable(row) for row in hits[:wanted]]
                if wanted:
                    key = hits[wanted - 1]["key"]
                self.onward = _Place(number, key)
                self.looked_through = 0
                return True
            self.rows += [self._readable(row) for row in hits]
            is_whole = bool(found) and found[-1]["place"] == scan
            key = found[-1]["key"] if found else key
            if not is_whole:
                beyond.pop(0)
                continue
            self.looked_through += scan
            self.looked_to = found[-1]["at"] if part.asked == part.at else None
            beyond = part.beyond("$2::text[]", back=self.back)
            self._pace(scan, monotonic() - began)
        return False

    def _rows_at_once(self, part: Part, wanted: int) -> int:
        """How many rows one statement looks through: where each is a hit, no more than are wanted."""
        if part.hit or self.filters.searches or (self.filters.timed and part.asked != part.at):
            return self.scan_rows or SCAN_ROWS[0]
        return wanted + 1

    def _pace(self, rows: int, took_s: float) -> None:
        """No more at once than fit into half of the time that is left: the next rows may be on a disk."""
        left_s = max(self.ends - monotonic(), 0.0)
        fits = round(rows / max(took_s, 1e-6) * left_s / 2)
        self.scan_rows = max(min(rows * 4, fits, SCAN_ROWS[1]), SCAN_ROWS[0])

    async def _fetch(
        self, part: Part, beyond: str, key: Sequence[str] | None, scan: int, hits: int
    ) -> list[Any]:
        """Rows that are hits, and the first and the last that were looked at, in the order of the way."""
        values: list[object] = [scan, key or []]

        def argument(value: object) -> str:
            values.append(value)
            return f"${len(values)}"

        sql = page_of(self.queues, part, beyond, self.filters, argument, back=self.back, hits=hits)
        try:
            found = await self.connection.fetch(sql, *values, timeout=_DEADLINE_S)
        except asyncpg.DataError as error:
            raise InvalidCursor(str(error)) from error
        return sorted(found, key=lambda row: int(row["place"]))

    def _readable(self, row: Any) -> dict[str, Any]:
        return {
            name: value
            for name, value in row.items()
            if name not in ("hit", "place") and not name.startswith("key")
        }


def conditions(queue: QueueTable, filters: Filters, argument: Argument) -> str:
    """What a row `item` must have besides its state, time and reason, as SQL; empty where it is nothing."""
    found: list[str] = []
    if filters.text:
        pattern = argument(_pattern(filters.text))
        found.append(" OR ".join(f"item.{column} ILIKE {pattern}" for column in queue.filters.values()))
    for name, text in filters.columns.items():
        found.append(f"item.{queue.filters[name]} ILIKE {argument(_pattern(text))}")
    if filters.reason is not None and filters.known_reason is None:
        reason = argument(filters.reason)
        found.append(f"postroom.dead_letter_is({reason}::text, item.dead_reason, item.last_error)")
    return " AND ".join(f"COALESCE({each}, false)" for each in found)


def within(asked: str, filters: Filters, argument: Argument) -> str:
    """That a time lies between since and until, as SQL."""
    found = [] if filters.since is None else [f"{asked} >= {argument(filters.since)}::timestamptz"]
    if filters.until is not None:
        found.append(f"{asked} < {argument(filters.until)}::timestamptz")
    return " AND ".join(found)


def page_of(
    queues: Sequence[QueueTable],
    part: Part,
    beyond: str,
    filters: Filters,
    argument: Argument,
    *,
    back: bool,
    hits: int,
) -> str:
    """
    The statement that reads rows beyond a place: the hits, and the first and the last that were looked at.

    $1 is how many rows are looked at, $2 the place; at most `hits` are given.

    Only row_number() stands between the index and the outer LIMIT, and gives rows on as they come: with
    enough hits the rest is not looked at.
    """
    ordered = part.ordered(back=back)
    several = len(queues) > 1
    branches = [
        f"({_branch(queue, part, beyond, filters, argument, several=several)} ORDER BY {ordered} LIMIT $1)"
        for queue in queues
    ]
    # Of several queues each gives its first rows, and the first of these are the first of all.
    rows = " UNION ALL ".join(branches)
    merged = ", ".join(
        f"item.key{place} {'DESC' if falls is not back else 'ASC'}"
        for place, (_, _, falls) in enumerate(part.order)
    )
    looked_at = f"SELECT * FROM ({rows}) AS item ORDER BY {merged} LIMIT $1" if several else rows  # noqa: S608
    key = ", ".join(f"looked_at.key{place}::text" for place in range(len(part.order)))
    return f"""
        SELECT looked_at.*, ARRAY[{key}] AS key
        FROM (
            SELECT item.*, row_number() OVER () AS place
            FROM ({looked_at}) AS item
        ) AS looked_at
        WHERE looked_at.hit OR looked_at.place IN (1, $1)
        LIMIT {hits + 2}
    """  # noqa: S608 - names of ours


def _branch(
    queue: QueueTable, part: Part, beyond: str, filters: Filters, argument: Argument, *, several: bool
) -> str:
    """The rows of one queue. A time that no index has in order says what is a hit, not what is looked at."""
    keys = ", ".join(f"{expression} AS key{place}" for place, (expression, _, _) in enumerate(part.order))
    columns = f"ARRAY[{', '.join(f'item.{column}' for column in queue.about)}] AS about"
    if not several:
        columns = ", ".join([columns, *(f"item.{column}" for column in queue.listed)])
    hit = " AND ".join(each for each in (part.hit, conditions(queue, filters, argument)) if each)
    where = f"{part.rows_of(queue)} AND {beyond} AND $2::text[] IS NOT NULL"
    if part.asked is not None and (time := within(part.asked, filters, argument)):
        if part.asked == part.at:
            where = f"{where} AND {time}"
        else:
            hit = f"{hit} AND COALESCE({time}, false)" if hit else f"COALESCE({time}, false)"
    return f"""
        SELECT
            item.id, '{queue.name}' AS queue, item.status, {part.at or "NULL::timestamptz"} AS at,
            COALESCE(item.attempts, 0) AS attempts, item.last_error, item.created_at, item.waits_for,
            item.dead_reason, {columns}, {keys}, ({hit or "true"}) AS hit
        FROM {queue.table} AS item
        WHERE {where}
    """  # noqa: S608 - names of ours


def _pattern(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _write_cursor(place: _Place) -> str:
    return orjson.dumps([place.part, int(place.including), *(place.key or [])]).decode()


def _read_cursor(cursor: str | None) -> _Place:
    if not cursor:
        return _Place(None, None)
    try:
        part, including, *key = orjson.loads(cursor)
    except (orjson.JSONDecodeError, ValueError, TypeError):
        raise InvalidCursor(cursor) from None
    texts = all(isinstance(each, str) for each in key)
    if type(part) is not int or including not in (0, 1) or not texts or len(key) > 3:
        raise InvalidCursor(cursor)
    return _Place(part, key or None, bool(including))
