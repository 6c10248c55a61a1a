"""Keys: an operator's opens the HTTP API and the whole dashboard, a viewer's shows the dashboard's pages."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import asyncpg

from postroom.database.audit import Actor, record
from postroom.database.connect import Database
from postroom.errors import PostroomError

Role = Literal["operator", "viewer"]

SAID_MAX = 20
"""So many are named where one is not there."""

KEYS_MAX = 1_000
"""As many are read; who has more of them has lost sight of who they belong to."""

NAME_CHARACTERS_MAX = 100


@dataclass(frozen=True, slots=True)
class Key:
    """
    A key, by its hash: nobody has kept the key itself.

    Attributes:
        key_hash: Its SHA-256.
        name: As a person has named it; None where nobody has.
        created_at: None of the process's own key.
    """

    key_hash: bytes
    name: str | None
    role: Role
    created_at: datetime | None = None

    @property
    def id(self) -> str:
        """What it is called where it has no name: the beginning of its hash."""
        return self.key_hash.hex()[:8]

    @property
    def called(self) -> str:
        """What people and the audit trail call it."""
        return self.name or f"key {self.id}"


async def read_keys(database: Database) -> list[Key]:
    """The keys that the database knows, oldest first."""
    rows = await database.fetch(
        """
        SELECT stored.key_hash, stored.name, stored.role, stored.created_at
        FROM postroom.service_keys AS stored
        ORDER BY stored.created_at, stored.key_hash
        LIMIT $1
        """,
        KEYS_MAX,
    )
    return [Key(**row) for row in rows]


class KeyRefused(PostroomError):
    """There is no such key, or none can be made as it was asked for: the text says why."""


async def make_key(database: Database, role: Role, name: str | None, *, by: Actor) -> str:
    """
    Make a key, with an entry of the audit trail. It is returned this once: the database has its hash.

    Raises:
        KeyRefused: The name is taken, empty, too long or of characters that cannot be shown.
    """
    if name is not None and not (name.isprintable() and 0 < len(name.strip()) <= NAME_CHARACTERS_MAX):
        raise KeyRefused(f"a key's name is 1 to {NAME_CHARACTERS_MAX} characters in one line")
    secret = f"pr_{secrets.token_urlsafe(32)}"
    key = Key(hashlib.sha256(secret.encode()).digest(), name.strip() if name else None, role)
    try:
        async with database.transaction() as connection:
            await connection.execute(
                "INSERT INTO postroom.service_keys (key_hash, name, role) VALUES ($1, $2, $3)",
                key.key_hash,
                key.name,
                key.role,
            )
            await record(connection, by, "key.create", {"key": key.called, "id": key.id, "role": role})
    except asyncpg.UniqueViolationError:
        raise KeyRefused(f"there is a key {key.called!r} already: `postroom key list`") from None
    return secret


async def revoke_key(database: Database, name_or_id: str, *, by: Actor) -> Key:
    """
    Take a key away, and its sessions with it, with an entry of the audit trail.

    Raises:
        KeyRefused: There is none, or an id that is several keys'.
    """
    async with database.transaction() as connection:
        rows = await connection.fetch(
            """
            SELECT stored.key_hash, stored.name, stored.role, stored.created_at
            FROM postroom.service_keys AS stored
            WHERE stored.name = $1 OR left(encode(stored.key_hash, 'hex'), 8) = lower($1)
            ORDER BY (stored.name = $1) DESC NULLS LAST
            FOR UPDATE
            """,
            name_or_id,
        )
        keys = [Key(**row) for row in rows]
        if not keys:
            known = [Key(**row) for row in await connection.fetch(_NEWEST, SAID_MAX)]
            called = ", ".join(key.name or key.id for key in known) or "none"
            raise KeyRefused(f"there is no key {name_or_id!r}; keys: {called}")
        key = keys[0]
        if len(keys) > 1 and key.name != name_or_id:
            raise KeyRefused(f"{name_or_id} is the id of {len(keys)} keys: revoke one by its name")
        await connection.execute("DELETE FROM postroom.service_keys WHERE key_hash = $1", key.key_hash)
        await record(connection, by, "key.revoke", {"key": key.called, "id": key.id, "role": key.role})
    return key


_NEWEST = """
    SELECT stored.key_hash, stored.name, stored.role
    FROM postroom.service_keys AS stored
    ORDER BY stored.created_at DESC
    LIMIT $1
"""
