"""`postroom key`: keys of the HTTP API."""

from __future__ import annotations

import typer

from postroom.cli.house import actor, opened_room, run
from postroom.cli.screen import note, print_line

app = typer.Typer(help="Keys of the HTTP API.")


@app.callback()
def root() -> None:
    """Keys of the HTTP API."""


@app.command("new")
def new() -> None:
    """Make a service key and print it once: the database keeps its hash."""
    key = run(_new())
    print_line(key)
    note("this is the only time that it is shown; give it to callers as `Authorization: Bearer KEY`")


async def _new() -> str:
    import hashlib
    import secrets

    from postroom.database.audit import record

    key = f"pr_{secrets.token_urlsafe(32)}"
    key_hash = hashlib.sha256(key.encode()).digest()
    async with opened_room() as room, room.database.transaction() as connection:
        await connection.execute("INSERT INTO postroom.service_keys (key_hash) VALUES ($1)", key_hash)
        await record(connection, actor(), "key.create", {"key": key_hash.hex()[:8]})
    return key
