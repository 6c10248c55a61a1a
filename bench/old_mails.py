"""Mails by the million that were settled long ago, and those that are in the queue beside them."""

from __future__ import annotations

import asyncpg

from bench import mails

ROWS_A_STATEMENT = 500_000


async def make_old_mails(url: str, count: int, *, ago: str = "0 s") -> None:
    """
    Rows of about 250 bytes as sent mails leave them, vacuumed.

    Our triggers are off meanwhile, and the primary key is made at the end.

    Args:
        ago: How long ago the last one was sent; the first one `count` times 0.2 s before.
    """
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("ALTER TABLE email_queue DISABLE TRIGGER USER")
        await connection.execute("ALTER TABLE email_queue DROP CONSTRAINT email_queue_pkey")
        for first in range(0, count, ROWS_A_STATEMENT):
            await connection.execute(
                """
                INSERT INTO email_queue (
                    to_email, subject, html, from_email, status, due_at, attempts, lease_no,
                    created_at, updated_at, sent_at
                )
                SELECT
                    'customer' || n % 100000 || '@example.com', 'Order ' || n, '<p>Thank you.</p>',
                    'shop@example.com', 'sent', NULL, 1, 1, at.moment, at.moment, at.moment
                FROM generate_series($1::int + 1, $2::int) AS n
                CROSS JOIN LATERAL (
                    SELECT now() - $4::text::interval - ($3::int - n) * interval '0.2 s' AS moment
                ) AS at
                """,
                first,
                min(first + ROWS_A_STATEMENT, count),
                count,
                ago,
                timeout=300,
            )
        await connection.execute("ALTER TABLE email_queue ADD PRIMARY KEY (id)", timeout=300)
        await connection.execute("ALTER TABLE email_queue ENABLE TRIGGER USER")
        await connection.execute("VACUUM ANALYZE email_queue", timeout=300)
        await connection.execute("CHECKPOINT", timeout=300)
    finally:
        await connection.close()


async def queue_mails(url: str, insert: str, count: int) -> None:
    """
    Let the disk come to rest, and put so many mails of 2 KB of HTML into a queue.

    In this order: between the two, each page of the primary key that they touch would be logged whole again,
    and beside ten million rows each mail has one of its own. In life a checkpoint comes every few minutes.
    """
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CHECKPOINT", timeout=300)
        await connection.executemany(
            insert,
            [
                (mails.recipient(number, count), mails.subject(number), mails.html())
                for number in range(count)
            ],
        )
    finally:
        await connection.close()
