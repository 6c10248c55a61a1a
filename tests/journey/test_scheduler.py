"""`postroom scheduler` as a process: two of them, of which one is killed, stopped, or told to end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from postroom.database.migrate import migrate
from tests.journey.programs import Program, Programs
from tests.support.pgbouncer import running_pgbouncer
from tests.support.postgres import running_server
from tests.support.waiting import until_now

Db = psycopg.Connection[tuple[Any, ...]]

BEAT = "INSERT INTO public.beats DEFAULT VALUES"


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    """The programs' database, with a person's own job that leaves a mark each second."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.beats (at timestamptz DEFAULT clock_timestamp())")
        connection.execute("SELECT cron.schedule('beat', '1 second', %s)", (BEAT,))
        yield connection


@contextmanager
def two_schedulers(programs: Programs, db: Db) -> Iterator[tuple[Program, Program]]:
    """The one that leads, and the one that waits."""
    started = [programs.start("scheduler"), programs.start("scheduler")]
    try:
        until_now(lambda: all(each.events("scheduler.started") for each in started) and _beats(db) > 1)
        (leader,) = [each for each in started if each.events("scheduler.leads")]
        (other,) = [each for each in started if each is not leader]
        yield leader, other
    finally:
        for each in started:
            each.process.send_signal(signal.SIGCONT)
            each.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_when_the_leader_falls_another_takes_over_in_time(
    programs: Programs, db: Db, number: signal.Signals
) -> None:
    """No job waits for longer than its interval and 10 s; no second has two runs; nothing stays running."""
    with two_schedulers(programs, db) as (leader, other):
        os.kill(leader.process.pid, number)
        until_now(lambda: bool(other.events("scheduler.leads")))
        count = _beats(db)
        until_now(lambda: _beats(db) > count + 2)
        if number == signal.SIGSTOP:
            os.kill(leader.process.pid, signal.SIGCONT)
            until_now(lambda: _beats(db) > count + 5)
        assert other.end() == 0, other.log
    (gap_s, doubled, running) = _one(
        db,
        """
        SELECT
            (SELECT extract(EPOCH FROM max(gap)) FROM (
                SELECT start_time - lag(start_time) OVER (ORDER BY start_time) AS gap
                FROM postroom.job_runs AS run JOIN postroom.jobs AS job USING (jobid)
                WHERE job.jobname = 'beat'
            ) AS gaps),
            (SELECT count(*) - count(DISTINCT (jobid, minute)) FROM postroom.job_runs),
            (SELECT count(*) FROM postroom.job_runs WHERE status = 'running' AND scheduler <> (
                SELECT scheduler FROM postroom.cron_leader))
        """,
    )
    assert gap_s <= 11
    assert (doubled, running) == (0, 0)


def test_due_mail_goes_out_without_any_worker(programs: Programs, db: Db, tmp_path: Any) -> None:
    """The scheduler alone delivers what is due, each minute; the history says how many."""
    programs.settings["POSTROOM_TRANSPORT"] = f"maildir:{tmp_path / 'mail'}"
    db.execute("INSERT INTO email_queue (to_email, subject, html) VALUES ('ada@example.com', 's', 'h')")
    db.execute("UPDATE postroom.jobs SET last_minute = '2026-01-01'")
    with programs.running("scheduler"):
        until_now(lambda: _one(db, "SELECT status FROM email_queue") == ("sent",))
        until_now(lambda: bool(_messages(db, "process-email-queue")))
    assert _messages(db, "process-email-queue")[0] == "1 sent, 0 failed, 0 put back to wait"


def test_where_workers_live_the_jobs_leave_the_work_to_them(
    programs: Programs, db: Db, tmp_path: Any
) -> None:
    """`postroom up` has both: the job returns at once."""
    programs.settings["POSTROOM_TRANSPORT"] = f"maildir:{tmp_path / 'mail'}"
    db.execute("UPDATE postroom.jobs SET last_minute = '2026-01-01'")
    with programs.running("up") as up:
        up.ready()
        until_now(lambda: bool(_messages(db, "process-webhook-retries")))
        until_now(lambda: bool(_messages(db, "process-email-queue")))
    assert _messages(db, "process-email-queue")[0] == "left to 1 worker"
    assert _messages(db, "process-webhook-retries")[0] == "left to 1 worker"


_NET_RUNS = """
    SELECT array_agg(DISTINCT jobid ORDER BY jobid)
    FROM cron.job_run_details
    WHERE jobid < 100
"""


def test_the_net_is_run_as_soon_as_a_scheduler_begins(programs: Programs, db: Db) -> None:
    """Both jobs, once, by the first one that starts: what the monitoring query shows right away."""
    with programs.running("scheduler"):
        until_now(lambda: _one(db, _NET_RUNS) == ([19, 20],))


@pytest.mark.timeout(180)
def test_it_goes_on_behind_a_pooler_and_over_a_restart_of_the_server(tmp_path: Path) -> None:
    """PgBouncer in transaction mode; PostgreSQL dies as in a crash, and comes back."""
    with running_server() as server, running_pgbouncer(server) as port:
        asyncio.run(migrate(server.url))
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        programs = Programs(tmp_path, {"POSTROOM_DATABASE_URL": url, "POSTROOM_LOG": "json"})
        with psycopg.connect(server.url, autocommit=True) as db:
            db.execute("CREATE TABLE public.beats (at timestamptz DEFAULT clock_timestamp())")
            db.execute("SELECT cron.schedule('beat', '1 second', %s)", (BEAT,))
            with programs.running("scheduler") as one, programs.running("scheduler") as other:
                until_now(lambda: _beats(db) > 2)
                server.stop(signal.SIGQUIT)
                until_now(lambda: bool(one.events("database.away")) and bool(other.events("database.away")))
                server.start()
                with psycopg.connect(server.url, autocommit=True) as again:
                    count = _beats(again)
                    until_now(lambda: _beats(again) > count + 3, limit_s=60)
                    doubled: Any = "SELECT count(*) - count(DISTINCT (jobid, minute)) FROM postroom.job_runs"
                    assert _one(again, doubled) == (0,)


def _messages(db: Db, job: str) -> list[str]:
    rows = db.execute(
        """
        SELECT run.return_message
        FROM cron.job_run_details AS run JOIN cron.job AS job USING (jobid)
        WHERE job.jobname = %s AND run.status = 'succeeded'
        ORDER BY run.runid
        """,
        (job,),
    )
    return [row[0] for row in rows]


def _beats(db: Db) -> int:
    (count,) = _one(db, "SELECT count(*) FROM beats")
    return int(count)


def _one(db: Db, query: Any) -> tuple[Any, ...]:
    row = db.execute(query).fetchone()
    assert row is not None
    return row
