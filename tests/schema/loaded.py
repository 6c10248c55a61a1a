"""Queues with years of history, filled fast, as the engine and its callers would have left them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

import psycopg


@dataclass(frozen=True)
class Amounts:
    """How many rows of each kind."""

    history: int
    future: int
    due: int = 2_000


RECIPIENT_LIMIT = "1000/60s"
"""The rows that wait for a recipient were planned under this one."""

# What is settled, what waits for a time in the future, and what is due; the oldest has waited for a minute.
_KINDS: LiteralString = """
    SELECT
        n,
        clock_timestamp() - age.age AS at,
        CASE %(kind)s WHEN 'history' THEN
            CASE WHEN n %% 1000 = 0 THEN 'dead_letter' ELSE %(done)s END
        ELSE 'pending' END AS status,
        (%(kind)s = 'history')::integer AS attempts,
        CASE WHEN %(kind)s <> 'history' THEN clock_timestamp() - age.age END AS due_at,
        CASE WHEN %(kind)s = 'future' THEN clock_timestamp() - age.age END AS next_retry_at,
        CASE WHEN %(kind)s = 'history' AND n %% 1000 <> 0 THEN clock_timestamp() - age.age END AS done_at,
        CASE WHEN %(kind)s = 'history' AND n %% 1000 = 0 THEN clock_timestamp() - age.age END AS failed_at,
        CASE WHEN %(kind)s = 'history' THEN '[{"ms": 12, "outcome": "done"}]'::jsonb END AS attempt_log
    FROM generate_series(1, %(rows)s) AS n
    CROSS JOIN LATERAL (
        SELECT CASE %(kind)s
            WHEN 'history' THEN interval '1 day' + n * interval '30 seconds'
            WHEN 'future' THEN - interval '1 hour' - n * interval '10 seconds'
            ELSE interval '1 minute' + n * interval '1 ms'
        END AS age
    ) AS age
"""

_EMAILS: LiteralString = f"""
    INSERT INTO public.email_queue (
        to_email, subject, html, from_email, idempotency_key, created_at, updated_at,
        status, attempts, lease_no, due_at, next_retry_at, sent_at, failed_at, attempt_log,
        waits_for, planned_under
    )
    SELECT
        'u' || n %% 20000 || '@example.com', 'Your order ' || n, '<p>Thank you</p>', 'shop@example.com',
        CASE WHEN n %% 10 = 0 THEN %(kind)s || n END, at, at,
        status, attempts, attempts, due_at, next_retry_at, done_at, failed_at, attempt_log,
        -- Every second one waits for a limit, half of these for that of one recipient.
        CASE WHEN next_retry_at IS NOT NULL THEN CASE n %% 4
            WHEN 0 THEN 'limit:email:recipient:u0@example.com'
            WHEN 2 THEN 'limit:email:recipient:u' || n %% 20000 || '@example.com'
            ELSE 'send_at'
        END END,
        CASE WHEN next_retry_at IS NOT NULL AND n %% 2 = 0 THEN '1000/60s' END
    FROM ({_KINDS}) AS row
"""

_WEBHOOKS: LiteralString = f"""
    INSERT INTO public.webhook_retry_queue (
        webhook_type, webhook_event_id, payload, created_at, updated_at,
        status, attempts, lease_no, due_at, next_retry_at, processed_at, failed_at, attempt_log
    )
    SELECT
        'stripe', 'evt_' || %(kind)s || n, '{{"id": 1}}', at, at,
        status, attempts, attempts, due_at, next_retry_at, done_at, failed_at, attempt_log
    FROM ({_KINDS}) AS row
"""

_BOOKS: LiteralString = """
    INSERT INTO public.rate_limit_counters (key, count, taken_at, taken)
    SELECT 'email:recipient:u' || n || '@example.com', 0, '{}', '{}'
    FROM generate_series(0, 19999) AS n
"""


def load(url: str, amounts: Amounts) -> None:
    """
    Fill both queues.

    The statistics are those of a queue in its first hour, when all that it held was due: nothing analyses it
    later but the test.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        for table in ("email_queue", "webhook_retry_queue", "rate_limit_counters"):
            connection.execute(f"ALTER TABLE public.{table} SET (autovacuum_enabled = false)")
        # Each column says what the triggers would have written; they would cost three times as much.
        connection.execute("SET session_replication_role = replica")
        _fill(connection, "due", amounts.due)
        connection.execute("ANALYZE")
        _fill(connection, "history", amounts.history)
        _fill(connection, "future", amounts.future)
        connection.execute(_BOOKS)


def _fill(connection: psycopg.Connection, kind: str, rows: int) -> None:
    connection.execute(_EMAILS, {"kind": kind, "rows": rows, "done": "sent"})
    webhooks = rows if kind == "due" else rows // 4
    connection.execute(_WEBHOOKS, {"kind": kind, "rows": webhooks, "done": "processed"})
