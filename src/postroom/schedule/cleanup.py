"""
Cleanup: what the retention settings say is old is forgotten, a few pages of a table at a time.

It may be stopped between any two batches, run beside another one, and begin anew: each batch commits by
itself, and what somebody has locked is left to the next time. What it is to go through is handed to it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

import asyncpg

from postroom import log
from postroom.database.connect import Database
from postroom.failpoints import reach

BATCH_PAGES = 64
"""Half a megabyte: some hundred rows, whose locks last for some milliseconds."""

PAUSE_S_MAX = 0.5
BATCH_DEADLINE_S = 60.0

_SLOTS = 65_536
"""Places of a page, as a row's address counts them: a batch is a range of page * _SLOTS + place."""

_PLACES_MAX = 2_048
"""More rows than any page has."""

_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class Step:
    """
    One table.

    Attributes:
        name: For people: what its rows are, in plural.
        function: Of SQL (p_from tid, p_to tid, p_dry_run boolean), returns (rule, count); ours.
    """

    name: str
    table: str
    function: str


@dataclass(slots=True)
class Cleaned:
    """
    What became of one step.

    Attributes:
        counts: Rows by rule, such as `sent`.
        refused: Rows that their own trigger or constraint keeps.
        why: The first one's error.
        stopped: It was told to end before the last page.
    """

    step: Step
    counts: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    why: str | None = None
    stopped: bool = False


async def cleanup(
    database: Database,
    steps: Sequence[Step],
    *,
    dry_run: bool = False,
    stop: asyncio.Event | None = None,
    report: Callable[[str], None] = lambda _text: None,
) -> list[Cleaned]:
    """
    Go through the tables, one after the other.

    Args:
        dry_run: Count, and change nothing.
        stop: Once it is set, no further batch is begun.
        report: Takes how far it is, for a screen.

    Raises:
        DatabaseUnavailable: What was committed before is done; call it again.
    """
    stop = stop or asyncio.Event()
    found = []
    for step in steps:
        if await _pages(database, step) is None:
            continue
        cleaned = Cleaned(step)
        found.append(cleaned)
        async for done, pages in _passed(database, cleaned, dry_run, stop):
            report(f"{step.name}: {done * 100 // max(pages, 1)} %, {cleaned.counts.total():,} so far")
    if not dry_run and not stop.is_set():
        await database.execute("SELECT postroom.cleanup_house()")
    return found


async def _passed(
    database: Database, cleaned: Cleaned, dry_run: bool, stop: asyncio.Event
) -> AsyncIterator[tuple[int, int]]:
    """One pass over a table; gives how many pages are done, of how many."""
    pages = await _pages(database, cleaned.step) or 0
    for page in range(0, pages, BATCH_PAGES):
        if stop.is_set():
            cleaned.stopped = True
            return
        began = monotonic()
        if (
            await _batch(database, cleaned, page * _SLOTS, (page + BATCH_PAGES) * _SLOTS, dry_run)
            and not dry_run
        ):
            # Five sixths of the time are the live queue's.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(5 * (monotonic() - began), PAUSE_S_MAX)):
                    await stop.wait()
        yield min(page + BATCH_PAGES, pages), pages


async def _pages(database: Database, step: Step) -> int | None:
    """How large a table is; None where it is none, or not ours to read."""
    pages: int | None = await database.fetchval(
        """
        SELECT pg_relation_size(class.oid) / current_setting('block_size')::bigint
        FROM pg_class AS class
        JOIN pg_namespace AS schema ON schema.oid = class.relnamespace
        WHERE schema.nspname || '.' || class.relname = $1
            AND class.relkind = 'r'
            AND has_schema_privilege(schema.oid, 'USAGE')
        """,
        step.table,
    )
    return pages


async def _batch(database: Database, cleaned: Cleaned, first: int, end: int, dry_run: bool) -> int:
    """One range of places; returns how many rows were found there."""
    try:
        reach("cleanup.batch.before")
        rows = await database.fetch(
            f"SELECT * FROM {cleaned.step.function}($1::text::tid, $2::text::tid, $3)",  # noqa: S608
            _tid(first),
            _tid(end),
            dry_run,
            deadline_s=BATCH_DEADLINE_S,
        )
        reach("cleanup.batch.after")
    except asyncpg.InsufficientPrivilegeError:
        raise
    except asyncpg.PostgresError as error:
        # A row's own trigger or constraint refuses: in halves, until it stands alone, and the others go.
        if end - first == 1:
            cleaned.refused += 1
            if cleaned.why is None:
                cleaned.why = str(error).partition("\n")[0]
                _log.warning("cleanup.refused", table=cleaned.step.table, error=cleaned.why)
            return 0
        halfway = _halfway(first, end)
        return await _batch(database, cleaned, first, halfway, dry_run) + await _batch(
            database, cleaned, halfway, end, dry_run
        )
    found = {row["rule"]: row["count"] for row in rows if row["count"]}
    cleaned.counts.update(found)
    return sum(found.values())


def _halfway(first: int, end: int) -> int:
    pages = (end - first) // _SLOTS
    if pages > 1:
        return first + pages // 2 * _SLOTS
    places = min(end - first, _PLACES_MAX)
    return first + places // 2


def _tid(place: int) -> str:
    return f"({place // _SLOTS},{place % _SLOTS})"
