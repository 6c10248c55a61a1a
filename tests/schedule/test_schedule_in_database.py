"""cron.schedule_in_database, as pg_cron has it, in a schema cron that postroom has made."""

from __future__ import annotations

from typing import LiteralString

import asyncpg
import pytest

from postroom.database.connect import Database
from postroom.database.migrate import migrate
from postroom.schedule.pg_cron import use_own
from tests.schedule.conftest import Clockwork, add_job, set_last_minute

HERE = "SELECT cron.schedule_in_database('mine', '* * * * *', 'SELECT 1', current_database()::text"
SIGNATURE = "cron.schedule_in_database(text, text, text, text, text, boolean)"
VERSION_1: LiteralString = """
    DROP FUNCTION cron.schedule_in_database;
    COMMENT ON SCHEMA cron IS 'postroom: jobs and their history, version 1';
"""


async def test_a_job_for_this_database_is_one_as_by_schedule(
    clockwork: Clockwork, database: Database
) -> None:
    """It runs; the same name again changes it, and active is heeded."""
    jobid = await database.fetchval(f"{HERE})")
    await set_last_minute(database)
    scheduler = clockwork.scheduler()
    await clockwork.tick(scheduler, minutes=1)
    await scheduler.settled()
    assert "SELECT 1" in [command for command, _ in clockwork.ran]
    assert await database.fetchval(f"{HERE}, current_user::text, active => false)") == jobid
    job = await database.fetchrow(
        "SELECT active, username = current_user FROM cron.job WHERE jobid = $1", jobid
    )
    assert job is not None
    assert tuple(job) == (False, True)


async def test_another_database_or_user_is_refused_and_told_what_to_do(database: Database) -> None:
    """No job is made."""
    call = "SELECT cron.schedule_in_database('mine', '@daily', 'SELECT 1', $1, $2)"
    here = await database.fetchval("SELECT current_database()")
    for where in ("elsewhere", None):
        with pytest.raises(asyncpg.FeatureNotSupportedError) as refused:
            await database.fetchval(call, where, None)
        assert f"postroom runs jobs in its own database, '{here}'" in str(refused.value)
        assert "schedule the job where it belongs" in f"{refused.value.hint}"
    with pytest.raises(asyncpg.FeatureNotSupportedError) as refused:
        await database.fetchval(call, here, "somebody")
    assert "username is 'somebody'; a scheduler runs a person's SQL only as its own user" in str(
        refused.value
    )
    assert f"{refused.value.hint}".startswith("Leave username out, for postgres")
    assert await database.fetchval("SELECT count(*) FROM cron.job WHERE jobname = 'mine'") == 0


async def test_a_schema_of_version_1_gets_it_and_keeps_jobs_and_history(
    clockwork: Clockwork, database: Database, database_url: str
) -> None:
    """By the next migrate."""
    jobid = await add_job(database, "mine")
    scheduler = clockwork.scheduler()
    await clockwork.tick(scheduler, minutes=1)
    await scheduler.settled()
    await database.execute(VERSION_1)
    queries = ("SELECT * FROM cron.job ORDER BY jobid", "SELECT * FROM cron.job_run_details ORDER BY runid")
    before = [await database.fetch(query) for query in queries]
    assert [len(rows) for rows in before] == [6, 2]
    await migrate(database_url)
    assert [await database.fetch(query) for query in queries] == before
    assert await database.fetchval(f"{HERE})") == jobid


@pytest.mark.parametrize("before", ["SELECT 1", VERSION_1])
async def test_the_schema_is_given_over_whichever_version_made_it(
    database: Database, before: LiteralString
) -> None:
    """Its functions are all named where it is dropped; made again, it is whole."""
    await database.execute(before)
    assert await database.fetchval("SELECT postroom.drop_cron_schema()")
    assert await database.fetchval("SELECT to_regnamespace('cron') IS NULL")
    await use_own(database)
    assert await database.fetchval("SELECT to_regprocedure($1) IS NOT NULL", SIGNATURE)
