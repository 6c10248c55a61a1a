"""The statement that queues e-mail, on a session or a connection of SQLAlchemy's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

from postroom.email.in_thread import Use, run_in_thread


class Batch(Protocol):
    """The e-mails of one statement."""

    @property
    def json(self) -> str:
        """As enqueue_emails takes them."""
        ...


def is_one(connection: object) -> bool:
    """Whether something is of SQLAlchemy's; where nobody has imported that, nothing is."""
    return isinstance(connection, _sync_kinds() + _async_kinds() + _scoped_kinds())


async def run(connection: Any, statement: str, batches: Sequence[Batch]) -> list[Sequence[Any]]:
    """
    Run the statement for each batch, in the transaction that is open there or that SQLAlchemy begins.

    Args:
        statement: With {} where its value goes.

    Raises:
        TypeError: The database is none of PostgreSQL's.
        sqlalchemy.exc.DBAPIError: What the driver says.
    """
    is_scoped = isinstance(connection, _scoped_kinds())
    if is_scoped:
        connection = connection()  # the session of this thread or task
    bind = connection.get_bind() if hasattr(connection, "get_bind") else connection
    if bind.dialect.name != "postgresql":
        raise TypeError(f"connection= must be of PostgreSQL, not {bind.dialect.name}")
    is_async = isinstance(connection, _async_kinds())
    if is_async:
        found: list[Sequence[Any]] = await connection.run_sync(_run, statement, batches)
        return found
    return await run_in_thread(_run_sync, connection, statement, batches)


def _run_sync(use: Use, connection: Any, statement: str, batches: Sequence[Batch]) -> list[Sequence[Any]]:
    bound = connection.connection() if hasattr(connection, "get_bind") else connection
    use(bound.connection.driver_connection)
    return _run(connection, statement, batches)


def _run(connection: Any, statement: str, batches: Sequence[Batch]) -> list[Sequence[Any]]:
    from sqlalchemy import text

    # A cast, since a colon behind a name would be taken for a part of it.
    query = text(statement.format("CAST(:emails AS text)"))
    return [connection.execute(query, {"emails": batch.json}).all() for batch in batches]


def _sync_kinds() -> tuple[type, ...]:
    return _kinds("sqlalchemy", "Connection") + _kinds("sqlalchemy.orm", "Session")


def _async_kinds() -> tuple[type, ...]:
    return _kinds("sqlalchemy.ext.asyncio", "AsyncConnection", "AsyncSession")


def _scoped_kinds() -> tuple[type, ...]:
    return _kinds("sqlalchemy.orm", "scoped_session") + _kinds(
        "sqlalchemy.ext.asyncio", "async_scoped_session"
    )


def _kinds(module: str, *names: str) -> tuple[type, ...]:
    found = sys.modules.get(module)
    return tuple(getattr(found, name) for name in names) if found is not None else ()
