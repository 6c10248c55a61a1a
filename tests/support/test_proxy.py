"""The proxy: what passes is what was said, and what is lost is lost where the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest

from postroom.database.connect import Database
from postroom.errors import DatabaseUnavailable
from tests.support.postgres import PostgresServer
from tests.support.proxy import (
    CUT_AFTER,
    CUT_BEFORE,
    HALF_OPEN_AFTER,
    HALF_OPEN_BEFORE,
    Delay,
    Fault,
    Proxy,
    Trickle,
    running_proxy,
)
from tests.support.waiting import until

INSERT = "INSERT INTO kept VALUES ($1)"
LOST = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError)


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[Proxy]:
    with running_proxy(postgres_server.port) as one:
        yield one


@pytest.fixture
def table_url(empty_database_url: str) -> str:
    """A database with a table `kept`."""
    with psycopg.connect(empty_database_url, autocommit=True) as direct:
        direct.execute("CREATE TABLE kept (n integer)")
    return empty_database_url


def kept(url: str) -> int:
    """How many rows are there, looked at directly."""
    with psycopg.connect(url) as direct:
        row = direct.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


@asynccontextmanager
async def connected(proxy: Proxy, url: str, **options: Any) -> Any:
    connection = await asyncpg.connect(proxy.url_of(url), **options)
    try:
        yield connection
    finally:
        connection.terminate()


async def test_both_drivers_and_large_answers_pass_unchanged(proxy: Proxy, table_url: str) -> None:
    """Prepared, unprepared and plain statements, COPY, a megabyte each way, errors and NOTIFY."""
    big = "x" * 2**20
    heard = asyncio.Event()
    for options in ({}, {"statement_cache_size": 0}):
        async with connected(proxy, table_url, **options) as one:
            for _ in range(3):
                assert await one.fetchval("SELECT $1::text", big) == big
            await one.copy_records_to_table("kept", records=[(1,), (2,)])
            with pytest.raises(asyncpg.UndefinedTableError):
                await one.fetch("SELECT FROM nowhere")
            await one.add_listener("bell", lambda *_: heard.set())
            await one.execute("NOTIFY bell")
            await asyncio.wait_for(heard.wait(), 10)
            heard.clear()

    def plain() -> None:
        with psycopg.connect(proxy.url_of(table_url)) as other:
            assert other.execute("SELECT %s::text", (big,)).fetchone() == (big,)

    await asyncio.to_thread(plain)
    assert kept(table_url) == 4
    assert "SELECT $1::text" in proxy.statements


@pytest.mark.parametrize(("fault", "rows"), [(CUT_BEFORE, 0), (CUT_AFTER, 1)])
@pytest.mark.parametrize("options", [{}, {"statement_cache_size": 0}])
async def test_a_statement_is_lost_before_or_after_it_ran(
    proxy: Proxy, table_url: str, fault: Fault, rows: int, options: dict[str, Any]
) -> None:
    """The client sees the same both times; the table tells which it was. The next connection works."""
    rule = proxy.on("INSERT INTO kept", fault)
    async with connected(proxy, table_url, **options) as one:
        with pytest.raises(LOST):
            await one.execute(INSERT, 1)
    assert (kept(table_url), rule.fired) == (rows, 1)
    async with connected(proxy, table_url, **options) as one:
        await one.execute(INSERT, 2)
    assert (kept(table_url), rule.fired) == (rows + 1, 1)


@pytest.mark.parametrize(("fault", "rows"), [(CUT_BEFORE, 1), (CUT_AFTER, 2)])
async def test_the_commit_of_one_transaction_is_lost(
    proxy: Proxy, table_url: str, fault: Fault, rows: int
) -> None:
    """`within` names whose COMMIT it is: those of others pass, and of both drivers it is one statement."""
    rule = proxy.on("^COMMIT", fault, within="INSERT INTO kept")
    async with connected(proxy, table_url) as one:
        async with one.transaction():
            await one.execute("SELECT 1")
        with pytest.raises(LOST):
            async with one.transaction():
                await one.execute(INSERT, 1)
    assert (kept(table_url), rule.fired) == (rows - 1, 1)

    def plain() -> None:
        with psycopg.connect(proxy.url_of(table_url)) as other:
            other.execute("INSERT INTO kept VALUES (1)")

    proxy.clear()
    await asyncio.to_thread(plain)
    proxy.on("^COMMIT", fault, within="INSERT INTO kept")
    with pytest.raises(psycopg.OperationalError):
        await asyncio.to_thread(plain)
    assert kept(table_url) == 2 * rows - 1


async def test_a_rule_lets_some_pass_and_strikes_as_often_as_it_says(proxy: Proxy, table_url: str) -> None:
    """The third and the fourth."""
    rule = proxy.on("INSERT INTO kept", CUT_BEFORE, skip=2, times=2)
    lost = []
    for number in range(6):
        async with connected(proxy, table_url) as one:
            try:
                await one.execute(INSERT, number)
            except LOST:
                lost.append(number)
    assert (lost, rule.fired) == ([2, 3], 2)


@pytest.mark.parametrize(("fault", "rows"), [(HALF_OPEN_BEFORE, 0), (HALF_OPEN_AFTER, 1)])
async def test_a_half_open_connection_is_silent_until_the_client_gives_up(
    proxy: Proxy, table_url: str, fault: Fault, rows: int
) -> None:
    """Nobody closes anything: only a deadline ends it, and the pool's next connection is well."""
    rule = proxy.on("INSERT INTO kept", fault)
    database = await Database.open(proxy.url_of(table_url))
    try:
        with pytest.raises(DatabaseUnavailable, match="no answer in time"):
            await database.execute(INSERT, 1, deadline_s=0.3)
        await until(lambda: kept(table_url) == rows)
        await database.execute(INSERT, 2)
    finally:
        await database.close()
    assert (kept(table_url), rule.fired) == (rows + 1, 1)


