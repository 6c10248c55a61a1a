"""
Structured logging: one line an event, JSON or text, on stderr.

    from postroom import log

    _log = log.get_logger()
    _log.info("email.sent", id=str(id), reply=reply)

The names of postroom's own events are in log_events.py, with what they mean. What must not be in
a log is taken out here once more, though nobody should have put it in: values of names such as
`password` or `html`, and what looks like a key in any other. It is configured apart from
structlog's own global configuration, which belongs to the program that uses postroom.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from time import gmtime, strftime, time
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

Format = Literal["json", "text"]

HIDDEN = "[hidden]"
TEXT_CHARACTERS_MAX = 2_000
"""A value's length: a server's reply is its own to choose."""

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_DEPTH_MAX = 4
_NUMBERS = (bool, int, float)

_HIDDEN_NAMES = frozenset(
    [
        *(
            "password",
            "passwd",
            "secret",
            "key",
            "api_key",
            "service_key",
            "token",
            "authorization",
            "cookie",
        ),
        *("html", "text", "body", "payload"),
    ]
)
_HIDDEN_ENDINGS = ("_secret", "_password", "_token")
_SECRET = re.compile(
    r"(?P<before>://[^/\s:@]*:(?=\S+@)|\bresend(?:\+https?)?://|\bBearer\s+)(?:\S+(?=@)|[^\s@]+)"
    r"|\b(?:whsec_|re_|[sr]k_(?:live|test)_)[A-Za-z0-9+/=_-]{6,}"
)
_UNESCAPED = re.compile(rb"\x7f|\xc2[\x80-\x9f]")
_UNSAFE = re.compile(r"[^\w@.,:;/+*<>()\[\]{}#%&!?$~|'-]|[^\x21-\x7e]")


def get_logger(**context: object) -> FilteringBoundLogger:
    """
    A logger.

    Args:
        context: Values that all of its lines carry.
    """
    logger: FilteringBoundLogger = _Logger(_OUTPUT, processors=(), context=dict(context))
    return logger


def configure(log_format: Format | None = None, level: str = "info") -> None:
    """
    Decide how this process logs, and let what libraries say come out in the same way.

    Args:
        log_format: None takes text where stderr is a terminal, else JSON.
        level: The least level that is written.
    """
    _OUTPUT.level = _LEVELS[level]
    _OUTPUT.as_text = _is_terminal() if log_format is None else log_format == "text"
    _OUTPUT.in_colour = _OUTPUT.as_text and _is_terminal() and "NO_COLOR" not in os.environ
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    # A library's information is about itself; what it warns of is about us.
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)


class _Output:
    """stderr, whatever it is at the moment; a log that cannot be written stops nothing."""

    level = _LEVELS["info"]
    as_text = False
    in_colour = False

    def write(self, line: bytes) -> None:
        try:
            buffer = getattr(sys.stderr, "buffer", None)
            if buffer is None:
                sys.stderr.write(line.decode())
            else:
                buffer.write(line)
                buffer.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed, or a full disk


_OUTPUT = _Output()


class _Logger(structlog.make_filtering_bound_logger(logging.DEBUG)):  # type: ignore[misc]
    """
    structlog's logger with one step where that has a chain of processors.

    A worker that has nothing else to do writes a line for each mail: 8 us with the chain, 6 in this way.
    """

    def _proxy_to_logger(self, method: str, event: str | None = None, /, **values: object) -> None:
        # Not structlog's own filter: loggers are made at import, before anybody has read the settings.
        if _LEVELS[method] < _OUTPUT.level:
            return
        said = {**structlog.contextvars.get_contextvars(), **self._context, **values}
        if "exc_info" in said:
            said = dict(structlog.processors.format_exc_info(self, method, said))
        _OUTPUT.write(_rendered(method, str(event or ""), said))


class _LibraryHandler(logging.Handler):
    """What libraries say through the standard library's logging, as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        say = getattr(_library_log, level if level in _LEVELS else "info")
        said = record.getMessage()
        say("library.said", logger=record.name, message=said, exc_info=record.exc_info or None)


def _rendered(level: str, name: str, values: dict[str, Any]) -> bytes:
    second, ms = divmod(int(time() * 1000), 1000)
    moment = f"{_shown_second(second)}.{ms:03}Z"
    values = {name: HIDDEN if _is_hidden(name) else _clean(value) for name, value in values.items()}
    if _OUTPUT.as_text:
        return _as_text(moment, level, _clean_text(name), values)
    return _as_json({"timestamp": moment, "level": level, "event": _clean_text(name), **values})


@lru_cache(maxsize=4)
def _shown_second(second: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))


@lru_cache(maxsize=1024)
def _is_hidden(name: str) -> bool:
    name = name.lower()
    return name in _HIDDEN_NAMES or name.endswith(_HIDDEN_ENDINGS)


def _clean(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return _clean_text(value)
    if value is None or isinstance(value, _NUMBERS):
        return value
    if depth == _DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        return {
            str(name): HIDDEN if _is_hidden(str(name)) else _clean(inner, depth + 1)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(inner, depth + 1) for inner in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    return _clean_text(str(value))


def _clean_text(text: str) -> str:
    if len(text) > TEXT_CHARACTERS_MAX:
        text = f"{text[:TEXT_CHARACTERS_MAX]}…"
    # Most values have nothing in them by which a secret could be told: that is seen in a tenth of the time.
    if not ("_" in text or "://" in text or "Bearer" in text):
        return text
    return _SECRET.sub(lambda match: f"{match['before'] or ''}{HIDDEN}", text)


def _as_json(line: dict[str, Any]) -> bytes:
    try:
        written = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        if b"\xc2" not in written and b"\x7f" not in written:
            return written
        # JSON allows them, and a terminal that shows the log obeys them: CSI is one character, U+009B.
        return _UNESCAPED.sub(lambda found: b"\\u00" + b"%02x" % found[0][-1], written)
    except TypeError:
        # A lone surrogate or a number of more than 64 bits, which orjson refuses.
        return json.dumps(line, default=str).encode() + b"\n"


_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31"}


def _as_text(moment: str, level: str, name: str, values: dict[str, Any]) -> bytes:
    shown = f"\x1b[{_COLOURS[level]}m{level:<7}\x1b[0m" if _OUTPUT.in_colour else f"{level:<7}"
    words = "".join(f" {_word(key)}={_word(value)}" for key, value in values.items())
    return f"{moment} {shown} {_word(name)}{words}\n".encode()


def _word(value: Any) -> str:
    """A value that can neither end its line nor its quotes, nor speak to the terminal."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text and not _UNSAFE.search(text):
        return text
    if isinstance(value, str):
        text = json.dumps(text, ensure_ascii=False)
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


_library_log = get_logger()
