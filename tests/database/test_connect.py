"""The pool: every loss of the server is one error, and the next call connects again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from errno import EACCES

import asyncpg
import pytest

from postroom.database.connect import SERVER_KEEPALIVES, Database
from postroom.errors import ConfigError, DatabaseUnavailable
from tests.support.pgbouncer import running_pgbouncer
from tests.support.postgres import PostgresServer, running_server
from tests.support.waiting import until


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may stop and kill."""
    with running_server() as server:
        yield server


@asynccontextmanager
async def opened(url: str, **options: object) -> AsyncIterator[Database]:
    database = await Database.open(url, **options)  # type: ignore[arg-type]
    try:
        yield database
    finally:
        await database.close()


async def answers(database: Database) -> bool:
    try:
        return bool(await database.fetchval("SELECT true", deadline_s=5))
    except DatabaseUnavailable:
        return False


async def is_idle(url: str) -> bool:
    """Whether the server runs nothing of ours in this database."""
    async with opened(url) as other:
        count = await other.fetchval(
            """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
              AND (state = 'active' OR state LIKE 'idle in transaction%')
              AND backend_type = 'client backend'
            """
        )
        return bool(count == 0)


async def test_calls_return_what_the_statement_returns(empty_database_url: str) -> None:
    """Rows, one row, one value and the command's tag come back; no row is None."""
    async with opened(empty_database_url) as database:
        rows = await database.fetch("SELECT number FROM generate_series(1, $1::int) AS number", 3)
        assert [row["number"] for row in rows] == [1, 2, 3]
        row = await database.fetchrow("SELECT 1 AS a, 2 AS b")
        assert row is not None
        assert dict(row) == {"a": 1, "b": 2}
        assert await database.fetchrow("SELECT 1 WHERE false") is None
        assert await database.fetchval("SELECT $1::text", "x") == "x"
        assert await database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)") == "INSERT 0 1"


async def test_a_stricter_default_isolation_is_not_for_the_house(
    postgres_server: PostgresServer,
) -> None:
    """Claims that meet would fail there and be repeated."""
    name = postgres_server.create_database()
    url = postgres_server.url_of(name)
    async with opened(url) as database:
        await database.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    async with opened(url) as database:
        assert await database.fetchval("SHOW transaction_isolation") == "read committed"
    postgres_server.drop_database(name)


