"""Dead letters: what needs a person. Reading them, and doing what the person has decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg
import orjson

from postroom.database.audit import Action, Actor, record
from postroom.database.connect import Database
from postroom.queue.parts import REASONS, of_reason
from postroom.queue.search import Filters, conditions, list_rows, within
from postroom.queue.statements import read_json
from postroom.queue.table import QueueTable

What = Literal["retry", "discard"]
"""What may be decided on a dead letter."""

BATCH_ROWS = 500
COUNTED_MAX = 10_000
"""Dead letters of a group beyond this many are not counted, where a page only shows the number."""

ERRORS_OF = 200
"""A group's most frequent errors are those of its newest dead letters, so many."""

_PARTICULAR = "[^[:space:]<>(),;:]+@[^[:space:]<>(),;:]+|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9]{4,}"
"""What an error says of one row alone: an address, an id, a number that is no code of a reply."""

_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter, without its body."""

    id: UUID
    queue: str
    reason: str | None
    last_error: str | None
    attempts: int
    failed_at: datetime | None
    created_at: datetime | None
    about: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Decided:
    """
    What became of a decision.

    Attributes:
        done: The ids that changed.
        missed: Those that are no dead letters, each with what it is: a status, `unknown`, or the
            error of a row that refuses its update.
    """

    done: list[UUID]
    missed: dict[UUID, str]


async def list_dead_letters(
    database: Database, queues: Sequence[QueueTable], filters: Filters, *, limit: int
) -> tuple[list[DeadLetter], bool]:
    """The newest dead letters of these queues, and whether there are more; it looks until it has them."""
    about = {queue.name: queue.about for queue in queues}
    found = await list_rows(database, queues, "dead_letter", filters, limit=limit, look_s=_DEADLINE_S)
    return [_dead_letter(row, about[row["queue"]]) for row in found.rows], found.next is not None


async def count_dead_letters(
    database: Database, queues: Sequence[QueueTable], filters: Filters, *, at_most: int | None = None
) -> int:
    """
    How many there are.

    Args:
        at_most: Of each queue no more are counted.
    """
    total = 0
    for queue in queues:
        values: list[object] = [at_most]

        def argument(value: object, values: list[object] = values) -> str:
            values.append(value)
            return f"${len(values)}"

        where = " AND ".join(
            condition
            for condition in (
                "item.status = 'dead_letter'",
                of_reason(filters.known_reason),
                conditions(queue, filters, argument),
                within("item.failed_at", filters, argument),
            )
            if condition
        )
        letters = f"SELECT FROM {queue.table} AS item WHERE {where} LIMIT $1::bigint"
        total += await database.fetchval(
            f"SELECT count(*) FROM ({letters}) AS letter",  # noqa: S608
            *values,
            deadline_s=_DEADLINE_S,
        )
    return total


@dataclass(frozen=True, slots=True)
class Group:
    """
    Dead letters with one reason.

    Attributes:
        reason: One of REASONS; None where an old caller wrote them.
        count: COUNTED_MAX at most.
        more: Whether there are more.
        newest_at: When the last of them died.
        errors: The last errors that are most frequent among the newest ERRORS_OF, with how often each is.
    """

    queue: str
    reason: str | None
    count: int
    more: bool
    newest_at: datetime | None
    errors: list[tuple[str, int]]


async def group_dead_letters(database: Database, queues: Sequence[QueueTable]) -> list[Group]:
    """
    The dead letters of each queue by reason, the largest group first; each group is read from an index.

    Errors that differ in addresses, ids and long numbers alone are one.
    """
    groups: list[Group] = []
    for queue in queues:
        sql = " UNION ALL ".join(_group(queue, reason) for reason in (*REASONS, "none"))
        rows = await database.fetch(sql, COUNTED_MAX, ERRORS_OF, deadline_s=_DEADLINE_S)
        groups += [
            Group(
                queue.name,
                row["reason"],
                min(row["count"], COUNTED_MAX),
                row["count"] > COUNTED_MAX,
                row["newest_at"],
                [(error or "", count) for error, count in zip(row["errors"], row["counts"], strict=True)],
            )
            for row in rows
            if row["count"]
        ]
    return sorted(groups, key=lambda group: (group.more, group.count), reverse=True)


def _group(queue: QueueTable, reason: str) -> str:
    """A row about one group. $1 how many are counted, $2 how many are read."""
    letters = f"FROM {queue.table} AS item WHERE item.status = 'dead_letter' AND {of_reason(reason)}"
    return f"""
        SELECT
            {"NULL" if reason == "none" else f"'{reason}'"}::text AS reason,
            (SELECT count(*) FROM (SELECT {letters} LIMIT $1::bigint + 1) AS letter) AS count,
            (
                SELECT item.failed_at {letters} AND item.failed_at < 'infinity'
                ORDER BY item.failed_at DESC LIMIT 1
            ) AS newest_at,
            COALESCE((array_agg(same.error ORDER BY same.count DESC))[:3], '{{}}') AS errors,
            COALESCE((array_agg(same.count ORDER BY same.count DESC))[:3], '{{}}') AS counts
        FROM (
            SELECT
                regexp_replace(left(letter.last_error, 200), '{_PARTICULAR}', '…', 'g') AS error,
                count(*)::integer AS count
            FROM (
                SELECT item.last_error {letters} ORDER BY item.failed_at DESC LIMIT $2
            ) AS letter
            GROUP BY 1
        ) AS same
    """  # noqa: S608 - names of ours


async def read_row(database: Database, queue: QueueTable, row_id: UUID) -> dict[str, Any] | None:
    """All columns of one row, its body and its attempts too; of an e-mail's attachments nothing."""
    columns = await database.fetch(
        f"""
        SELECT one.key, one.value::text
        FROM {queue.table} AS item
        CROSS JOIN LATERAL json_each(
            row_to_json(jsonb_populate_record(item, '{{"attachments": null}}'))
        ) AS one (key, value)
        WHERE item.id = $1
        """,  # noqa: S608 - a table of ours
        row_id,
        deadline_s=_DEADLINE_S,
    )
    return {column["key"]: _readable(column["value"]) for column in columns} or None


