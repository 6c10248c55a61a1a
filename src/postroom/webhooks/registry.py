"""Handlers in Python: those that a program registers with @room.on, and those that postroom.toml names."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from postroom.errors import ConfigError
from postroom.webhooks.source import ALL_EVENTS, Handler

NAME_CHARACTERS_MAX = 200

Function = Callable[..., Any]
"""(event, db): a coroutine function, or a plain one, which runs in a thread."""

_NAME = re.compile(r"[^\s,;]+")
_OBJECT = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")


class NotThere(ConfigError):
    """What was named as `module:name` is not there."""


@dataclass(frozen=True, slots=True)
class Open:
    """
    An open transaction.

    Attributes:
        arguments: What a function gets besides the event.
        execute: Runs a statement in it, with %s where its values go.
    """

    arguments: tuple[object, ...]
    execute: Callable[[str, Sequence[object]], object]


class Transactions(Protocol):
    """Where plain functions have their transactions; called from several threads."""

    def begin(self) -> AbstractContextManager[Open]:
        """A transaction that is committed where the block ends, else rolled back."""
        ...

    def close(self) -> None:
        """Close what no handler uses any more."""
        ...

    def require_apart(self) -> None:
        """
        See that this thread has no transaction open which those of begin() cannot see into.

        Raises:
            ConfigError: It has one.
        """
        ...


@dataclass(frozen=True, slots=True)
class CodeHandler:
    """
    A handler with its function.

    Attributes:
        transactions: Of the framework that a plain function belongs to; None stands for psycopg's.
    """

    handler: Handler
    function: Function
    transactions: Transactions | None = None


@dataclass(slots=True)
class Registry:
    """
    What @room.on has registered.

    Attributes:
        app: Where workers find the room, `module:room`; None where the program runs by itself.
        of: The handlers of each source, in the order of their registration.
    """

    app: str | None = None
    of: dict[str, list[CodeHandler]] = field(default_factory=dict)

    def add(
        self,
        source: str,
        events: tuple[str, ...],
        name: str | None,
        function: Function,
        transactions: Transactions | None = None,
    ) -> None:
        """
        Register a function.

        Raises:
            ConfigError: The name is taken, or is none.
        """
        if name is None:
            name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        if not _NAME.fullmatch(name) or len(name) > NAME_CHARACTERS_MAX:
            raise ConfigError(
                f"handler {name[:80]!r} of {source}: give it a name without spaces, commas and semicolons, "
                f"of at most {NAME_CHARACTERS_MAX} characters"
            )
        if not source or not all(events):
            raise ConfigError(f"handler {name!r}: name a source and types of events, such as checkout.*")
        registered = self.of.setdefault(source, [])
        if any(one.handler.name == name for one in registered):
            raise ConfigError(
                f"there are two handlers named {name!r} of {source}: give one of them another name="
            )
        registered.append(CodeHandler(Handler(name, events or ALL_EVENTS), function, transactions))


def load_object(place: str, what: str) -> Any:
    """
    Import what `module:name` names; the working folder counts as a place of modules.

    Args:
        what: Where the text was written, for errors, such as `--app`.

    Raises:
        NotThere: No module, or nothing in it, has this name.
        ConfigError: Its import ended in an error; one line says where.
    """
    match = _OBJECT.fullmatch(place)
    if match is None:
        raise NotThere(f"{what} {place}: write it as module:name, such as shop.hooks:room")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(match[1])
    except (Exception, SystemExit) as error:
        kind = NotThere if _is_missing(error, match[1]) else ConfigError
        raise kind(f"{what} {place}: {_why(error, match[1])}") from error
    for name in match[2].split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise NotThere(f"{what} {place}: module {match[1]} has no {match[2]}") from None
    return found


def _is_missing(error: BaseException, module: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0])


def _why(error: BaseException, module: str) -> str:
    if _is_missing(error, module):
        return f"there is no module {module} in {Path.cwd()} or where Python looks for modules"
    text = " ".join(str(error).split())
    told = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"importing it failed: {told}"
    places = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    where = f" ({places[-1].filename}, line {places[-1].lineno})" if len(places) > 1 else ""
    return f"importing it failed: {told}{where}"