async def test_a_server_looks_for_a_client_that_is_lost(empty_database_url: str) -> None:
    """Where the network has swallowed a connection, its session and its locks end within half a minute."""
    async with opened(empty_database_url) as database:
        shown = [await database.fetchval(f"SHOW {name}") for name in SERVER_KEEPALIVES]
    assert shown == ["15", "5", "3", "30000"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
async def test_restarted_server_is_found_again(own_server: PostgresServer, how: int) -> None:
    """While the server is away calls raise DatabaseUnavailable; when it is back they succeed."""
    async with opened(own_server.url, max_size=3) as database:
        await asyncio.gather(*(database.fetchval("SELECT 1") for _ in range(3)))
        waiting = asyncio.create_task(database.execute("SELECT pg_sleep(60)", deadline_s=60))
        await until(lambda: _runs(own_server.url, "SELECT pg_sleep(60)"))
        own_server.stop(how)
        with pytest.raises(DatabaseUnavailable):
            await waiting
        for _ in range(5):
            with pytest.raises(DatabaseUnavailable):
                await database.fetchval("SELECT 1")
        own_server.start()
        await until(lambda: answers(database))
        results = await asyncio.gather(*(database.fetchval("SELECT 1") for _ in range(6)))
        assert results == [1] * 6


async def _runs(url: str, query: str) -> bool:
    async with opened(url) as other:
        return bool(await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query = $1", query))


async def test_terminated_connection_costs_one_call(empty_database_url: str) -> None:
    """A call whose backend is ended raises DatabaseUnavailable, and the next one succeeds."""
    async with opened(empty_database_url) as database:
        with pytest.raises(DatabaseUnavailable):
            await database.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert await database.fetchval("SELECT 1") == 1


async def test_connection_that_died_while_idle_is_not_handed_out(empty_database_url: str) -> None:
    """A connection that the server closed between two calls is replaced without an error."""
    async with opened(empty_database_url) as database, opened(empty_database_url) as other:
        pid = await database.fetchval("SELECT pg_backend_pid()")
        await other.fetchval("SELECT pg_terminate_backend($1::int)", pid)
        gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $1"
        await until(lambda: other.fetchval(gone, pid))
        await until(lambda: all(connection.is_closed() for connection in database._idle))
        assert await database.fetchval("SELECT pg_backend_pid()") != pid


async def test_call_ends_at_its_deadline(empty_database_url: str) -> None:
    """A call that takes too long raises DatabaseUnavailable, and the server stops working on it."""
    async with opened(empty_database_url, max_size=1) as database:
        with pytest.raises(DatabaseUnavailable, match="no answer in time"):
            await database.execute("SELECT pg_sleep(100)", deadline_s=0.1)
        assert await database.fetchval("SELECT 1") == 1
        await until(lambda: is_idle(empty_database_url))


async def test_cancelled_call_is_cancelled_on_the_server(empty_database_url: str) -> None:
    """A task that is cancelled in a call leaves neither a running statement nor a lost place."""
    async with opened(empty_database_url, max_size=1) as database:
        task = asyncio.create_task(database.execute("SELECT pg_sleep(100)", deadline_s=100))
        await until(lambda: _runs(empty_database_url, "SELECT pg_sleep(100)"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await database.fetchval("SELECT 1") == 1
        await until(lambda: is_idle(empty_database_url))


async def test_waiting_for_a_connection_has_a_deadline(empty_database_url: str) -> None:
    """Where all connections are lent, a call waits until its deadline and no longer."""
    async with opened(empty_database_url, max_size=1) as database:
        async with database.transaction():
            with pytest.raises(DatabaseUnavailable, match="in use"):
                await database.fetchval("SELECT 1", deadline_s=0.05)
        assert await database.fetchval("SELECT 1") == 1


async def test_hung_server_does_not_hang_the_caller() -> None:
    """A server that accepts and never answers costs the deadline, and closing costs seconds at most."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database = Database(f"postgresql://u@127.0.0.1:{port}/d")
    with pytest.raises(DatabaseUnavailable):
        await database.fetchval("SELECT 1", deadline_s=0.2)
    await database.close()
    server.close()


@pytest.mark.parametrize(
    ("statement", "arguments", "error"),
    [
        ("SELECT 1 / 0", (), asyncpg.DivisionByZeroError),
        ("SELECT * FROM not_there", (), asyncpg.UndefinedTableError),
        ("SELECT $1::int", ("x",), asyncpg.DataError),
        ("SELECT $1::int", (), asyncpg.InterfaceError),
        ("SELECT $1::text", ("a\0b",), asyncpg.CharacterNotInRepertoireError),
        ("DO $$ BEGIN RAISE 'no'; END $$", (), asyncpg.RaiseError),
    ],
)
async def test_error_of_the_statement_passes_as_it_is(
    empty_database_url: str, statement: str, arguments: tuple[object, ...], error: type[Exception]
) -> None:
    """What is wrong with a statement is asyncpg's own error, and its connection stays in use."""
    async with opened(empty_database_url) as database:
        pid = await database.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(error):
            await database.fetch(statement, *arguments)
        assert await database.fetchval("SELECT pg_backend_pid()") == pid


async def test_transaction_commits_at_its_end(empty_database_url: str) -> None:
    """A block that ends well is committed; nested blocks are savepoints."""
    async with opened(empty_database_url) as database:
        await database.execute("CREATE TABLE t (a int)")
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(asyncpg.DivisionByZeroError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO t VALUES (2)")
                    await connection.execute("SELECT 1 / 0")
            await connection.executemany("INSERT INTO t VALUES ($1)", [(3,), (4,)])
            await connection.copy_records_to_table("t", records=[(5,)])
        rows = await database.fetch("SELECT a FROM t ORDER BY a")
        assert [row["a"] for row in rows] == [1, 3, 4, 5]


async def test_error_of_the_block_rolls_back_and_passes(empty_database_url: str) -> None:
    """What the block raises comes out as it is, even an OSError, and nothing of it is recorded."""
    async with opened(empty_database_url) as database:
        await database.execute("CREATE TABLE t (a int)")
        with pytest.raises(OSError, match="of the block"):
            async with database.transaction() as connection:
                await connection.execute("INSERT INTO t VALUES (1)")
                raise OSError("of the block")
        assert await database.fetchval("SELECT count(*) FROM t") == 0


async def test_swallowed_error_does_not_commit_silently(empty_database_url: str) -> None:
    """A transaction whose error was swallowed ends in an error, not in a commit that did nothing."""
    async with opened(empty_database_url) as database:
        await database.execute("CREATE TABLE t (a int)")
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            async with database.transaction() as connection:
                await connection.execute("INSERT INTO t VALUES (1)")
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await connection.execute("SELECT 1 / 0")
        assert await database.fetchval("SELECT count(*) FROM t") == 0


async def test_a_closed_home_is_named_to_a_program(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg looks there for a certificate: the command line does without, a program is told."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(EACCES, "Permission denied", "/home/shop/.postgresql/postgresql.key")

    monkeypatch.setattr(asyncpg, "connect", refuse)
    with pytest.raises(DatabaseUnavailable, match=r"postgresql\.key is closed to this user: set HOME"):
        await Database.open(empty_database_url)


async def test_lost_transaction_is_unavailable(empty_database_url: str) -> None:
    """A transaction whose connection is lost raises DatabaseUnavailable and is rolled back."""
    async with opened(empty_database_url) as database, opened(empty_database_url) as other:
        await database.execute("CREATE TABLE t (a int)")
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction() as connection:
                await connection.execute("INSERT INTO t VALUES (1)")
                pid = connection.get_server_pid()
                await other.fetchval("SELECT pg_terminate_backend($1::int)", pid)
        assert await database.fetchval("SELECT count(*) FROM t") == 0


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
async def test_connection_that_is_known_to_be_lost_at_the_end_of_a_transaction(
    empty_database_url: str, error: type[Exception] | None
) -> None:
    """Its commit is unavailable; an error of the block itself stays what it is."""
    async with opened(empty_database_url) as database, opened(empty_database_url) as other:
        with pytest.raises(error or DatabaseUnavailable):
            async with database.transaction() as connection:
                await other.fetchval("SELECT pg_terminate_backend($1::int)", connection.get_server_pid())
                await until(connection.is_closed)
                if error is not None:
                    raise error


async def test_cancelled_transaction_leaves_no_lock(empty_database_url: str) -> None:
    """A task that is cancelled inside a transaction gives its locks and its connection back."""
    async with opened(empty_database_url, max_size=1) as database:
        await database.execute("CREATE TABLE t (a int)")
        inside = asyncio.Event()

        async def hold() -> None:
            async with database.transaction() as connection:
                await connection.execute("LOCK TABLE t")
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(hold())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await database.fetchval("SELECT count(*) FROM t") == 0


async def test_deadlock_is_to_be_repeated(empty_database_url: str) -> None:
    """The victim of a deadlock gets DatabaseUnavailable: nothing was recorded, repeat it."""
    async with opened(empty_database_url) as database:
        await database.execute("CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
        both = asyncio.Barrier(2)

        async def update(first: int, second: int) -> None:
            async with database.transaction() as connection:
                await connection.execute("UPDATE t SET a = a WHERE a = $1", first)
                await both.wait()
                await connection.execute("UPDATE t SET a = a WHERE a = $1", second)

        ends = await asyncio.gather(update(1, 2), update(2, 1), return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == ["DatabaseUnavailable", "NoneType"]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:geheim@localhost/d",
        "postgresql://u:ge/heim@localhost/d",
        "postgresql://u:ge@heim@localhost/d",
        "postgresql://u:geheim@localhost:port/d",
        "host=localhost password=geheim",
        "",
    ],
)
async def test_wrong_address_is_refused_without_its_password(url: str) -> None:
    """An address that cannot be read is a ConfigError that shows nothing of it."""
    with pytest.raises(ConfigError, match="must be like") as refused:
        await Database.open(url)
    assert "heim" not in str(refused.value)


async def test_refused_user_is_a_wrong_setting(postgres_server: PostgresServer) -> None:
    """A user or a database that does not exist is a ConfigError at the start."""
    with pytest.raises(ConfigError, match="nobody_here"):
        await Database.open(postgres_server.url_of("postgres", user="nobody_here"))
    with pytest.raises(ConfigError, match="not_there"):
        await Database.open(postgres_server.url_of("not_there"))


async def test_listener_hears_again_after_its_connection_was_lost(empty_database_url: str) -> None:
    """A lost listener connects again and says so with an empty call, since it may have missed some."""
    heard: list[tuple[str, str]] = []
    async with opened(empty_database_url) as database:
        listener = database.listen(["a", "b"], lambda channel, payload: heard.append((channel, payload)))
        await until(lambda: heard == [("a", ""), ("b", "")])
        await database.execute("SELECT pg_notify('a', '1'), pg_notify('b', '2')")
        await until(lambda: heard[2:] == [("a", "1"), ("b", "2")])
        heard.clear()
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        )
        await until(lambda: heard == [("a", ""), ("b", "")])
        assert listener.hears
        await listener.close()
        assert not listener.hears


async def test_pooler_is_noticed_and_shared_safely(
    postgres_server: PostgresServer, empty_database_url: str
) -> None:
    """Behind PgBouncer no statement is prepared by name: two clients would run each other's."""
    name = empty_database_url.rpartition("/")[2]
    with running_pgbouncer(postgres_server) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        async with opened(url) as one, opened(url) as two:
            assert one.pooled
            await one.execute("CREATE TYPE pair AS (a int, b text)")

            async def ask(database: Database, number: int) -> bool:
                row = await database.fetchrow(f"SELECT $1::int AS n, ($1, '{number}')::pair AS p", number)
                return row is not None and row["n"] == number and row["p"]["b"] == str(number)

            asked = [ask((one, two)[number % 2], number) for number in range(200)]
            assert all(await asyncio.gather(*asked))
            async with one.transaction() as connection:
                await connection.execute("CREATE TABLE t (a int)")
            assert await two.fetchval("SELECT count(*) FROM t") == 0
            assert not await one.fetchval("SELECT count(*) FROM pg_prepared_statements")


async def test_listening_behind_a_pooler_needs_a_direct_address(
    postgres_server: PostgresServer, empty_database_url: str
) -> None:
    """With POSTROOM_LISTEN_URL a worker behind a pooler hears; without it, nothing is pretended."""
    name = empty_database_url.rpartition("/")[2]
    heard: list[str] = []
    with running_pgbouncer(postgres_server) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        async with opened(url) as deaf, opened(url, listen_url=empty_database_url) as database:
            assert database.pooled
            silent = deaf.listen(["a"], lambda channel, payload: heard.append("never"))
            database.listen(["a"], lambda channel, payload: heard.append(payload))
            await until(lambda: heard == [""])
            await database.execute("SELECT pg_notify('a', 'x')")
            await until(lambda: heard == ["", "x"])
            assert not silent.hears


async def test_direct_connection_prepares_its_statements(empty_database_url: str) -> None:
    """Without a pooler statements are prepared once a connection, which saves a round trip a call."""
    async with opened(empty_database_url, max_size=1) as database:
        assert not database.pooled
        for _ in range(3):
            await database.fetchval("SELECT 'prepared', $1::int", 1)
        count = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%prepared%$1::int'"
        assert await database.fetchval(count) == 1


async def test_closed_pool_refuses_calls(empty_database_url: str) -> None:
    """A call after close() raises at once, and all connections are gone."""
    database = await Database.open(empty_database_url)
    await asyncio.gather(*(database.fetchval("SELECT 1") for _ in range(5)))
    await database.close()
    with pytest.raises(DatabaseUnavailable, match="closed"):
        await database.fetchval("SELECT 1")
    async with opened(empty_database_url, max_size=1) as other:
        count = "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()"
        await until(lambda: other.fetchval(count))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "connection refused"),
        ("localhost:9", "connection refused"),
        ("nowhere.invalid", "its host is not found"),
    ],
)
async def test_a_server_that_is_not_there_is_told_in_words(address: str, said: str) -> None:
    """Not in those of the event loop, with an errno and a tuple for each address of the host."""
    with pytest.raises(DatabaseUnavailable, match=said) as refused:
        await Database.open(f"postgresql://ada:geheim@{address}/shop")
    assert "Errno" not in str(refused.value)
