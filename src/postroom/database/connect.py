"""
The house's connections to PostgreSQL.

Every call has a deadline, and every way in which a server can be lost ends in one error:
DatabaseUnavailable, which means "repeat it". A connection that was lost is thrown away, so the
next call makes a new one. Errors that speak of the statement pass as asyncpg raises them.

The pool is our own: asyncpg's asks the server to reset each connection that comes back, a round
trip for every call, which buys nothing here, where nobody may leave state in a session.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Self

import asyncpg

from postroom.database.connection import Connection, unavailable
from postroom.database.listen import Listener
from postroom.database.moments import read_all_moments
from postroom.errors import ConfigError, DatabaseUnavailable

DEADLINE_S = 10.0
"""How long a call may take where the caller names no deadline."""

POOL_SIZE = 10

SERVER_KEEPALIVES = {
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30s",
}
"""
What a session asks of its server: to end within 30 s where its client is lost, and its locks with it. Else
that is left to the system, which is 2 hours: for so long a lost handler's transaction would keep its event.
"""

SERVER_MAJOR_MIN = 15

_RETIRE_S = 2.0
_NOT_AN_ADDRESS = (
    "the database's address must be like postgresql://user:password@host:5432/database; "
    "write other characters than letters and digits in a password as %XX"
)


class Database:
    """
    A pool of connections, made at the first call and made anew whenever they are lost.

    Args:
        url: Where PostgreSQL is; a pooler in transaction mode will do.
        listen_url: A direct address for LISTEN where `url` is a pooler.
        max_size: How many connections there may be at once, besides one that listens.
        command_timeout_s: How long a call may take where it names no deadline.
    """

    def __init__(
        self,
        url: str,
        *,
        listen_url: str | None = None,
        max_size: int = POOL_SIZE,
        command_timeout_s: float = DEADLINE_S,
    ) -> None:
        self.name = name_of(url)
        self._url = url
        self._listen_url = listen_url
        self._deadline_s = command_timeout_s
        # What prepared statements cost behind a pooler is said at _find_pooler.
        self._pooled: bool | None = True if listen_url is not None else None
        self._free = asyncio.Semaphore(max_size)
        self._idle: list[Connection] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._listeners: set[Listener] = set()
        self._closed = False

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        listen_url: str | None = None,
        max_size: int = POOL_SIZE,
        command_timeout_s: float = DEADLINE_S,
    ) -> Self:
        """
        Make a pool and its first connection, so that a wrong setting shows at once.

        Raises:
            ConfigError: The address, the user, the password, the database or the server's version.
            DatabaseUnavailable: Nobody answers there.
        """
        database = cls(url, listen_url=listen_url, max_size=max_size, command_timeout_s=command_timeout_s)
        try:
            async with database._lent(None) as (connection, _left_s):
                version = connection.get_server_version()
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, _REFUSED):
                raise ConfigError(f"{database.name}: {error.__cause__}; see POSTROOM_DATABASE_URL") from error
            raise
        if version.major < SERVER_MAJOR_MIN:
            await database.close()
            raise ConfigError(
                f"{database.name} is PostgreSQL {version.major}: postroom needs {SERVER_MAJOR_MIN} or newer"
            )
        return database

    @property
    def pooled(self) -> bool:
        """Whether the server is reached through a pooler, as far as is known: no session state."""
        return self._pooled is True

    async def fetch(self, sql: str, *args: object, deadline_s: float | None = None) -> list[asyncpg.Record]:
        """
        Run a query and return its rows.

        Raises:
            DatabaseUnavailable: No answer before the deadline. What it did is not known; repeat it.
        """
        async with self._lent(deadline_s) as (connection, left_s):
            return await connection.fetch(sql, *args, timeout=left_s)

    async def fetchrow(
        self, sql: str, *args: object, deadline_s: float | None = None
    ) -> asyncpg.Record | None:
        """Run a query and return its first row; None where there is none."""
        async with self._lent(deadline_s) as (connection, left_s):
            row: asyncpg.Record | None = await connection.fetchrow(sql, *args, timeout=left_s)
            return row

    async def fetchval(self, sql: str, *args: object, deadline_s: float | None = None) -> Any:
        """Run a query and return the first value of its first row; None where there is none."""
        async with self._lent(deadline_s) as (connection, left_s):
            return await connection.fetchval(sql, *args, timeout=left_s)

    async def execute(self, sql: str, *args: object, deadline_s: float | None = None) -> str:
        """Run SQL and return its command tag; several statements where there are no arguments."""
        async with self._lent(deadline_s) as (connection, left_s):
            return await connection.execute(sql, *args, timeout=left_s)

    @asynccontextmanager
    async def transaction(self, *, deadline_s: float | None = None) -> AsyncIterator[Connection]:
        """
        A connection with a transaction that is committed where the block ends, else rolled back.

        Args:
            deadline_s: For getting the connection; each statement in the block has the pool's own.
        """
        async with self._lent(deadline_s) as (connection, _left_s):
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            except Exception:
                if not connection.broken:
                    await _rolled_back(transaction)
                raise
            except BaseException:
                # Cancelled: closing the connection rolls back without one more answer to wait for.
                connection.broken = True
                raise
            await _committed(transaction)

    def listen(self, channels: Iterable[str], callback: Callable[[str, str], None]) -> Listener:
        """
        Call back at each NOTIFY on one of these channels, until the listener is closed.

        It only wakes: where the connection is lost it is made anew, and what was said meanwhile is
        never heard. The callback is therefore also called, with an empty payload, whenever a
        connection begins to listen. Behind a pooler without a listen_url nothing is ever heard.

        Args:
            callback: Gets the channel and the payload, and must not block.
        """
        listener = Listener(tuple(channels), callback, self._connect_listener)
        self._listeners.add(listener)
        return listener

    async def close(self) -> None:
        """Close every connection, within seconds in whatever state; one that is lent, when it is back."""
        self._closed = True
        await asyncio.gather(*(listener.close() for listener in self._listeners))
        self._listeners.clear()
        self._drop_idle()
        if self._retiring:
            await asyncio.wait(self._retiring)

    @asynccontextmanager
    async def _lent(self, deadline_s: float | None) -> AsyncIterator[tuple[Connection, float]]:
        """A connection for one block, and the seconds that are left to it."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + (self._deadline_s if deadline_s is None else deadline_s)
        await self._wait_until_free(ends)
        try:
            connection = self._pop_idle() or await self._connect(self._url, ends)
            try:
                yield connection, max(ends - loop.time(), 0.001)
            except Exception:
                self._take_back(connection)
                raise
            except BaseException:
                connection.broken = True
                self._take_back(connection)
                raise
            self._take_back(connection)
        finally:
            self._free.release()

    async def _wait_until_free(self, ends: float) -> None:
        if self._closed:
            raise DatabaseUnavailable(f"{self.name}: the connections are closed")
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout_at(ends):
                await self._free.acquire()
        except TimeoutError as error:
            raise DatabaseUnavailable(f"{self.name}: every connection is in use") from error

    def _pop_idle(self) -> Connection | None:
        # The one that came back last: the others stay unused and would show a leak.
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            connection.terminate()
        return None

    def _take_back(self, connection: Connection) -> None:
        if connection.broken or connection.is_closed():
            # After a failover the others speak to the old server, or to nobody.
            self._drop_idle()
            self._retire(connection)
        elif self._closed or connection.is_in_transaction():
            self._retire(connection)
        else:
            self._idle.append(connection)

    def _drop_idle(self) -> None:
        while self._idle:
            self._retire(self._idle.pop())

    def _retire(self, connection: Connection) -> None:
        task = asyncio.get_running_loop().create_task(_close(connection))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _connect(self, url: str, ends: float) -> Connection:
        if self._pooled is None:
            self._pooled = await self._find_pooler(ends)
        return await self._new_connection(url, ends, plain=self._pooled)

    async def _find_pooler(self, ends: float) -> bool:
        """
        Whether a pooler stands between: it gives its clients process ids that it made up.

        Behind one, two clients' prepared statements have the same name on the same server
        connection, and one runs the other's. That is no error that could be waited for.
        """
        connection = await self._new_connection(self._url, ends, plain=True)
        try:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            return bool(pid != connection.get_server_pid())
        finally:
            self._retire(connection)

    async def _connect_listener(self, deadline_s: float) -> Connection | None:
        """A connection that hears; None where there can be none."""
        ends = asyncio.get_running_loop().time() + deadline_s
        if self._listen_url is not None:
            return await self._new_connection(self._listen_url, ends, plain=False)
        if self._pooled is None:
            self._pooled = await self._find_pooler(ends)
        return None if self._pooled else await self._new_connection(self._url, ends, plain=False)

    async def _new_connection(self, url: str, ends: float, *, plain: bool) -> Connection:
        """
        Connect.

        Args:
            plain: Neither prepared statements nor settings of the session, for poolers.
        """
        left_s = max(ends - asyncio.get_running_loop().time(), 0.001)
        settings = {"application_name": "postroom"}
        if not plain:
            settings["jit"] = "off"  # with stale statistics it costs a claim 200 ms, and it never helps one
            # Where the database's default is stricter, claims that meet would fail and be repeated.
            settings["default_transaction_isolation"] = "read committed"
            settings |= SERVER_KEEPALIVES
        options: dict[str, Any] = {"statement_cache_size": 0} if plain else {}
        try:
            connection: Connection = await asyncpg.connect(
                url,
                timeout=left_s,
                command_timeout=self._deadline_s,
                connection_class=Connection,
                server_settings=settings,
                **options,
            )
            await read_all_moments(connection)
            return connection
        except (ValueError, asyncpg.ClientConfigurationError):
            # Its text may hold a part of the password that was taken for a port.
            raise ConfigError(_NOT_AN_ADDRESS) from None
        except Exception as error:
            raise unavailable(error, self.name) from error


_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


def name_of(url: str) -> str:
    """The database's name for people: hosts and database, no user, no password."""
    match = re.fullmatch(r"postgres(?:ql)?://(?:[^/@]*@)?([^/@?]*)(?:/([^/@?]*))?(?:\?[^@]*)?", url)
    if match is None:
        raise ConfigError(_NOT_AN_ADDRESS)
    return f"database {match[2] or 'of the user'} at {match[1] or 'a local socket'}"


async def _committed(transaction: Any) -> None:
    try:
        await transaction.commit()
    except asyncpg.InterfaceError as error:  # it was lost meanwhile, and asyncpg knew before it asked
        raise unavailable(error, "database") from error


async def _rolled_back(transaction: Any) -> None:
    try:
        await transaction.rollback()
    except (DatabaseUnavailable, asyncpg.InterfaceError):
        pass  # the server does it by itself when the connection ends


async def _close(connection: Connection) -> None:
    """Let the server cancel what it was doing for this connection, then end it."""
    try:
        await connection.close(timeout=_RETIRE_S)
    except Exception:  # it is thrown away in any case
        connection.terminate()
