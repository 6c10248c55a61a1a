"""`postroom settings`: queue policy, which all workers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.house import actor, opened_room, run
from postroom.cli.screen import print_json, print_line, print_table

if TYPE_CHECKING:
    from postroom.queue.policy import Setting

app = typer.Typer(help="Read and change queue policy: limits, backoff, lease, retention.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="Such as email.limit.global.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List all settings."""
    found = run(_read())
    if json:
        print_json({setting.key: setting.value for setting in found})
        return
    print_table(
        ["KEY", "VALUE", "DEFAULT"],
        [
            (setting.key, setting.value, "" if setting.value == setting.default else setting.default)
            for setting in found
        ],
    )


@app.command("get")
def get(key: Key, json: Json = False) -> None:
    """Print one setting's value."""
    value = run(_read_one(key))
    if json:
        print_json({key: value})
    else:
        print_line(value)


@app.command("set")
def set_(
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Such as 200/60s, 30d, off.")],
    json: Json = False,
) -> None:
    """Change one setting; it is in force within 5 s, without a restart."""
    before, after = run(_set(key, value))
    if json:
        print_json({key: after})
    else:
        print_line(f"{key} = {after} (was {before})" if before != after else f"{key} = {after}, as before")


async def _read() -> list[Setting]:
    from postroom.queue.policy import read_settings

    async with opened_room() as room:
        return await read_settings(room.database)


async def _read_one(key: str) -> str:
    from postroom.queue.policy import read_setting, read_settings

    async with opened_room() as room:
        value = await read_setting(room.database, key)
        if value is None:
            known = ", ".join(setting.key for setting in await read_settings(room.database))
            raise WrongUsage(f"there is no setting {key!r}; settings: {known}")
        return value


async def _set(key: str, value: str) -> tuple[str | None, str]:
    from postroom.queue.policy import SettingRefused, set_setting

    async with opened_room() as room:
        try:
            return await set_setting(room.database, key, value, by=actor())
        except SettingRefused as error:
            raise WrongUsage(str(error)) from error
