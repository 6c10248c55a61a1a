"""A small world that each interleaving begins in, with rows in every state, and what can be seen of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID, uuid5

import asyncpg

from tests.sql.session import EMAIL, Queue

_NAMESPACE = UUID(int=0)

W1, W2, W3 = (uuid5(_NAMESPACE, name) for name in ("W1", "W2", "W3"))

TABLES = (
    "public.email_queue",
    "public.webhook_retry_queue",
    "public.rate_limit_counters",
    "postroom.workers",
    "postroom.refused_rows",
    "postroom.seen_webhooks",
    "postroom.webhook_requests",
    "postroom.handlers",
    "postroom.old_leases",
    "postroom.pauses",
    "postroom.tallies",
    "postroom.processing_minutes",
    "postroom.processing_totals",
)

# label: status, lease_no, leased_by, seconds until due, further columns
_ROWS: dict[str, tuple[str, int, UUID | None, float | None, dict[str, Any]]] = {
    "due1": ("pending", 0, None, -10, {}),
    "due2": ("pending", 0, None, -9, {"priority": 1}),
    "fresh": ("processing", 1, W1, 60, {}),
    "short": ("processing", 1, W1, 20, {}),
    "other": ("processing", 1, W2, 60, {}),
    "held": ("processing", 1, W1, 60, {}),
    "expired": ("processing", 1, W1, -1, {"attempts": 1}),
    "unbegun": ("processing", 1, W2, -2, {}),
    "old": ("processing", 1, None, 900, {}),
    "dead1": ("dead_letter", 1, None, None, {"attempts": 6, "failed_at": -3600.0}),
    "dead2": ("dead_letter", 1, None, None, {"attempts": 6, "failed_at": -3600.0}),
    "done": ("DONE", 1, None, None, {"attempts": 1, "DONE_AT": -4e6}),
    "aside": ("processing", 1, W1, -1, {}),
}
_EMAILS: dict[str, tuple[str, int, UUID | None, float | None, dict[str, Any]]] = {
    "limited": ("processing", 1, W1, 60, {}),
    "planned": ("pending", 1, None, 3600, {"planned_under": "3/60s", "waits_for": "limit:email:recipient:x"}),
    "keyed": ("pending", 0, None, 3600, {"idempotency_key": "there"}),
    "direct": ("pending", 1, None, 5, {"idempotency_key": "direct", "max_attempts": 1}),
}
_WEBHOOKS: dict[str, tuple[str, int, UUID | None, float | None, dict[str, Any]]] = {
    "lane1": ("processing", 1, W1, 60, {"lane": "l", "lane_place": 1}),
    "lane2": ("pending", 0, None, -5, {"lane": "l", "lane_place": 2}),
    "lane3": ("pending", 0, None, -4, {"lane": "l", "lane_place": 3}),
}

BEGUN = ("held", "expired", "aside")
"""Rows whose start marks W1 has written."""

LABELS = {
    uuid5(_NAMESPACE, label): label
    for label in [*_ROWS, *_EMAILS, *_WEBHOOKS, "W1", "W2", "W3", "new1", "new2", "new3", "new4", "made"]
}


def id_of(label: str) -> UUID:
    """The id of a row that is known by a label."""
    return uuid5(_NAMESPACE, label)


def ids(*labels: str) -> str:
    """An array of ids in SQL, in this order."""
    return "ARRAY[" + ", ".join(f"'{id_of(label)}'" for label in labels) + "]::uuid[]"


async def seed(connection: asyncpg.Connection[Any], queue: Queue) -> None:
    """Put the world back to where it begins."""
    await connection.execute(_seeding(queue))


@cache
def _seeding(queue: Queue) -> str:
    rows = _ROWS | (_EMAILS if queue is EMAIL else _WEBHOOKS)
    statements = [
        # The state is written as it is meant, not as an old caller's.
        "SET session_replication_role = replica",
        # A truncate costs ten times what these few rows do.
        *(f"DELETE FROM {table}" for table in TABLES),
        *(_insert(queue, label, *row) for label, row in rows.items()),
        "SET session_replication_role = origin",
        f"""
        INSERT INTO postroom.workers (id, queue, host, pid, version, asleep, seen_at, begun, begun_lease_nos)
        VALUES
            ('{W1}', '{queue}', 'h', 1, '0', true, clock_timestamp(), {ids(*BEGUN)}, '{{1,1,1}}'),
            ('{W2}', '{queue}', 'h', 2, '0', false, clock_timestamp(), '{{}}', '{{}}')
        """,
        f"""
        INSERT INTO postroom.refused_rows (queue, id, error, lease_no, verdict, reply, next_try_at)
        VALUES ('{queue}', '{id_of("aside")}', 'no', 1, 'done', '250 ok', clock_timestamp() - interval '1 s')
        """,
        "SELECT postroom.set_setting(key, value) FROM postroom.default_settings()",
        "SELECT postroom.set_setting('email.limit.global', '6/60s')",
        "SELECT postroom.set_setting('retention.dead_letter', '1m')",
        _book("email:global", 3),
        _book("email:recipient:limited@example.com", 10),
        """
        INSERT INTO rate_limit_counters (key, count, window_start, window_end)
        VALUES ('app:open', 3, now(), now() + interval '1 min'), ('app:ended', 3, '2020-01-01', '2020-01-02')
        """,
        """
        INSERT INTO rate_limit_counters (key, count, window_start, window_end, taken_at, taken, taken_total)
        VALUES ('email:recipient:gone@example.com', 1, '2020-01-01', '2020-01-02', '{2020-01-01}', '{1}', 1)
        """,
        "INSERT INTO postroom.handlers VALUES ('app', 'stripe', 'h', '{*}')",
        *_figures(queue),
        """
        INSERT INTO postroom.seen_webhooks (source, event_id, id, seen_at)
        VALUES
            ('stripe', 'evt_seen', gen_random_uuid(), clock_timestamp()),
            ('stripe', 'evt_old', gen_random_uuid(), clock_timestamp() - interval '40 days')
        """,
    ]
    return ";\n".join(statements)


def _insert(
    queue: Queue,
    label: str,
    status: str,
    lease_no: int,
    leased_by: UUID | None,
    due_s: float | None,
    further: dict[str, Any],
) -> str:
    due = "NULL" if due_s is None else f"clock_timestamp() + interval '{due_s} s'"
    values = {
        "id": f"'{id_of(label)}'",
        "status": f"'{queue.done if status == 'DONE' else status}'",
        "lease_no": str(lease_no),
        "leased_by": "NULL" if leased_by is None else f"'{leased_by}'",
        "due_at": due,
        "created_at": "clock_timestamp() - interval '1 hour'",
        "updated_at": "clock_timestamp() - interval '1 hour'",
    }
    if queue is EMAIL:
        values |= {"to_email": f"'{label}@example.com'", "subject": "'s'", "html": "'h'"}
    else:
        values |= {"webhook_type": "'stripe'", "payload": "'{}'", "webhook_event_id": f"'{label}'"}
    for column, value in further.items():
        if column in ("failed_at", "DONE_AT"):
            name = queue.done_at if column == "DONE_AT" else column
            values[name] = f"clock_timestamp() + interval '{value} s'"
        else:
            values[column] = f"'{value}'"
    return f"INSERT INTO {queue.table} ({', '.join(values)}) VALUES ({', '.join(values.values())})"


def _figures(queue: Queue) -> list[str]:
    # Three attempts that are tallied, and five of a year that is over.
    of = f"'{queue}', '{'' if queue is EMAIL else 'stripe'}', '', 'done', '{queue.done}'"
    return [
        f"""
        INSERT INTO postroom.tallies (queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms)
        VALUES ({of}, '{{1,2}}', '{{1,2}}', '{{1,2}}'), ({of}, '{{3}}', '{{3}}', '{{3}}')
        """,
        f"INSERT INTO postroom.processing_minutes VALUES ('2020-01-01', {of}, 5, '{{5}}', '{{5}}', '{{5}}')",
        f"""
        INSERT INTO postroom.processing_totals
        VALUES ({of}, 5, '{{5}}', '{{5}}', '{{5}}', 5, 5, 5, '2020-01-01')
        """,
    ]


def _book(key: str, slots: int) -> str:
    return f"""
        INSERT INTO rate_limit_counters
            (key, count, window_start, window_end, taken_at, taken, taken_total)
        VALUES (
            '{key}', {slots}, now(), now() + interval '1 min',
            ARRAY[clock_timestamp()], '{{{slots}}}', {slots}
        )
    """


State = dict[tuple[str, str], str]
"""What each row looks like, by its table and its key; times only as past, future, or none."""


async def state(connection: asyncpg.Connection[Any], queue: Queue) -> State:
    """All that can be told apart in the world."""
    rows = await connection.fetch(f"SELECT * FROM {queue.table}")
    named = {
        row["id"]: (
            LABELS.get(row["id"])
            or f"made:{row['idempotency_key' if queue is EMAIL else 'webhook_event_id']}"
        )
        for row in rows
    }
    now = await connection.fetchval("SELECT clock_timestamp()")
    found: State = {}

    def add(table: str, key: str, row: asyncpg.Record, *without: str) -> None:
        values = {name: plain(value, now, named) for name, value in row.items() if name not in without}
        found[table, key] = json.dumps(values, sort_keys=True)

    for row in rows:
        add("queue", named[row["id"]], row, "created_at", "updated_at", "payload", "headers", "id")
    for row in await connection.fetch("SELECT * FROM rate_limit_counters"):
        add("counters", row["key"], row, "taken_at", "taken", "window_start", "updated_at", "checked_at")
    for row in await connection.fetch("SELECT * FROM postroom.workers"):
        add("workers", str(plain(row["id"], now, named)), row, "started_at", "seen_at", "id", "generation")
    for row in await connection.fetch("SELECT * FROM postroom.refused_rows"):
        add("refused", str(plain(row["id"], now, named)), row, "refused_at", "id")
    for row in await connection.fetch("SELECT key, value FROM postroom.settings"):
        add("settings", row["key"], row)
    for row in await connection.fetch("SELECT * FROM postroom.seen_webhooks"):
        add("seen", row["event_id"], row, "seen_at", *(["id"] if plain(row["id"], now, named) == "?" else []))
    for row in await connection.fetch("SELECT id, body FROM postroom.webhook_requests"):
        add("requests", str(plain(row["id"], now, named)), row, "id")
    for row in await connection.fetch("SELECT * FROM postroom.handlers"):
        add("handlers", f"{row['app']} {row['source']} {row['name']}", row)
    for row in await connection.fetch("SELECT * FROM postroom.old_leases"):
        add("old leases", str(plain(row["id"], now, named)), row)
    # An attempt is counted once, be it tallied still or merged into the figures.
    for figures in ("processing_minutes", "processing_totals"):
        for row in await connection.fetch(
            f"""
            SELECT concat_ws(' ', kind, transport, outcome, status) AS of, sum(attempts) AS attempts
            FROM (
                SELECT kind, transport, outcome, status, attempts FROM postroom.{figures}
                UNION ALL
                SELECT kind, transport, outcome, status, cardinality(wait_ms) FROM postroom.tallies
            ) AS counted
            GROUP BY 1
            """
        ):
            found[figures, row["of"]] = str(row["attempts"])
    return found


def plain(value: object, now: datetime, named: dict[UUID, str]) -> object:
    """A value as it can be compared between two runs."""
    if isinstance(value, UUID):
        return named.get(value) or LABELS.get(value) or "?"
    if isinstance(value, datetime):
        return "past" if value <= now else "future"
    if isinstance(value, float):
        return "0" if value == 0 else "positive"
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)):
        return sorted(str(plain(part, now, named)) for part in value)
    if isinstance(value, str) and value.startswith("[{"):  # the attempt log
        return [entry.get("outcome") for entry in json.loads(value)]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def answer(rows: Iterable[asyncpg.Record], now: datetime, named: dict[UUID, str]) -> str:
    """What a call gave back, its rows in any order."""
    return json.dumps(
        sorted(
            json.dumps({name: plain(value, now, named) for name, value in row.items()}, sort_keys=True)
            for row in rows
        )
    )