async def test_a_statement_is_late_and_an_answer_trickles(proxy: Proxy, table_url: str) -> None:
    """Both come whole, and not sooner than the fault allows."""
    proxy.on("SELECT 'late'", Delay(0.2))
    proxy.on("SELECT 'slow", Trickle(piece_bytes=7, pause_s=0.01))
    async with connected(proxy, table_url) as one:
        for statement, least_s in (("SELECT 'late'", 0.2), (f"SELECT 'slow{'!' * 100}'", 0.1)):
            began = time.monotonic()
            assert await one.fetchval(statement) == statement[8:-1]
            assert time.monotonic() - began >= least_s
        assert await one.fetchval("SELECT 'slow'") == "slow"


async def test_a_net_that_is_gone_holds_what_is_said_until_it_is_back(proxy: Proxy, table_url: str) -> None:
    """Old connections and new ones are silent, and then go on as if nothing had been."""
    async with connected(proxy, table_url) as one:
        proxy.silence()
        old = asyncio.create_task(one.execute(INSERT, 1))
        new = asyncio.create_task(asyncpg.connect(proxy.url_of(table_url)))
        done, _ = await asyncio.wait([old, new], timeout=0.2)
        assert (done, kept(table_url)) == (set(), 0)
        proxy.heal()
        await old
        (await new).terminate()
    assert kept(table_url) == 1


async def test_connections_are_dropped_and_refused_until_it_heals(proxy: Proxy, table_url: str) -> None:
    """What stands is reset, what comes is reset, then it takes connections again."""
    async with connected(proxy, table_url) as one:
        proxy.refuse()
        with pytest.raises(LOST):
            await one.fetchval("SELECT 1")
    with pytest.raises(LOST):
        await asyncpg.connect(proxy.url_of(table_url))
    proxy.heal()
    async with connected(proxy, table_url) as one:
        assert await one.fetchval("SELECT 1") == 1
