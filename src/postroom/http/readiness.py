"""Whether the doors can do their work: the database is there, and migrated."""

from __future__ import annotations

import asyncio
from time import monotonic

from postroom.database.migrate import require_schema
from postroom.database.snapshots import SnapshotHolder, read_snapshot_holders
from postroom.errors import DatabaseUnavailable, SchemaError
from postroom.room import Room

DEADLINE_S = 3.0
GOOD_S = 1.0
"""Who asks more often than this gets the same answer: anybody may ask."""


class Readiness:
    """Looks whether the database is there and migrated, for everybody who asks at the same time."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._looking = asyncio.Lock()
        self._looked_at = -GOOD_S
        self._problem: str | None = None
        self._oldest: SnapshotHolder | None = None

    async def problem(self) -> str | None:
        """Why it is not ready, without names of hosts; None where it is."""
        async with self._looking:
            if monotonic() - self._looked_at > GOOD_S:
                self._problem = await self._look()
                self._looked_at = monotonic()
            return self._problem

    @property
    def oldest_snapshot(self) -> SnapshotHolder | None:
        """Who keeps the queue's dead rows from being removed, as the last look found it."""
        return self._oldest

    async def _look(self) -> str | None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._room.open()
                async with self._room.database.transaction() as connection:
                    await require_schema(connection)
                holders = await read_snapshot_holders(self._room.database, count_max=1)
                self._oldest = holders[0] if holders else None
        except (DatabaseUnavailable, TimeoutError):
            return "the database does not answer"
        except SchemaError as error:
            return str(error)
        return None
