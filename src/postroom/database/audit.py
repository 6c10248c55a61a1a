"""
The audit trail: who did what by hand, and when.

An entry is written in the transaction of what it tells: both are there, or neither. What takes many
transactions has one before its first, so nothing is done that nobody has signed for. It holds ids, counts and
settings; no bodies, no secrets. `retention.audit` says for how long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import orjson

from postroom.database.connect import Database
from postroom.database.connection import Connection

Action = Literal[
    "dead_letter.retry",
    "dead_letter.discard",
    "email.edit",
    "webhook.replay",
    "webhook.reconcile",
    "handlers.forget",
    "queue.pause",
    "queue.resume",
    "transport.pause",
    "transport.resume",
    "setting.change",
    "job.run",
    "cron.use",
    "mailbox.delete",
    "key.create",
    "key.revoke",
]
"""All that is done by hand; a new action is added here."""

NOTE_CHARACTERS_MAX = 1_000
"""Of a note, what is beyond is cut off."""

IDS_MAX = 500
"""Of the ids in one entry's `about`: who acts on more does it in batches, each with an entry of its own."""


@dataclass(frozen=True, slots=True)
class Actor:
    """
    Who acts.

    Attributes:
        name: A key's name, or user@host of the command line.
        role: `operator` (a key, in the dashboard), or `cli`: who has the database's address may do all.
    """

    name: str
    role: Literal["operator", "cli"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; `about` says what the action was on: ids, count, reason, key, before, after."""

    id: int
    at: datetime
    actor: str
    role: str
    action: str
    about: dict[str, Any]
    note: str | None

    @property
    def said(self) -> str:
        """What it was about, as one line for people."""
        if {"before", "after"} <= self.about.keys():
            return f"{self.about['key']}: {self.about['before']} → {self.about['after']}"
        parts = []
        for name, value in self.about.items():
            if name == "ids":
                continue
            parts.append(str(value) if name in ("queue", "job", "key", "transport") else f"{name} {value}")
        ids = [str(each) for each in self.about.get("ids", [])]
        if ids:
            parts.append(ids[0] + (" …" if len(ids) > 1 else ""))
        return ", ".join(parts)


RECORD = """
    INSERT INTO postroom.audit (actor, role, action, about, note)
    VALUES ({}, {}, {}, {}::text::jsonb, {})
"""
"""An entry; any driver writes it in the transaction of what it tells."""


async def record(
    connection: Connection,
    by: Actor,
    action: Action,
    about: Mapping[str, Any],
    note: str | None = None,
) -> None:
    """
    Write an entry, in the transaction that is open on this connection.

    Args:
        about: Ids (at most IDS_MAX), counts, names: what can be written as JSON; no body, no secret.
        note: What the person said to it; empty is none.
    """
    assert connection.is_in_transaction()
    await connection.execute(
        RECORD.format("$1", "$2", "$3", "$4", "$5"), *values_of_entry(by, action, about, note)
    )


def values_of_entry(
    by: Actor, action: Action, about: Mapping[str, Any], note: str | None
) -> list[str | None]:
    """What RECORD takes."""
    said = (note or "").replace("\0", "").strip()[:NOTE_CHARACTERS_MAX]
    return [by.name, by.role, action, orjson.dumps(about, default=str).decode(), said or None]


async def record_alone(database: Database, by: Actor, action: Action, about: Mapping[str, Any]) -> None:
    """Write an entry of its own, before or after what takes many transactions."""
    async with database.transaction() as connection:
        await record(connection, by, action, about)


async def read_audit(
    database: Database,
    *,
    limit: int,
    before_id: int | None = None,
    action: str | None = None,
) -> list[Entry]:
    """
    Entries, newest first.

    Args:
        limit: How many at most.
        before_id: Only those before this one: of the page before, the last one's id.
        action: Only those of this action, or of all whose name begins with it and a dot.
    """
    rows = await database.fetch(
        """
        SELECT
            entry.id, entry.at, entry.actor, entry.role, entry.action, entry.about::text AS about, entry.note
        FROM postroom.audit AS entry
        WHERE ($1::bigint IS NULL OR entry.id < $1)
            AND ($2::text IS NULL OR entry.action = $2 OR starts_with(entry.action, $2 || '.'))
        ORDER BY entry.id DESC
        LIMIT $3
        """,
        before_id,
        action,
        limit,
    )
    return [Entry(**{**row, "about": orjson.loads(row["about"])}) for row in rows]
