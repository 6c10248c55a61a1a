"""Runs: begun once a minute, caught up once, ended or given up."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from postroom.database.connect import Database
from postroom.schedule.sql_job import run_sql
from tests.schedule.conftest import NOON, Clockwork, add_job
from tests.support.waiting import until

EMAILS = "process-email-queue"


def minute(number: int) -> object:
    """So many minutes after noon."""
    return NOON + timedelta(minutes=number)


async def test_each_minute_is_run_once_however_often_one_looks(clockwork: Clockwork) -> None:
    """Three minutes of ticks, each half a second."""
    scheduler = clockwork.scheduler()
    for _ in range(2 * 180 + 1):
        await clockwork.tick(scheduler)
        await scheduler.settled()
        clockwork.now += timedelta(seconds=0.5)
    assert await clockwork.history() == [(EMAILS, "succeeded", minute(n)) for n in (1, 2, 3)]


async def test_of_a_hundred_missed_minutes_the_latest_is_caught_up(clockwork: Clockwork) -> None:
    """As cron does."""
    scheduler = clockwork.scheduler()
    await clockwork.tick(scheduler, minutes=100, seconds=7)
    await clockwork.tick(scheduler, seconds=1)
    await scheduler.settled()
    assert await clockwork.history() == [(EMAILS, "succeeded", minute(100))]


async def test_what_was_due_before_a_job_was_made_or_changed_is_not_caught_up(
    clockwork: Clockwork, database: Database
) -> None:
    """Neither for a new job, nor under a new schedule, nor while it was off."""
    for change in (
        "SELECT postroom.set_setting('cron.process-webhook-retries', '0 0 1 1 *')",
        "SELECT cron.schedule('new', '0 0 1 1 *', 'SELECT 1')",
        "SELECT cron.alter_job(19, active => false), cron.alter_job(19, active => true)",
    ):
        await database.execute(change)
    young = await database.fetchval(
        "SELECT bool_and(last_minute > now() - interval '1 minute') FROM postroom.jobs WHERE jobid < 1000"
    )
    assert young


async def test_a_slow_job_holds_up_no_other_and_is_not_begun_twice(
    clockwork: Clockwork, database: Database
) -> None:
    """While it hangs, others run each minute; its own missed minutes are caught up once."""
    await add_job(database, "quick")
    scheduler = clockwork.scheduler()
    clockwork.hold.set()
    for _ in range(5):
        await clockwork.tick(scheduler, minutes=1)
        await asyncio.sleep(0.05)
    runs = await clockwork.history()
    assert [run for run in runs if run[0] == EMAILS] == [(EMAILS, "running", minute(1))]
    assert [run[2] for run in runs if run[0] == "quick"] == [minute(n) for n in range(1, 6)]


async def test_a_run_whose_scheduler_died_is_given_up_and_its_job_runs_on(clockwork: Clockwork) -> None:
    """It is failed in the history within a lease; the next minute comes as ever."""
    first, second = clockwork.scheduler(), clockwork.scheduler()
    clockwork.hold.set()
    await clockwork.tick(first, minutes=1)
    await clockwork.kill(first)
    clockwork.hold.clear()
    await clockwork.tick(second, seconds=6.1)
    assert await clockwork.history() == [(EMAILS, "failed", minute(1))]
    await clockwork.tick(second, seconds=54)
    await second.settled()
    assert await clockwork.history() == [(EMAILS, "failed", minute(1)), (EMAILS, "succeeded", minute(2))]


async def test_a_long_run_lives_as_long_as_its_scheduler_does_whoever_leads(clockwork: Clockwork) -> None:
    """Its scheduler may have lost the lead; nobody gives the run up, and its end is written down."""
    first, second = clockwork.scheduler(), clockwork.scheduler()
    clockwork.hold.set()
    await clockwork.tick(first, minutes=1)
    await clockwork.database.execute("UPDATE postroom.cron_leader SET leads_until = NULL")
    for _ in range(20):
        assert await clockwork.tick(second, seconds=2)
        assert not await clockwork.tick(first)
    assert [status for _, status, _ in await clockwork.history()] == ["running"]


async def test_a_run_that_was_given_up_cannot_change_its_end(clockwork: Clockwork) -> None:
    """A scheduler that was stopped and wakes finds its run failed; what it says then changes nothing."""
    first, second = clockwork.scheduler(), clockwork.scheduler()
    clockwork.hold.set()
    await clockwork.tick(first, minutes=1)
    (runid,) = first._runs
    await clockwork.tick(second, seconds=7)
    assert await first._store.extend(first.id, [runid], clockwork.now) == frozenset()
    assert not await first._store.end(first.id, runid, "succeeded", "too late", clockwork.now)
    assert await clockwork.history() == [(EMAILS, "failed", minute(1))]


async def test_the_history_says_what_came_of_it_in_pg_crons_words(
    clockwork: Clockwork, database: Database
) -> None:
    """Status, message, start and end; a failed run says why."""
    await add_job(database, "bad", command="fail")
    scheduler = clockwork.scheduler()
    await clockwork.tick(scheduler, minutes=1)
    await scheduler.settled()
    rows = await database.fetch(
        """
        SELECT
            job.jobname, run.status, run.return_message, run.start_time,
            run.end_time >= run.start_time AS ended
        FROM cron.job_run_details AS run JOIN cron.job AS job USING (jobid)
        ORDER BY jobid
        """
    )
    assert [tuple(row) for row in rows] == [
        (EMAILS, "succeeded", f"{EMAILS} done", minute(1), True),
        ("bad", "failed", "ValueError: as it was told", minute(1), True),
    ]


async def test_a_scheduler_that_is_told_to_end_breaks_off_what_does_not(
    clockwork: Clockwork, monkeypatch: object
) -> None:
    """And says so in the history."""
    from postroom.schedule import scheduler as module

    scheduler = clockwork.scheduler()
    clockwork.hold.set()
    await clockwork.tick(scheduler, minutes=1)
    ends, module.END_S_MAX = module.END_S_MAX, 0.1
    try:
        await scheduler._end()
    finally:
        module.END_S_MAX = ends
    rows = await clockwork.database.fetch("SELECT status, return_message FROM postroom.cron_runs")
    assert [tuple(row) for row in rows] == [("failed", "broken off: the process was told to end")]


async def test_sql_of_a_persons_own_runs_as_pg_cron_would_run_it(
    database: Database, database_url: str
) -> None:
    """VACUUM too, which no transaction allows; the message is the command's tag, or the number of rows."""
    assert await run_sql(database_url, "VACUUM postroom.jobs") == "VACUUM"
    assert await run_sql(database_url, "SELECT 1") == "1 row"
    assert await run_sql(database_url, "SELECT generate_series(1, 3)") == "3 rows"
    await run_sql(database_url, "CREATE TABLE t (n int); INSERT INTO t VALUES (1); SET statement_timeout = 1")
    assert await run_sql(database_url, "SELECT pg_sleep(0.1)") == "1 row"
    assert await run_sql(database_url, "DELETE FROM t") == "DELETE 1"


async def test_an_unscheduled_job_runs_no_more_and_keeps_its_history(
    clockwork: Clockwork, database: Database
) -> None:
    """One of postroom's own is switched off by its setting."""
    await add_job(database, "mine")
    scheduler = clockwork.scheduler()
    await clockwork.tick(scheduler, minutes=1)
    await scheduler.settled()
    await database.execute("SELECT cron.unschedule('mine'), cron.unschedule(19)")
    await clockwork.tick(scheduler, minutes=1)
    await scheduler.settled()
    assert len(clockwork.ran) == 2
    assert await database.fetchval("SELECT count(*) FROM cron.job_run_details") == 2
    settings = "SELECT value FROM postroom.settings WHERE key = 'cron.process-email-queue'"
    assert await database.fetchval(settings) == "off"
    await until(lambda: not scheduler._runs)
