"""People's own jobs: SQL, on a connection of its own, as pg_cron would run it."""

from __future__ import annotations

import re

from postroom.database.connect import Database

DEADLINE_S = 24 * 3600.0
"""A job of a day is taken for one that hangs."""


async def run_sql(url: str, command: str) -> str:
    """
    Run a job's command; returns what pg_cron would write of it, such as `DELETE 3` or `1 row`.

    Several statements are one transaction, a single one is none of ours: it may be VACUUM. The connection is
    closed afterwards, whatever the command has set.

    Raises:
        DatabaseUnavailable: The database was lost meanwhile.
        asyncpg.PostgresError: The database refuses it.
    """
    database = Database(url, max_size=1, command_timeout_s=DEADLINE_S)
    try:
        tag = await database.execute(command)
    finally:
        await database.close()
    if match := re.fullmatch(r"SELECT (\d+)", tag):
        return f"{match[1]} {'row' if match[1] == '1' else 'rows'}"
    return tag or "nothing to do"
