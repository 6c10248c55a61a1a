"""One connection, and the place where asyncpg's many ways to lose a server become one error."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from errno import ECONNREFUSED
from socket import gaierror
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from postroom.errors import DatabaseUnavailable

if TYPE_CHECKING:
    _AsyncpgConnection = asyncpg.Connection[asyncpg.Record]
else:
    _AsyncpgConnection = asyncpg.Connection

T = TypeVar("T")


class Connection(_AsyncpgConnection):
    """
    An asyncpg connection that raises DatabaseUnavailable where the server was lost.

    Attributes:
        broken: It must not be used again: it was lost, or left in the middle of a call.
    """

    __slots__ = ("broken",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.broken = False

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        """
        Run SQL; see asyncpg.

        A COMMIT that became a ROLLBACK, because somebody swallowed an error in the transaction, is
        an error: PostgreSQL says so in nothing but the command's tag.
        """
        status = await self._translated(super().execute(query, *args, timeout=timeout))
        if status == "ROLLBACK" and query.startswith("COMMIT"):
            raise asyncpg.InFailedSQLTransactionError(
                "the transaction had failed before, so its commit became a rollback"
            )
        return status

    async def executemany(
        self, command: str, args: Iterable[Sequence[object]], *, timeout: float | None = None
    ) -> None:
        """Run SQL once for each sequence of arguments; see asyncpg."""
        await self._translated(super().executemany(command, args, timeout=timeout))

    async def fetch(
        self, query: str, *args: object, timeout: float | None = None, record_class: Any = None
    ) -> list[Any]:
        """Run a query and return its rows; see asyncpg."""
        rows: list[Any] = await self._translated(
            super().fetch(query, *args, timeout=timeout, record_class=record_class)
        )
        return rows

    async def fetchrow(
        self, query: str, *args: object, timeout: float | None = None, record_class: Any = None
    ) -> Any:
        """Run a query and return its first row or None; see asyncpg."""
        return await self._translated(
            super().fetchrow(query, *args, timeout=timeout, record_class=record_class)
        )

    async def fetchval(self, query: str, *args: object, column: int = 0, timeout: float | None = None) -> Any:
        """Run a query and return one value of its first row or None; see asyncpg."""
        return await self._translated(super().fetchval(query, *args, column=column, timeout=timeout))

    async def copy_records_to_table(self, table_name: str, **options: Any) -> str:
        """Write rows with COPY; see asyncpg."""
        return await self._translated(super().copy_records_to_table(table_name, **options))

    async def _translated(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except Exception as error:
            if not speaks_of_the_server(error):
                raise
            if not isinstance(error, _CONNECTION_IS_FINE):
                self.broken = True
            raise unavailable(error, "database") from error
        except BaseException:
            self.broken = True  # cancelled: the answer is still to come
            raise


def speaks_of_the_server(error: Exception) -> bool:
    """Whether an error says nothing about the statement, which may succeed when repeated."""
    if isinstance(error, _MISUSE) or str(error).startswith("the server expects"):
        return False
    return isinstance(error, _LOST)


def unavailable(error: Exception, name: str) -> DatabaseUnavailable:
    """The error that callers see; the text of the first line, which holds no value of a statement."""
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, TimeoutError):
        text = "no answer in time"
    elif isinstance(error, PermissionError) and "/.postgresql/" in str(error.filename):
        text = f"{error.filename} is closed to this user: set HOME to a folder of its own"
    elif isinstance(error, gaierror):
        text = f"its host is not found ({(error.strerror or '').lower()})"
    elif (
        isinstance(error, ConnectionRefusedError) or f"[Errno {ECONNREFUSED}]" in text
    ):  # of several addresses
        text = "connection refused"
    return DatabaseUnavailable(f"{name}: {text or type(error).__name__}")


# Not here: class XX, which PostgreSQL's other languages give to every error of a user's trigger.
_LOST: tuple[type[Exception], ...] = (
    OSError,  # TimeoutError is one
    EOFError,
    asyncpg.InterfaceError,  # "connection is closed", in many wordings
    asyncpg.InternalClientError,  # "got result for unknown protocol state" and its like
    asyncpg.PostgresConnectionError,  # class 08; a pooler's own errors too
    asyncpg.OperatorInterventionError,  # shutdown, crash, starting up, cancelled
    asyncpg.InsufficientResourcesError,  # full disk, no memory, too many connections
    asyncpg.PostgresIOError,  # the server's disk fails
    asyncpg.TransactionRollbackError,  # deadlock, serialisation: the server asks to repeat
    asyncpg.ReadOnlySQLTransactionError,  # after a failover: this one is a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidCachedStatementError,  # a migration changed what the statement returns
    asyncpg.InvalidSQLStatementNameError,  # a pooler came between, or DISCARD ALL
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)

_MISUSE: tuple[type[Exception], ...] = (
    ValueError,  # asyncpg gives it as second base to what it says of a value
    asyncpg.UnsupportedClientFeatureError,
    asyncpg.UnsupportedServerFeatureError,
)

_CONNECTION_IS_FINE: tuple[type[Exception], ...] = (
    asyncpg.TransactionRollbackError,
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
)
