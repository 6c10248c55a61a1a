"""Workers of a Django project die by kill -9, again and again: each event's writes are there exactly once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from postroom import failpoints
from tests.journey.programs import Programs
from tests.support.waiting import until_now
from tests.webhooks.test_handlers_kill import Db, left, retry_dead_letters

WORKER = ("worker", "--queues", "webhooks", "--app", "postroom.django:room")
WAVE = 150
PROCESSED = '"event":"webhook.processed"'
ROOT = str(Path(__file__).parents[2])
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
    FROM generate_series(%s::integer, %s::integer) AS n
"""


@pytest.mark.timeout(240)
def test_killed_workers_write_each_order_and_queue_each_receipt_once(
    database_url: str, tmp_path: Path
) -> None:
    """Four times 150 events and a kill -9 in the midst of them: 600 orders and 600 receipts."""
    kill_and_count(database_url, tmp_path, kills=4)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_workers_that_are_killed_for_minutes_write_each_order_once(database_url: str, tmp_path: Path) -> None:
    """The same with 150 kills."""
    kill_and_count(database_url, tmp_path, kills=150)


@pytest.mark.parametrize("point", ["plain_handler.effect", "plain_handler.mark"])
def test_a_worker_that_dies_between_effect_and_commit_leaves_nothing(
    database_url: str, tmp_path: Path, point: str
) -> None:
    """Order, receipt and mark of its event are undone together; another worker makes them once."""
    programs = programs_of(database_url, tmp_path)
    with psycopg.connect(database_url, autocommit=True) as db:
        set_short_times(db)
        db.execute(EVENTS, (1, 5))
        programs.settings[failpoints.VARIABLE] = f"{point}=kill@2"
        victim = programs.start(*WORKER)
        until_now(lambda: victim.process.poll() is not None)
        del programs.settings[failpoints.VARIABLE]
        done = "SELECT count(*) FROM webhook_retry_queue WHERE handlers_done = '{fulfil}'"
        for what in ("shop_order", "email_queue"):
            assert db.execute(f"SELECT count(*) FROM {what}").fetchone() == db.execute(done).fetchone()
        with programs.running(*WORKER):
            until_now(lambda: not left(db))
        for what in ("shop_order", "email_queue"):
            assert db.execute(f"SELECT count(*) FROM {what}").fetchone() == (5,)


def kill_and_count(database_url: str, folder: Path, *, kills: int) -> None:
    """Run it; orders have no unique key, so what happened twice is there twice."""
    programs = programs_of(database_url, folder)
    with psycopg.connect(database_url, autocommit=True) as db:
        set_short_times(db)
        crew = [programs.start(*WORKER) for _ in range(2)]
        try:
            for number in range(kills):
                for member in crew:
                    member.working()
                db.execute(EVENTS, (number * WAVE + 1, (number + 1) * WAVE))
                victim = random.randrange(len(crew))
                before = len(crew[victim].log)
                wait_for(lambda: PROCESSED in crew[victim].log[before:] or not left(db))  # noqa: B023
                time.sleep(random.uniform(0.0, 0.2))
                crew[victim].kill()
                crew[victim] = programs.start(*WORKER)
            # Three deaths during an attempt make it wait for a person: the test is one.
            wait_for(lambda: retry_dead_letters(db) < 0 or not left(db))
            log = crew[0].log[-3000:]
        finally:
            for member in crew:
                member.kill()
        orders = db.execute("SELECT count(*), count(DISTINCT stripe_id) FROM shop_order").fetchone()
        receipts = db.execute("SELECT count(*) FROM email_queue").fetchone()
        assert orders == (kills * WAVE, kills * WAVE), log
        assert receipts == (kills * WAVE,), log


def programs_of(database_url: str, folder: Path) -> Programs:
    """The tests' project, as programs."""
    return Programs(
        folder,
        {
            "DJANGO_SETTINGS_MODULE": "tests.django.settings",
            "SHOP_DATABASE_URL": database_url,
            "PYTHONPATH": ROOT,
            "POSTROOM_LOG": "json",
            "POSTROOM_CONCURRENCY": "16",
        },
    )


def set_short_times(db: Db) -> None:
    for key, value in {"lease": "1s", "webhook.backoff": "100ms"}.items():
        db.execute("SELECT postroom.set_setting(%s, %s)", (key, value))


def wait_for(condition: Callable[[], bool]) -> None:
    until_now(condition, limit_s=100)
