"""Workers die by kill -9, again and again: each handler's writes are there exactly once an event."""

from __future__ import annotations

import random
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import psycopg
import pytest

from tests.journey.programs import Programs
from tests.webhooks.workshop import EFFECTS, ON_EVENT

Db = psycopg.Connection[tuple[Any, ...]]

SHOP = """
    from postroom import Room
    room = Room()

    @room.on("stripe", name="async")
    async def write(event, db):
        await db.execute("INSERT INTO effects VALUES ('async', $1)", event.event_id)

    @room.on("stripe", name="sync")
    def write_sync(event, db):
        db.execute("INSERT INTO effects VALUES ('sync', %s)", (event.event_id,))
"""
SOURCE = """
    [webhooks.stripe]
    secrets = ["whsec_x"]
    [[webhooks.stripe.handlers]]
    name = "sql"
    sql = "public.on_event"
"""
HANDLERS = ("async", "sql", "sync")
SLOW_SQL = """
    CREATE FUNCTION public.on_event(payload jsonb, event_id text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.effects (handler, event_id) VALUES ('sql', event_id);
        PERFORM pg_sleep(0.003);
    END $$
"""


@pytest.mark.timeout(240)
def test_killed_workers_write_each_effect_once(database_url: str, tmp_path: Path) -> None:
    """2,000 events, two workers, a kill -9 about every 0.7 s until all is handled: 2,000 rows a handler."""
    kill_and_count(database_url, tmp_path, events=2_000, kills=40)


@pytest.mark.timeout(240)
def test_killed_workers_write_each_effect_of_a_shared_statement_once(
    database_url: str, tmp_path: Path
) -> None:
    """The same with a SQL handler alone: the statement of a dead worker goes on, and its leases pass on."""
    kill_and_count(database_url, tmp_path, events=4_000, kills=12, only_sql=True)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_workers_that_are_killed_for_minutes_write_each_effect_once(
    database_url: str, tmp_path: Path
) -> None:
    """The same with 30,000 events."""
    kill_and_count(database_url, tmp_path, events=30_000, kills=400)


def kill_and_count(
    database_url: str, folder: Path, *, events: int, kills: int, only_sql: bool = False
) -> None:
    """Run it; effects have no unique key, so what happened twice is there twice."""
    (folder / "shop.py").write_text(dedent(SHOP))
    (folder / "postroom.toml").write_text(dedent(SOURCE))
    programs = Programs(
        folder, {"POSTROOM_DATABASE_URL": database_url, "POSTROOM_LOG": "json", "POSTROOM_CONCURRENCY": "16"}
    )
    arguments = ("worker", "--queues", "webhooks", *(() if only_sql else ("--app", "shop:room")))
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(f"{EFFECTS}; {SLOW_SQL if only_sql else ON_EVENT}")
        for key, value in {"lease": "1s", "webhook.backoff": "100ms"}.items():
            db.execute("SELECT postroom.set_setting(%s, %s)", (key, value))
        db.execute(
            """
            INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload, max_attempts)
            SELECT 'stripe', 'evt_' || n, '{"type": "checkout.done"}', 1000 FROM generate_series(1, %s) AS n
            """,
            (events,),
        )
        crew = [programs.start(*arguments) for _ in range(2)]
        done_kills, poisoned, ends = 0, 0, time.monotonic() + 900
        try:
            while left(db) and time.monotonic() < ends:
                time.sleep(random.uniform(0.6, 0.8))
                # Three deaths during an attempt make it wait for a person: the test is one.
                poisoned += retry_dead_letters(db)
                if done_kills < kills:
                    victim = random.randrange(len(crew))
                    crew[victim].kill()
                    crew[victim] = programs.start(*arguments)
                    done_kills += 1
            log = crew[0].log[-3000:]
        finally:
            for member in crew:
                member.kill()
        rows = db.execute(
            "SELECT handler, count(*), count(DISTINCT event_id) FROM effects GROUP BY 1 ORDER BY 1"
        ).fetchall()
        print(f"\nkilled {done_kills} workers: effects {rows}, {poisoned} events were poison for a while")
        assert done_kills >= 3, "the workers were through before they could be killed"
        assert rows == [(name, events, events) for name in (("sql",) if only_sql else HANDLERS)], log


def left(db: Db) -> int:
    row = db.execute("SELECT count(*) FROM webhook_retry_queue WHERE status <> 'processed'").fetchone()
    assert row is not None
    return int(row[0])


def retry_dead_letters(db: Db) -> int:
    """As `dead-letters retry --all` does; how many."""
    return db.execute(
        """
        SELECT postroom.retry_dead_webhooks(array_agg(id))
        FROM webhook_retry_queue WHERE status = 'dead_letter' HAVING count(*) > 0
        """
    ).rowcount
