"""Workers of a Django project die by kill -9, again and again: each event's writes are there exactly once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psycopg
import pytest

from tests.journey.programs import Programs
from tests.webhooks.test_handlers_kill import left, retry_dead_letters

ROOT = str(Path(__file__).parents[2])
ORDERS = "CREATE TABLE shop_order (id bigint GENERATED ALWAYS AS IDENTITY, stripe_id text NOT NULL)"
EVENTS = """
    INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload, max_attempts)
    SELECT
        'stripe', 'evt_' || n,
        jsonb_set(
            '{
                "type": "checkout.session.completed",
                "data": {"object": {"customer_email": "ada@example.com"}}
            }',
            '{data,object,id}', to_jsonb('cs_' || n)
        ),
        1000
    FROM generate_series(1, %s) AS n
"""


@pytest.mark.timeout(240)
def test_killed_workers_write_each_order_and_queue_each_receipt_once(
    database_url: str, tmp_path: Path
) -> None:
    """600 events, two workers, a kill -9 as soon as one has done something: 600 orders and 600 receipts."""
    kill_and_count(database_url, tmp_path, events=600, kills=4)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_workers_that_are_killed_for_minutes_write_each_order_once(database_url: str, tmp_path: Path) -> None:
    """The same with 20,000 events."""
    kill_and_count(database_url, tmp_path, events=20_000, kills=150)


def kill_and_count(database_url: str, folder: Path, *, events: int, kills: int) -> None:
    """Run it; orders have no unique key, so what happened twice is there twice."""
    programs = Programs(
        folder,
        {
            "DJANGO_SETTINGS_MODULE": "tests.django.settings",
            "SHOP_DATABASE_URL": database_url,
            "PYTHONPATH": ROOT,
            "POSTROOM_LOG": "json",
            "POSTROOM_CONCURRENCY": "16",
        },
    )
    arguments = ("worker", "--queues", "webhooks", "--app", "postroom.django:room")
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(ORDERS)
        for key, value in {"lease": "1s", "webhook.backoff": "100ms"}.items():
            db.execute("SELECT postroom.set_setting(%s, %s)", (key, value))
        db.execute(EVENTS, (events,))
        crew = [programs.start(*arguments) for _ in range(2)]
        killed, ends = 0, time.monotonic() + 900
        try:
            while left(db) and time.monotonic() < ends:
                assert all(member.process.poll() is None for member in crew), crew[0].log[-3000:]
                retry_dead_letters(
                    db
                )  # three deaths during an attempt make it wait for a person: the test is one
                victim = random.randrange(len(crew))
                # A start of Django's takes a second: one that has done nothing yet proves nothing.
                if killed < kills and '"event":"webhook.processed"' in crew[victim].log:
                    time.sleep(random.uniform(0.0, 0.4))
                    crew[victim].kill()
                    crew[victim] = programs.start(*arguments)
                    killed += 1
                time.sleep(0.05)
            log = crew[0].log[-3000:]
        finally:
            for member in crew:
                member.kill()
        orders = db.execute("SELECT count(*), count(DISTINCT stripe_id) FROM shop_order").fetchone()
        receipts = db.execute("SELECT count(*) FROM email_queue").fetchone()
        print(f"\nkilled {killed} workers: orders {orders}, receipts {receipts}")
        assert killed >= 3, "the workers were through before they could be killed"
        assert orders == (events, events), log
        assert receipts == (events,), log