async def decide(
    database: Database,
    queues: Sequence[QueueTable],
    what: What,
    ids: Sequence[UUID],
    *,
    by: Actor,
    note: str | None = None,
    report: Callable[[int], None] = lambda _done: None,
) -> Decided:
    """
    Retry or discard these dead letters, in batches that each commit, with an entry of the audit trail.

    Args:
        ids: In any order; several times the same is once.
        by: Who has decided it.
        note: What that person says to it.
        report: Takes how many are done so far.
    """
    decision = _Decision(what, by, note)
    wanted = list(dict.fromkeys(ids))
    done: list[UUID] = []
    refused: dict[UUID, str] = {}
    for queue in queues:
        for start in range(0, len(wanted), BATCH_ROWS):
            done += await _decide_batch(
                database, queue, decision, wanted[start : start + BATCH_ROWS], refused
            )
            report(len(done))
    changed = set(done)
    missed = {row_id: "unknown" for row_id in wanted if row_id not in changed}
    for queue in queues:
        missed |= await _statuses(database, queue, list(missed))
    return Decided(done, {**missed, **refused})


@dataclass(frozen=True, slots=True)
class _Decision:
    what: What
    by: Actor
    note: str | None


def _readable(text: str) -> Any:
    """A column's value; as text where jsonb holds more than can be written again (levels, digits)."""
    value = read_json(text)
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return text
    return value


async def _decide_batch(
    database: Database,
    queue: QueueTable,
    decision: _Decision,
    ids: Sequence[UUID],
    refused: dict[UUID, str],
) -> list[UUID]:
    try:
        return await _carry_out(database, queue, decision, ids)
    except asyncpg.InsufficientPrivilegeError:
        raise
    except asyncpg.PostgresError as error:
        if len(ids) == 1:
            refused[ids[0]] = f"refuses the update: {error}"
            return []
    # A row's own trigger or constraint refuses: one by one, and that one is named.
    done: list[UUID] = []
    for row_id in ids:
        done += await _decide_batch(database, queue, decision, [row_id], refused)
    return done


async def _carry_out(
    database: Database, queue: QueueTable, decision: _Decision, ids: Sequence[UUID]
) -> list[UUID]:
    """Do it and write it down, or neither."""
    function = queue.retry if decision.what == "retry" else queue.discard
    action: Action = "dead_letter.retry" if decision.what == "retry" else "dead_letter.discard"
    async with database.transaction(deadline_s=_DEADLINE_S) as connection:
        said = [decision.by.name] if decision.what == "retry" else [decision.by.name, decision.note]
        places = "$1, $2" if decision.what == "retry" else "$1, $2, $3"
        rows = await connection.fetch(
            f"SELECT {function}({places}) AS id", list(ids), *said, timeout=_DEADLINE_S
        )
        done = [row["id"] for row in rows]
        if done:
            about = {"queue": queue.name, "count": len(done), "ids": done}
            await record(connection, decision.by, action, about, decision.note)
    return done


async def _statuses(database: Database, queue: QueueTable, ids: Sequence[UUID]) -> dict[UUID, str]:
    rows = await database.fetch(
        f"""
        SELECT item.id, COALESCE(item.status, 'none') AS status
        FROM {queue.table} AS item
        WHERE item.id = ANY ($1)
        """,  # noqa: S608 - a table of ours
        list(ids),
    )
    return {row["id"]: row["status"] for row in rows}


def _dead_letter(row: Mapping[str, Any], about: Sequence[str]) -> DeadLetter:
    return DeadLetter(
        id=row["id"],
        queue=row["queue"],
        reason=row["dead_reason"],
        last_error=row["last_error"],
        attempts=row["attempts"],
        failed_at=row["at"],
        created_at=row["created_at"],
        about=dict(zip(about, row["about"], strict=True)),
    )
