"""
What a person does to all dead letters of a group: a thousand at a time, and how far it came is a row.

Whoever works on it does so under a lease. Where that process ends, the action stands still, says how far it
came, and any other process goes on from there: place, counts and rows have changed together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from postroom.database.audit import Action, Actor, record
from postroom.database.connect import Database
from postroom.errors import DatabaseUnavailable, PostroomError
from postroom.failpoints import reach
from postroom.queue.dead_letters import What, count_dead_letters
from postroom.queue.search import Filters
from postroom.queue.table import QueueTable

STEP_ROWS = 1_000
AGAIN_S = 2.0
"""Where the database is away the action goes on with it; this is how often it is asked."""

_DEADLINE_S = 60.0
_ACTIONS: dict[What, Action] = {"retry": "dead_letter.retry", "discard": "dead_letter.discard"}


@dataclass(frozen=True, slots=True)
class BulkAction:
    """
    An action and how far it came.

    Attributes:
        queue: `email` or `webhook`; None is both.
        reason: See Filters.
        total: Dead letters of the group when it was asked for.
        refused: Rows whose own trigger refuses, or that somebody held: they are dead letters still.
        why: The first one's error.
        state: `running`, `interrupted` (nobody works on it: it may go on), `stopped` (by a person), `done`.
    """

    id: UUID
    action: What
    queue: str | None
    reason: str | None
    note: str | None
    begun_by: str
    begun_at: datetime
    total: int
    done: int
    refused: int
    why: str | None
    ended_at: datetime | None
    stopped_by: str | None
    state: str


@dataclass(slots=True)
class Changed:
    """The rows that this process has changed."""

    done: list[UUID] = field(default_factory=list)
    missed: dict[UUID, str] = field(default_factory=dict)


async def begin(
    database: Database,
    queues: Sequence[QueueTable],
    what: What,
    *,
    reason: str | None,
    by: Actor,
    note: str | None = None,
    asked_at: datetime | None = None,
    action_id: UUID | None = None,
) -> UUID:
    """
    Write an action down; run() does it. It takes the place of one of the same group that stands still.

    Args:
        queues: Both, or one.
        asked_at: By the database's clock: what has died since is left alone. None is now.
        action_id: The same id is the same action, however often it is begun.
    """
    action_id = action_id or uuid4()
    asked_at = asked_at or await database.fetchval("SELECT clock_timestamp()")
    total = await count_dead_letters(database, queues, Filters(reason=reason))
    queue = queues[0].name if len(queues) == 1 else None
    reach("bulk.begin.before")
    async with database.transaction() as connection:
        begun = await connection.fetchval(
            """
            INSERT INTO postroom.bulk_actions (
                id, action, queue, reason, note, begun_by, asked_at, total, place_queue, place_at,
                leased_until
            )
            VALUES (
                $1, $2, $3, $4, $5, $6, $7, $8, COALESCE($3, 'email'), '-infinity', clock_timestamp()
            )
            ON CONFLICT (id) DO NOTHING
            RETURNING true
            """,
            action_id,
            what,
            queue,
            reason,
            note or None,
            by.name,
            asked_at,
            total,
        )
        if not begun:
            return action_id
        await connection.execute(
            """
            UPDATE postroom.bulk_actions
            SET ended_at = clock_timestamp(), stopped_by = $5
            WHERE bulk_actions.id <> $1 AND bulk_actions.action = $2
                AND bulk_actions.queue IS NOT DISTINCT FROM $3 AND bulk_actions.reason IS NOT DISTINCT FROM $4
                AND bulk_actions.ended_at IS NULL AND bulk_actions.leased_until < clock_timestamp()
            """,
            action_id,
            what,
            queue,
            reason,
            by.name,
        )
        about = {"bulk": str(action_id), "queue": queue, "reason": reason, "count": total, "state": "begun"}
        await record(connection, by, _ACTIONS[what], _given(about), note)
    reach("bulk.begin.after")
    return action_id


async def run(
    database: Database,
    action_id: UUID,
    by: Actor,
    *,
    stop: asyncio.Event | None = None,
    patient: bool = False,
    report: Callable[[int], None] = lambda _done: None,
) -> Changed:
    """
    Do an action, or go on with it, until it has ended or somebody stops it.

    Args:
        stop: Once it is set the action stands still, for any process to go on.
        patient: Wait for a database that is away.
        report: Takes how many are done so far.

    Raises:
        PostroomError: Somebody works on it.
        DatabaseUnavailable: Where that is not waited for; the action stands still.
    """
    runner, stop, changed = uuid4(), stop or asyncio.Event(), Changed()
    if not await database.fetchval("SELECT postroom.lease_bulk_action($1, $2)", action_id, runner):
        raise PostroomError("it has ended, or another process works on it: see how far it is")
    try:
        while not stop.is_set():
            try:
                if not await _step(database, action_id, runner, by, changed):
                    break
            except DatabaseUnavailable:
                if not patient:
                    raise
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), AGAIN_S)
            report(len(changed.done))
    finally:
        with suppress(DatabaseUnavailable):
            await _give_back(database, action_id, runner)
    return changed


async def stop_action(database: Database, action_id: UUID, by: Actor) -> bool:
    """End an action where it is; False where it has ended. What is done stays done."""
    async with database.transaction(deadline_s=_DEADLINE_S) as connection:
        row = await connection.fetchrow(
            """
            UPDATE postroom.bulk_actions
            SET ended_at = clock_timestamp(), stopped_by = $2
            WHERE bulk_actions.id = $1 AND bulk_actions.ended_at IS NULL
            RETURNING bulk_actions.action, bulk_actions.done
            """,
            action_id,
            by.name,
        )
        if row is not None:
            about = {"bulk": str(action_id), "count": row["done"], "state": "stopped"}
            await record(connection, by, _ACTIONS[row["action"]], about)
    return row is not None


async def read_action(database: Database, action_id: UUID) -> BulkAction | None:
    """One action, as it is now."""
    rows = await database.fetch(f"{_READ} WHERE action.id = $1", action_id)
    return BulkAction(**rows[0]) if rows else None


async def read_actions(database: Database, limit: int) -> list[BulkAction]:
    """The newest actions."""
    rows = await database.fetch(f"{_READ} ORDER BY action.begun_at DESC LIMIT $1", limit)
    return [BulkAction(**row) for row in rows]


async def read_interrupted(database: Database) -> BulkAction | None:
    """The newest action that nobody has worked on for a while, and that is neither done nor stopped."""
    rows = await database.fetch(
        f"""
        {_READ}
        WHERE action.ended_at IS NULL AND action.leased_until < clock_timestamp() - interval '5 seconds'
        ORDER BY action.begun_at DESC
        LIMIT 1
        """
    )
    return BulkAction(**rows[0]) if rows else None


_READ = """
    SELECT
        action.id, action.action, action.queue, action.reason, action.note, action.begun_by, action.begun_at,
        action.total, action.done, action.refused, action.why, action.ended_at, action.stopped_by,
        CASE
            WHEN action.stopped_by IS NOT NULL THEN 'stopped'
            WHEN action.ended_at IS NOT NULL THEN 'done'
            WHEN action.leased_until < clock_timestamp() THEN 'interrupted'
            ELSE 'running'
        END AS state
    FROM postroom.bulk_actions AS action
