"""A command's way into the house: the room, its database open and its schema fitting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from postroom.errors import SchemaError

if TYPE_CHECKING:
    from postroom.database.audit import Actor
    from postroom.room import Room

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end."""
    import asyncio  # 20 ms, which --help need not pay

    return asyncio.run(work)


@asynccontextmanager
async def opened_room() -> AsyncIterator[Room]:
    """
    An open room whose schema fits.

    Raises:
        SchemaError: The database is not up to date.
    """
    from postroom.room import Room

    async with Room() as room:
        await fit_schema(room)
        yield room


def actor() -> Actor:
    """Whoever calls this command, for the audit trail: who said sudo rather than root."""
    import getpass
    import os
    import socket

    from postroom.database.audit import Actor

    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    return Actor(f"{user}@{socket.gethostname()}", "cli")


async def fit_schema(room: Room) -> None:
    """
    See that the schema fits: the embedded database is ours and is brought up to date, others must be.

    Raises:
        SchemaError: It is not.
    """
    from postroom.database.migrate import migrate, require_schema

    try:
        async with room.database.transaction() as connection:
            await require_schema(connection)
    except SchemaError:
        if room.settings.database_url is not None:
            raise
        await migrate(await room.database_url())
