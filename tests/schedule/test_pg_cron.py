"""pg_cron, as Debian has it on PostgreSQL 15: it runs the net jobs, as an owner who is no superuser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psycopg
import pytest
from psycopg import sql

from postroom import Room
from postroom.database.migrate import migrate
from postroom.errors import PostroomError
from postroom.jobs import CLEANUP
from postroom.schedule.cleanup import cleanup
from postroom.schedule.health import read_job_health
from postroom.schedule.pg_cron import adopt, use_own, use_pg_cron
from postroom.schedule.status import read_cron
from postroom.schedule.store import CronStore
from tests.alerts.conftest import open_hook
from tests.conftest import DEBIAN_15
from tests.http.conftest import serving, settings_of
from tests.support.postgres import SETTINGS, PostgresServer, running_server
from tests.support.waiting import until

CONTROL = Path("/usr/share/postgresql/15/extension/pg_cron.control")
PRELOADED = "shared_preload_libraries = 'pg_cron'\ncron.database_name = 'house'\n"
NAMES = ("process-email-queue", "process-webhook-retries")

PG_NET: LiteralString = """
    CREATE SCHEMA net;
    CREATE TABLE net.asked (
        id bigint GENERATED ALWAYS AS IDENTITY, url text, headers jsonb, timeout_ms integer
    );
    CREATE FUNCTION net.http_post(
        url text, body jsonb DEFAULT '{}', params jsonb DEFAULT '{}', headers jsonb DEFAULT '{}',
        timeout_milliseconds integer DEFAULT 5000
    ) RETURNS bigint LANGUAGE sql AS
    'INSERT INTO net.asked (url, headers, timeout_ms) VALUES ($1, $4, $5) RETURNING id';
    GRANT USAGE ON SCHEMA net TO PUBLIC;
    GRANT ALL ON net.asked TO PUBLIC;
"""


@contextmanager
def server_with_pg_cron() -> Iterator[PostgresServer]:
    """A server that has pg_cron loaded, for a database `house`."""
    if not (DEBIAN_15 / "initdb").exists() or not CONTROL.exists():
        pytest.skip("needs Debian's package postgresql-15-cron")
    with running_server(DEBIAN_15, SETTINGS + PRELOADED) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE owner LOGIN CREATEROLE")
            connection.execute("CREATE ROLE stranger LOGIN")
        yield server


class House:
    """A database `house`, whose owner is no superuser."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url = server.url_of("house", "owner")

    def run_as(self, user: str, statement: LiteralString, view: str) -> list[tuple[Any, ...]]:
        """A query of one of postroom's views, as somebody."""
        with psycopg.connect(self._server.url_of("house", user), autocommit=True) as connection:
            return connection.execute(sql.SQL(statement).format(sql.Identifier(view))).fetchall()

    def root(self, statement: LiteralString, *arguments: object) -> list[tuple[Any, ...]]:
        """One statement of a superuser's."""
        return self._run("postgres", statement, arguments)

    def own(self, statement: LiteralString, *arguments: object) -> list[tuple[Any, ...]]:
        """One statement of the owner's."""
        return self._run("owner", statement, arguments)

    def _run(
        self, user: str, statement: LiteralString, arguments: tuple[object, ...]
    ) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._server.url_of("house", user), autocommit=True) as connection:
            cursor = connection.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def fresh_house(server: PostgresServer) -> Iterator[House]:
    """A database in which pg_cron is not installed yet."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE house OWNER owner")
        yield House(server)
        connection.execute("DROP DATABASE house WITH (FORCE)")


@pytest.fixture(scope="module")
def pg_cron_server() -> Iterator[PostgresServer]:
    """The server of this file's tests."""
    with server_with_pg_cron() as server:
        yield server


@pytest.fixture
def house(pg_cron_server: PostgresServer) -> Iterator[House]:
    """A fresh one."""
    with fresh_house(pg_cron_server) as one:
        yield one


def install(house: House) -> None:
    """As a superuser would."""
    house.root("CREATE EXTENSION pg_cron")
    house.root("GRANT USAGE ON SCHEMA cron TO owner")


