"""Queue policy: the settings in the database, which all workers share."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from postroom.database.audit import Actor, record
from postroom.database.connect import Database
from postroom.database.connection import Connection
from postroom.errors import PostroomError


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting; `default` is what holds until somebody changes it."""

    key: str
    value: str
    default: str


class SettingRefused(PostroomError):
    """There is no such setting, or it does not take this value: the text says what is allowed."""


async def read_settings(database: Database) -> list[Setting]:
    """All settings, in the order of the documentation; further limits that somebody has set come last."""
    rows = await database.fetch(
        """
        SELECT setting.key, setting.value, COALESCE(standard.value, 'off') AS default
        FROM postroom.settings AS setting
        LEFT JOIN postroom.default_settings() WITH ORDINALITY AS standard (key, value, place)
            ON standard.key = setting.key
        ORDER BY standard.place, setting.key
        """
    )
    return [Setting(**row) for row in rows]


async def read_setting(database: Database | Connection, key: str) -> str | None:
    """One setting's value, `off` for a further limit that nobody has set; None where there is no such key."""
    value: str | None = await database.fetchval(
        """
        SELECT COALESCE(
            (SELECT value FROM postroom.settings WHERE key = wanted.key),
            CASE WHEN wanted.further THEN 'off' END
        )
        FROM (
            SELECT
                COALESCE(postroom.further_limit_key($1), $1) AS key,
                postroom.further_limit_key($1) IS NOT NULL AS further
        ) AS wanted
        """,
        key,
    )
    return value


async def set_setting(database: Database, key: str, value: str, *, by: Actor) -> tuple[str | None, str]:
    """
    Change one setting, for all workers within 5 s, with an entry of the audit trail.

    Args:
        by: Who changes it.

    Returns:
        The value before, and the new one as it is kept.

    Raises:
        SettingRefused: The key or the value is not allowed.
    """
    try:
        async with database.transaction() as connection:
            before = await read_setting(connection, key)
            await connection.execute("SELECT postroom.set_setting($1, $2)", key, value)
            after = await read_setting(connection, key) or value
            if after != before:
                about = {"key": key, "before": before, "after": after}
                await record(connection, by, "setting.change", about)
    except asyncpg.InvalidParameterValueError as error:
        parts = (*error.args[:1], error.hint)  # its str() has the hint in a line of its own
        raise SettingRefused("; ".join(str(part) for part in parts if part)) from error
    return before, after