"""


async def _step(database: Database, action_id: UUID, runner: UUID, by: Actor, changed: Changed) -> bool:
    """The next thousand; False where it has ended, for us at least."""
    reach("bulk.step.before")
    async with database.transaction(deadline_s=_DEADLINE_S) as connection:
        row = await connection.fetchrow(
            "SELECT state, ids, refused_ids, error FROM postroom.continue_bulk_action($1, $2, $3)",
            action_id,
            runner,
            STEP_ROWS,
            timeout=_DEADLINE_S,
        )
        assert row is not None
        if row["state"] == "ended":
            ended = await connection.fetchrow(f"{_READ} WHERE action.id = $1", action_id)
            assert ended is not None
            about = {
                "bulk": str(action_id),
                "count": ended["done"],
                "refused": ended["refused"] or None,
                "state": "done",
            }
            await record(connection, by, _ACTIONS[ended["action"]], _given(about))
        reach("bulk.step.inside")
    reach("bulk.step.after")
    changed.done += row["ids"]
    changed.missed |= dict.fromkeys(row["refused_ids"], f"refuses the update: {row['error']}")
    return bool(row["state"] == "goes on")


async def _give_back(database: Database, action_id: UUID, runner: UUID) -> None:
    await database.execute(
        """
        UPDATE postroom.bulk_actions
        SET leased_until = clock_timestamp()
        WHERE bulk_actions.id = $1 AND bulk_actions.runner = $2 AND bulk_actions.ended_at IS NULL
        """,
        action_id,
        runner,
    )


def _given(about: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if value is not None}
