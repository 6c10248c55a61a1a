"""Queue policy: the settings in the database, which all workers share."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from postroom.database.connect import Database
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
    """All settings, in the order of the documentation."""
    rows = await database.fetch(
        """
        SELECT setting.key, setting.value, standard.value AS default
        FROM postroom.default_settings() WITH ORDINALITY AS standard (key, value, place)
        JOIN postroom.settings AS setting ON setting.key = standard.key
        ORDER BY standard.place
        """
    )
    return [Setting(**row) for row in rows]


async def set_setting(database: Database, key: str, value: str) -> tuple[str | None, str]:
    """
    Change one setting, for all workers within 5 s.

    Returns:
        The value before, and the new one as it is kept.

    Raises:
        SettingRefused: The key or the value is not allowed.
    """
    try:
        async with database.transaction() as connection:
            before = await connection.fetchval("SELECT value FROM postroom.settings WHERE key = $1", key)
            await connection.execute("SELECT postroom.set_setting($1, $2)", key, value)
            after = await connection.fetchval("SELECT value FROM postroom.settings WHERE key = $1", key)
    except asyncpg.InvalidParameterValueError as error:
        parts = (*error.args[:1], error.hint)  # its str() has the hint in a line of its own
        raise SettingRefused("; ".join(str(part) for part in parts if part)) from error
    return before, after