async def test_where_it_is_installed_it_has_the_net_jobs_and_our_scheduler_the_rest(house: House) -> None:
    """By name, once, however often one migrates; ids are pg_cron's own."""
    install(house)
    await migrate(house.url)
    async with Room(database_url=house.url) as room:
        for _ in range(2):
            said = await adopt(room.database, None)
        assert said[0].startswith("pg_cron runs process-email-queue: it wakes workers; to deliver where none")
        jobs = house.own("SELECT jobname::text, schedule, command, username, active FROM cron.job ORDER BY 1")
        assert jobs == [
            ("process-email-queue", "* * * * *", _wakes("process-email-queue"), "owner", True),
            ("process-webhook-retries", "*/5 * * * *", _wakes("process-webhook-retries"), "owner", True),
        ]
        assert [job.name for job in await CronStore(room.database).jobs()] == ["cleanup", "alerts"]
        shown = house.own("SELECT jobname, run_by FROM postroom.cron_jobs ORDER BY jobid")
        assert shown == [
            (NAMES[0], "pg_cron"),
            (NAMES[1], "pg_cron"),
            ("cleanup", "postroom"),
            ("alerts", "postroom"),
        ]


async def test_service_role_sees_them_too_and_nobody_else_does(house: House) -> None:
    """Though pg_cron shows a user only its own jobs."""
    install(house)
    await migrate(house.url)
    async with Room(database_url=house.url) as room:
        await adopt(room.database, None)
    house.root("CREATE ROLE service LOGIN IN ROLE service_role")
    try:
        for view in ("cron_jobs", "cron_runs"):
            seen = house.run_as("service", "SELECT count(*) FROM postroom.{}", view)
            assert seen == [(4 if view == "cron_jobs" else 0,)]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                house.run_as("stranger", "SELECT count(*) FROM postroom.{}", view)
    finally:
        house.root("DROP ROLE service")


async def test_a_job_of_the_users_own_is_kept_and_reported(house: House) -> None:
    """Also one that has our name: then ours stays with postroom's scheduler."""
    install(house)
    mine = "SELECT net.http_post('https://x.supabase.co/functions/v1/process-email-queue')"
    house.own("SELECT cron.schedule('process-email-queue', '*/2 * * * *', %s)", mine)
    house.own("SELECT cron.schedule('retries', '* * * * *', 'SELECT * FROM get_webhook_retry_batch(10)')")
    house.own("SELECT cron.schedule('other', '* * * * *', 'SELECT 1')")
    await migrate(house.url)
    async with Room(database_url=house.url) as room:
        for _ in range(2):
            said = await adopt(room.database, None)
        assert said[-2:] == [
            "pg_cron's job 1 'process-email-queue' is yours and is kept; it calls process-email-queue",
            "pg_cron's job 2 'retries' is yours and is kept; it calls get_webhook_retry_batch",
        ]
        assert house.own("SELECT schedule, command FROM cron.job WHERE jobid = 1") == [("*/2 * * * *", mine)]
        assert [job.name for job in await CronStore(room.database).jobs()] == ["cleanup", "alerts", NAMES[0]]
        assert len({job.jobid for job in (await read_cron(room.database)).jobs}) == 7


async def test_without_the_right_to_its_schema_our_scheduler_goes_on(house: House) -> None:
    """And says which right it is."""
    house.root("CREATE EXTENSION pg_cron")
    await migrate(house.url)
    async with Room(database_url=house.url) as room:
        (said,) = await adopt(room.database, None)
        assert said.endswith("so postroom's scheduler runs the jobs: GRANT USAGE ON SCHEMA cron TO owner")
        assert len(await CronStore(room.database).jobs()) == 4
        assert len((await read_cron(room.database)).jobs) == 4


async def test_a_setting_changes_pg_crons_job_and_takes_it_away(house: House) -> None:
    """What somebody else takes away is run by our scheduler again."""
    install(house)
    await migrate(house.url)
    async with Room(database_url=house.url) as room:
        await adopt(room.database, None)
        schedule: LiteralString = "SELECT schedule FROM cron.job WHERE jobname = 'process-email-queue'"
        house.own("SELECT postroom.set_setting('cron.process-email-queue', '*/3 * * * *')")
        assert house.own(schedule) == [("*/3 * * * *",)]
        house.own("SELECT postroom.set_setting('cron.process-email-queue', 'off')")
        assert house.own(schedule) == []
        assert [job.name for job in await CronStore(room.database).jobs()] == ["cleanup", "alerts"]
        house.own("SELECT postroom.set_setting('cron.process-email-queue', '* * * * *')")
        assert house.own(schedule) == [("* * * * *",)]
        house.own("SELECT cron.unschedule('process-email-queue')")
        assert [job.name for job in await CronStore(room.database).jobs()] == ["cleanup", "alerts", NAMES[0]]


