"""What a process that stays looks at first: a mistake shows before the database is opened, or changed."""

from __future__ import annotations

import sys
from pathlib import Path

from postroom.cli.errors import WrongUsage
from postroom.email.address import parse_mailbox
from postroom.email.transports import from_urls
from postroom.errors import ConfigError, InvalidEmail
from postroom.room import Room
from postroom.webhooks.code import require_runnable
from postroom.webhooks.registry import CodeHandler, NotThere, load_object

NAMED_MAX = 10


def check_settings(room: Room, *, webhooks: bool = True, handlers: bool = False) -> None:
    """
    Look at all settings.

    Args:
        webhooks: Also at the sources of postroom.toml.
        handlers: Also at the handlers in Python, which are imported.

    Raises:
        ConfigError: One is wrong; the line names it and says what is allowed.
    """
    from_urls(room.settings.transport_urls, room.settings)
    if room.settings.sender is not None:
        try:
            parse_mailbox("POSTROOM_FROM", room.settings.sender, named=True)
        except InvalidEmail as error:
            raise ConfigError(str(error)) from None
    assert room.alerts is not None
    for source in room.sources.values() if webhooks else ():
        for handler in source.handlers if handlers else ():
            if handler.python is not None:
                what = f"the handler {handler.name!r} of {source.name}, python ="
                require_runnable(CodeHandler(handler, load_object(handler.python, what)))
    for one in (one for ones in room.registry.of.values() for one in ones):
        require_runnable(one)


def room_of(app: str) -> Room:
    """
    The room that --app names.

    Raises:
        WrongUsage: There is no such room; the line says which there are.
        ConfigError: Its program cannot be imported.
    """
    try:
        room = load_object(app, "--app")
    except NotThere as error:
        raise WrongUsage(f"{error}{_there_are(app)}") from None
    if not isinstance(room, Room):
        raise WrongUsage(f"--app {app}: it is no Room, but {type(room).__name__}{_there_are(app)}")
    room.registry.app = room.registry.app or app  # a framework's room knows what it is called
    return room


def _there_are(app: str) -> str:
    """What --app could name: the rooms of a module that is there, else the modules of the working folder."""
    name = app.partition(":")[0]
    if (module := sys.modules.get(name)) is not None:
        rooms = [f"{name}:{each}" for each, value in vars(module).items() if isinstance(value, Room)]
        return f"; its rooms: {', '.join(rooms[:NAMED_MAX]) or 'none'}"
    here = [path.stem for path in Path().glob("*.py")] + [
        path.parent.name for path in Path().glob("*/__init__.py")
    ]
    return f"; modules here: {', '.join(sorted(here)[:NAMED_MAX]) or 'none'}"
