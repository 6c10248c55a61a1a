"""Mails by the million that were settled long ago, and those that are in the queue beside them."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from bench import mails

if TYPE_CHECKING:
    Connection = asyncpg.Connection[Any]

ENQUEUE_MANY = "SELECT enqueue_emails($1::jsonb)"
"""What Room.send_many and HTTP say; the ids are in the order of time, those of an INSERT are random."""

MAILS_A_CALL = 1_000

_OLD_MAILS = """
    SELECT
        gen_random_uuid(), 'customer' || n % 100000 || '@example.com', 'Order ' || n, '<p>Thank you.</p>',
        'shop@example.com', 'sent', NULL::timestamptz, 1, 1::bigint,
        at.moment - interval '1 s', at.moment, at.moment
    FROM generate_series(1, {count}) AS n
    CROSS JOIN LATERAL (SELECT now() - interval '{ago}' - ({count} - n) * interval '0.2 s' AS moment) AS at
"""
_COLUMNS = """
    id, to_email, subject, html, from_email, status, due_at, attempts, lease_no,
    created_at, updated_at, sent_at
"""
_EMPTY = """
    TRUNCATE email_queue, postroom.tallies, postroom.processing_minutes, postroom.processing_totals
"""
_MINUTES = """
    INSERT INTO postroom.processing_minutes
    SELECT
        date_trunc('minute', email.sent_at), 'email', '', 'smtp://mail.example.com:587', 'done', 'sent',
        count(*), ARRAY[0, count(*)], ARRAY[0, 0, 0, count(*)], ARRAY[0, 0, 0, 0, count(*)]
    FROM email_queue AS email
    GROUP BY 1
"""
_TOTALS = """
    INSERT INTO postroom.processing_totals (
        queue, kind, transport, outcome, status, attempts, wait, attempt, total, wait_ms, attempt_ms, total_ms
    )
    SELECT
        queue, kind, transport, outcome, status, sum(attempts), ARRAY[0, sum(attempts)],
        ARRAY[0, 0, 0, sum(attempts)], ARRAY[0, 0, 0, 0, sum(attempts)],
        2 * sum(attempts), 4 * sum(attempts), 6 * sum(attempts)
    FROM postroom.processing_minutes
    GROUP BY 1, 2, 3, 4, 5
"""


async def make_old_mails(url: str, count: int, *, ago: str = "0 s") -> None:
    """
    Rows of about 250 bytes as sent mails leave them, with random ids and the figures by minute; vacuumed.

    The queue is emptied first: what is copied into a table that its own transaction has truncated needs no
    vacuum to be frozen. The indexes are made at the end, and our triggers are off meanwhile.

    Args:
        ago: How long ago the last one was sent; the first one `count` times 0.2 s before.
    """
    source, connection = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        await connection.execute(
            "SET maintenance_work_mem = '512MB'; SET max_parallel_maintenance_workers = 2"
        )
        async with connection.transaction():
            indexes = await connection.fetch(
                """
                SELECT
                    index.indexrelid::regclass::text AS name,
                    pg_get_indexdef(index.indexrelid) AS definition
                FROM pg_index AS index
                WHERE index.indrelid = 'email_queue'::regclass AND NOT index.indisprimary
                """
            )
            await connection.execute(_EMPTY)
            await connection.execute("ALTER TABLE email_queue DISABLE TRIGGER USER")
            await connection.execute("ALTER TABLE email_queue DROP CONSTRAINT email_queue_pkey")
            for index in indexes:
                await connection.execute(f"DROP INDEX {index['name']}")
            await _copy(source, connection, count, ago)
            await connection.execute("ALTER TABLE email_queue ADD PRIMARY KEY (id)", timeout=600)
            for index in indexes:
                await connection.execute(index["definition"], timeout=600)
            await connection.execute("ALTER TABLE email_queue ENABLE TRIGGER USER")
            await connection.execute(_MINUTES, timeout=600)
            await connection.execute(_TOTALS)
        await connection.execute("VACUUM ANALYZE email_queue", timeout=600)
        await connection.execute("CHECKPOINT", timeout=600)
    finally:
        await source.close()
        await connection.close()


async def _copy(source: Connection, into: Connection, count: int, ago: str) -> None:
    """One backend makes the rows, another one stores them; by way of us it takes half as long again."""
    with tempfile.TemporaryDirectory(prefix="postroom-bench-") as folder:
        # The server's account must be able to reach it where we are root.
        Path(folder).chmod(0o711)
        pipe = Path(folder) / "old-mails"
        os.mkfifo(pipe)
        pipe.chmod(0o666)
        async with asyncio.TaskGroup() as both:
            both.create_task(
                source.execute(
                    f"COPY ({_OLD_MAILS.format(count=count, ago=ago)}) TO '{pipe}' (FORMAT binary)",
                    timeout=600,
                )
            )
            both.create_task(
                into.execute(
                    f"COPY email_queue ({_COLUMNS}) FROM '{pipe}' (FORMAT binary, FREEZE)", timeout=600
                )
            )


async def queue_mails(url: str, insert: str, count: int) -> None:
    """
    Let the disk come to rest, and put so many mails of 2 KB of HTML into a queue.

    In this order: between the two, each page of the primary key that they touch would be logged whole again,
    and beside ten million rows each mail with a random id has one to itself. In life a checkpoint comes
    every few minutes.

    Args:
        insert: Queues one mail: recipient, subject, HTML. Or ENQUEUE_MANY.
    """
    rows = [(mails.recipient(number, count), mails.subject(number), mails.html()) for number in range(count)]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CHECKPOINT", timeout=300)
        if insert != ENQUEUE_MANY:
            await connection.executemany(insert, rows)
            return
        for first in range(0, count, MAILS_A_CALL):
            names = ("to_email", "subject", "html")
            batch = [dict(zip(names, row, strict=True)) for row in rows[first : first + MAILS_A_CALL]]
            await connection.execute(insert, json.dumps(batch))
    finally:
        await connection.close()