async def test_by_pg_net_it_asks_our_door_with_a_key_that_only_this_door_takes(
    house: House, tmp_path: Path
) -> None:
    """What is due goes out with no worker running; no key stands in cron.job."""
    install(house)
    house.root(PG_NET)
    await migrate(house.url)
    async with Room(**settings_of(house.url, tmp_path)) as room, serving(room, key=None) as door:
        said = await adopt(room.database, door.url)
        assert said == [f"pg_cron runs {name}" for name in (*NAMES, "alerts")]
        house.own("INSERT INTO email_queue (to_email, subject, html) VALUES ('ada@example.com', 's', 'h')")
        ((command,),) = house.own("SELECT command FROM cron.job WHERE jobname = 'process-email-queue'")
        assert command == f"SELECT postroom.post_job('process-email-queue', '{door.url}')"
        house.own(command)
        ((url, headers, timeout_ms),) = house.own("SELECT url, headers, timeout_ms FROM net.asked")
        assert (url, timeout_ms) == (f"{door.url}/functions/v1/process-email-queue", 60_000)
        async with httpx.AsyncClient(headers=headers, trust_env=False) as pg_net:
            answer = await pg_net.post(url, json={}, timeout=30)
            assert (answer.status_code, answer.json()["processed"]) == (200, 1)
            other = await pg_net.post(f"{door.url}/functions/v1/send-email", json={})
            assert other.status_code == 401
            house.own("UPDATE postroom.job_keys SET made_at = now() - interval '11 minutes'")
            assert (await pg_net.post(url, json={})).status_code == 401


async def test_alerts_are_sent_where_only_pg_cron_runs(house: House, tmp_path: Path) -> None:
    """It asks our door each minute; where it cannot reach us any more, our scheduler has the job again."""
    install(house)
    house.root(PG_NET)
    await migrate(house.url)
    async with open_hook() as hook:
        table = {"targets": {"ops": {"webhook": hook.url}}, "rules": {"no_worker": "0s"}}
        settings = settings_of(house.url, tmp_path, alerts=table)
        async with Room(**settings) as room, serving(room, key=None) as door:
            await adopt(room.database, door.url)
            house.own(
                "INSERT INTO email_queue (to_email, subject, html) VALUES ('ada@example.com', 's', 'h')"
            )
            ((command,),) = house.own("SELECT command FROM cron.job WHERE jobname = 'alerts'")
            house.own(command)
            ((url, headers),) = house.own("SELECT url, headers FROM net.asked")
            async with httpx.AsyncClient(headers=headers, trust_env=False) as pg_net:
                answer = await pg_net.post(url, json={}, timeout=30)
            assert answer.json() == {"message": "no_worker found, 1 message sent"}
            assert hook.told == [("alert.fired", "no_worker", "email")]
            await adopt(room.database, None)
            assert house.own("SELECT 1 FROM cron.job WHERE jobname = 'alerts'") == []
            assert [job.name for job in await CronStore(room.database).jobs()] == ["cleanup", "alerts"]


async def test_monitoring_sees_pg_crons_jobs_fail_and_fall_silent(house: House) -> None:
    """Though their history is pg_cron's own, and no scheduler of ours leads."""
    install(house)
    await migrate(house.url)
    async with Room(database_url=house.url) as room:
        await adopt(room.database, None)
        runs: LiteralString = """
            INSERT INTO cron.job_run_details (jobid, runid, username, command, status, start_time, end_time)
            SELECT job.jobid, %s, 'owner', 'x', %s, now() - %s::interval, now()
            FROM cron.job AS job
            WHERE job.jobname = 'process-email-queue'
        """
        # Once an hour, in five minutes: pg_cron itself does not come between.
        minute = (datetime.now(UTC).minute + 5) % 60
        house.root("UPDATE cron.job SET schedule = %s", f"{minute} * * * *")
        house.root(runs, 1, "succeeded", "130 minutes")
        house.root(runs, 2, "failed", "126 minutes")
        health = {job.name: job for job in await read_job_health(room.database)}
        assert set(health) == {*NAMES, "cleanup", "alerts"}
        emails, webhooks = (health[name] for name in NAMES)
        assert (emails.failing, webhooks.failing) == (True, False)
        assert 114 * 60 < emails.overdue_s < 116 * 60
        assert webhooks.overdue_s == 0
        assert emails.last_success_s > 0
        house.root(runs, 3, "succeeded", "0 minutes")
        health = {job.name: job for job in await read_job_health(room.database)}
        assert (health[NAMES[0]].failing, health[NAMES[0]].overdue_s) == (False, 0)


