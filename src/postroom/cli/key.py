"""`postroom key`: keys of the HTTP API and of the dashboard."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.house import actor, opened_room, run
from postroom.cli.screen import note, print_json, print_line, print_table

if TYPE_CHECKING:
    from postroom.database.keys import Key

app = typer.Typer(help="Keys of the HTTP API and of the dashboard.")


class RoleName(StrEnum):
    """What a key opens."""

    OPERATOR = "operator"
    VIEWER = "viewer"


@app.callback()
def root() -> None:
    """Keys of the HTTP API and of the dashboard."""


@app.command("new")
def new(
    role: Annotated[
        RoleName,
        typer.Option("--role", help="operator: the API and the whole dashboard; viewer: its pages alone."),
    ] = RoleName.OPERATOR,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="N", help="Whose it is, for the audit trail.", show_default=False),
    ] = None,
) -> None:
    """Make a key and print it once: the database keeps its hash."""
    key = run(_new(role, name))
    print_line(key)
    note(
        "this is the only time that it is shown; "
        + (
            "it opens the dashboard's pages"
            if role is RoleName.VIEWER
            else "give it to callers as `Authorization: Bearer KEY`"
        )
    )


@app.command("list")
def list_(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the keys that the database knows; POSTROOM_SERVICE_KEY is none of them."""
    keys = run(_list())
    if json:
        print_json(
            [{"id": key.id, "name": key.name, "role": key.role, "created_at": key.created_at} for key in keys]
        )
    else:
        print_table(
            ["ID", "NAME", "ROLE", "CREATED"],
            [(key.id, key.name, key.role, key.created_at) for key in keys],
        )


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="NAME|ID", help="As `postroom key list` has it.")],
) -> None:
    """Take a key away: within 5 s it opens nothing, and whoever logged in with it is logged out."""
    print_line(f"{run(_revoke(key)).called} is revoked")


async def _new(role: RoleName, name: str | None) -> str:
    from postroom.database.keys import KeyRefused, make_key

    async with opened_room() as room:
        try:
            return await make_key(room.database, role.value, name, by=actor())
        except KeyRefused as error:
            raise WrongUsage(f"--name: {error}") from None


async def _list() -> list[Key]:
    from postroom.database.keys import read_keys

    async with opened_room() as room:
        return await read_keys(room.database)


async def _revoke(key: str) -> Key:
    from postroom.database.keys import KeyRefused, revoke_key

    async with opened_room() as room:
        try:
            return await revoke_key(room.database, key, by=actor())
        except KeyRefused as error:
            raise WrongUsage(str(error)) from None
