"""Old callers: hand-made programs that enqueue and claim while the upgrade runs, as they did before it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from tests.upgrade.conftest import Project


@dataclass
class Traffic:
    """What the callers did; `errors` has to stay empty."""

    errors: list[str] = field(default_factory=list)
    sent: Counter[UUID] = field(default_factory=Counter)
    handled: Counter[UUID] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def total(self) -> int:
        """How often anything was called."""
        return sum(self.calls.values())


Job = Callable[[psycopg.Connection[dict[str, Any]], Traffic], None]


@contextmanager
def old_callers(project: Project, *also: Job, pause_s: float = 0.005) -> Iterator[Traffic]:
    """
    Callers that go on while the block runs. To wait more than 2 s for a lock is an error of theirs.

    Args:
        also: Further ones, as the owner.
    """
    traffic = Traffic()
    jobs: list[tuple[str, Job]] = [
        (project.owner, _deliver),
        (project.owner, _work_on_both),
        (project.shop, _insert),
    ]
    jobs += [(project.owner, job) for job in also]
    threads = [
        threading.Thread(target=_call, args=(project, user, job, traffic, pause_s)) for user, job in jobs
    ]
    for thread in threads:
        thread.start()
    try:
        yield traffic
    finally:
        traffic.stop.set()
        for thread in threads:
            thread.join(60)


def _call(project: Project, user: str, job: Job, traffic: Traffic, pause_s: float) -> None:
    with project.connect(user) as connection:
        connection.execute("SET lock_timeout = '2s'")
        while not traffic.stop.wait(pause_s):
            began = time.monotonic()
            try:
                job(connection, traffic)
            except psycopg.Error as error:
                traffic.errors.append(f"{job.__name__}: {type(error).__name__}: {error}")
            traffic.slowest_s = max(traffic.slowest_s, time.monotonic() - began)


def _deliver(connection: psycopg.Connection[dict[str, Any]], traffic: Traffic) -> None:
    """Enqueue one, claim two, settle them; each fifth attempt of their own mails fails."""
    connection.execute("SELECT enqueue_email('traffic@example.com', 'Traffic', '<p>Hi</p>')")
    for row in connection.execute("SELECT id, to_email FROM get_email_queue_batch(2)").fetchall():
        traffic.calls["claimed"] += 1
        if traffic.calls["claimed"] % 5 == 0 and row["to_email"] == "traffic@example.com":
            connection.execute("SELECT mark_email_failed(%s, 'no route')", (row["id"],))
        else:
            connection.execute("SELECT mark_email_sent(%s)", (row["id"],))
            traffic.sent[row["id"]] += 1
    connection.execute("SELECT * FROM increment_rate_limit('signup:10.0.0.1', 1, 1000000)")
    traffic.calls["delivered"] += 1


def _work_on_both(connection: psycopg.Connection[dict[str, Any]], traffic: Traffic) -> None:
    """One transaction over both queues, in either order: the stuff that deadlocks are made of."""
    statements = [
        "INSERT INTO webhook_retry_queue (webhook_type, payload, metadata, next_retry_at) "
        "VALUES ('traffic', '{}', '{\"upgrade\": \"traffic\"}', now() + interval '1 day')",
        "INSERT INTO email_queue (to_email, subject, html, next_retry_at, email_type) "
        "VALUES ('traffic@example.com', 'Later', '<p>Hi</p>', now() + interval '1 day', 'traffic')",
    ]
    if traffic.calls["both"] % 2:
        statements.reverse()
    with connection.transaction():
        for statement in statements:
            connection.execute(statement.encode())
    traffic.calls["both"] += 1


def handle_events(connection: psycopg.Connection[dict[str, Any]], traffic: Traffic) -> None:
    """Note five events that could not be handled, claim ten by plain statements, and settle them."""
    connection.execute(
        "INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload, metadata) "
        "SELECT 'live', gen_random_uuid(), '{}', '{\"upgrade\": \"live\"}' FROM generate_series(1, 5)"
    )
    traffic.calls["noted"] += 5
    claimed = connection.execute(
        """
        UPDATE webhook_retry_queue SET status = 'processing'
        WHERE id IN (
            SELECT id FROM webhook_retry_queue
            WHERE status = 'pending' AND webhook_type = 'live'
                AND (next_retry_at IS NULL OR next_retry_at <= now())
            ORDER BY created_at LIMIT 10 FOR UPDATE SKIP LOCKED
        )
        RETURNING id
        """
    ).fetchall()
    time.sleep(0.1)  # it works on them: who does not honour its claim takes them meanwhile
    for row in claimed:
        connection.execute(
            "UPDATE webhook_retry_queue SET status = 'processed', processed_at = now() WHERE id = %s",
            (row["id"],),
        )
        traffic.handled[row["id"]] += 1


def _insert(connection: psycopg.Connection[dict[str, Any]], traffic: Traffic) -> None:
    """A plain INSERT, by a role that may do no more."""
    connection.execute(
        "INSERT INTO email_queue (to_email, subject, html, email_type) "
        "VALUES ('traffic@example.com', 'Plain', '<p>Hi</p>', 'traffic')"
    )
    traffic.calls["inserted"] += 1