async def test_it_is_not_taken_for_wanted_where_it_could_be_installed(house: House) -> None:
    """Schema cron is made only when somebody says so, and given over when somebody says so."""
    await migrate(house.url)
    assert house.own("SELECT to_regnamespace('cron') IS NULL") == [(True,)]
    assert len(house.own("SELECT * FROM postroom.cron_jobs")) == 4
    async with Room(database_url=house.url) as room:
        assert (await use_own(room.database)).startswith("schema cron shows postroom's jobs")
        await migrate(house.url)
        assert house.own("SELECT jobid FROM cron.job ORDER BY 1 LIMIT 2") == [(19,), (20,)]
        house.own("SELECT cron.schedule('mine', '@daily', 'SELECT 42')")
        with pytest.raises(psycopg.errors.DuplicateSchema):
            house.root("CREATE EXTENSION pg_cron")

        given, told = await use_pg_cron(room.database, None)
        assert given == "schema cron is given over"
        assert "CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO owner" in told
        await migrate(house.url)
        install(house)
        said = await use_pg_cron(room.database, None)
        assert "job mine is pg_cron's now" in said
        assert house.own("SELECT command FROM cron.job WHERE jobname = 'mine'") == [("SELECT 42",)]
        with pytest.raises(PostroomError, match="DROP EXTENSION pg_cron, then again"):
            await use_own(room.database)

        house.root("DROP EXTENSION pg_cron")
        assert {job.name for job in await CronStore(room.database).jobs()} == {*NAMES, "cleanup", "alerts"}
        await use_own(room.database)


async def test_a_schema_that_others_need_is_not_given_over(house: House) -> None:
    """A view of the user's own on cron.job: it is named, and nothing is changed."""
    await migrate(house.url)
    async with Room(database_url=house.url) as room:
        await use_own(room.database)
        house.own("CREATE VIEW my_jobs AS SELECT * FROM cron.job")
        with pytest.raises(PostroomError, match=r"view public.my_jobs depends on view cron.job"):
            await use_pg_cron(room.database, None)
        assert len(house.own("SELECT * FROM my_jobs")) == 4


async def test_a_schema_cron_of_the_users_own_is_left_alone(house: House) -> None:
    """The jobs run all the same."""
    house.own("CREATE SCHEMA cron")
    await migrate(house.url)
    async with Room(database_url=house.url) as room:
        with pytest.raises(PostroomError, match="a schema cron that is not postroom's"):
            await use_own(room.database)
        assert len(await CronStore(room.database).jobs()) == 4


async def test_cleanup_forgets_what_our_jobs_have_written_into_its_history(house: House) -> None:
    """pg_cron itself never does; a person's own history is a person's own."""
    install(house)
    await migrate(house.url)
    async with Room(database_url=house.url) as room:
        await adopt(room.database, None)
        house.root(
            """
            INSERT INTO cron.job_run_details (jobid, runid, username, command, status, start_time, end_time)
            SELECT
                1, n, 'owner', 'SELECT postroom.wake_for_job(''process-email-queue'')', 'succeeded',
                now() - n * interval '1 day', now() - n * interval '1 day'
            FROM generate_series(1, 20, 2) AS n
            """
        )
        house.root(
            """
            INSERT INTO cron.job_run_details (jobid, runid, username, command, status, start_time, end_time)
            VALUES (9, 99, 'owner', 'SELECT 1', 'succeeded', '2020-01-01', '2020-01-01')
            """
        )
        assert len(house.own("SELECT * FROM postroom.cron_runs")) == 11
        dry = await cleanup(room.database, CLEANUP, dry_run=True)
        assert dry[-1].counts == {"cron": 7}
        assert (await cleanup(room.database, CLEANUP))[-1].counts == {"cron": 7}
        left = house.own("SELECT runid FROM cron.job_run_details ORDER BY 1")
        assert [runid for (runid,) in left] == [1, 3, 5, 99]


@pytest.mark.chaos
@pytest.mark.timeout(200)
async def test_pg_cron_itself_runs_the_job() -> None:
    """Within its minute; its history is ours to show."""
    with server_with_pg_cron() as server, fresh_house(server) as house:  # a drop of its database ends pg_cron
        install(house)
        house.root(PG_NET)
        await migrate(house.url)
        async with Room(database_url=house.url) as room:
            await adopt(room.database, "http://127.0.0.1:1")
            await until(lambda: bool(house.own("SELECT * FROM net.asked")), limit_s=90)
            history: LiteralString = "SELECT status, return_message FROM postroom.cron_runs"
            await until(lambda: ("succeeded", "1 row") in house.own(history))
            (job,) = [job for job in (await read_cron(room.database)).jobs if job.name == NAMES[0]]
            assert (job.run_by, job.last_status) == ("pg_cron", "succeeded")


def _wakes(name: str) -> str:
    return f"SELECT postroom.wake_for_job('{name}')"
