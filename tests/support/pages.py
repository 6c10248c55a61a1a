"""What a look at the house says to the database, and how many pages PostgreSQL reads for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from postroom.database.connect import Database

Look = Callable[[], Awaitable[Any]]


async def statements_of(database: Database, look: Look) -> list[tuple[str, tuple[object, ...]]]:
    """All that is said while it looks."""
    said: list[tuple[str, tuple[object, ...]]] = []

    def spied(whole: Any) -> Any:
        async def spy(sql: str, *values: object, **more: Any) -> Any:
            said.append((sql, values))
            return await whole(sql, *values, **more)

        return spy

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fetch", "fetchrow", "fetchval", "execute"):
            patch.setattr(database, name, spied(getattr(database, name)))
        await look()
    return said


async def pages_read(database: Database, look: Look) -> int:
    """Pages of 8 kB, in memory or not, with its plans known."""
    pages = 0
    for sql, values in await statements_of(database, look):
        for _ in range(2):  # the first one may read the catalogue
            explained = f"EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT json) {sql}"
            plan = orjson.loads(await database.fetchval(explained, *values))[0]["Plan"]
        pages += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return pages
