"""
Where in a request its event's id and type are.

In postroom.toml a place is written `header:X-Request-Id`, `data.id`, `entry[0].id` or `digest`.
An id that is found nowhere is None: such an event is never taken for a duplicate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from postroom.webhooks.request import WebhookRequest

ALLOWED = "header:NAME, a path in the body such as data.id or entry[0].id, or digest (of the body)"
VALUE_CHARACTERS_MAX = 255

_HEADER = re.compile(r"header:\s*([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100})")
_PATH = re.compile(r"(?:[^\s.\[\]]+|\[[0-9]{1,6}\])(?:\.[^\s.\[\]]+|\[[0-9]{1,6}\]){0,20}")
_STEP = re.compile(r"[^.\[\]]+|\[[0-9]+\]")


class Place(Protocol):
    """Where a value is."""

    def read(self, request: WebhookRequest) -> str | None:
        """The value, or None; never raises."""
        ...


Places = tuple[Place, ...]
"""The first that holds something counts."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header field."""

    name: str

    def read(self, request: WebhookRequest) -> str | None:
        value = request.headers.first(self.name)
        return value and _as_utf8(value)


@dataclass(frozen=True, slots=True)
class Body:
    """A value in the body's JSON, or the field of a form."""

    path: str

    def read(self, request: WebhookRequest) -> str | None:
        content = request.json
        return as_text(step_into(dict(request.form) if content is None else content, self.path))


@dataclass(frozen=True, slots=True)
class Batch:
    """
    A value of each event of a request that carries several.

    Args:
        path: Where the list of events is; empty where the body is the list.
        value: What of an event.
        together: How the values become one: `digest_all` for ids, `same_of_all` for types.
    """

    path: str
    value: Callable[[Any], str | None]
    together: Callable[[Sequence[str]], str | None]

    def read(self, request: WebhookRequest) -> str | None:
        events = step_into(request.json, self.path) if self.path else request.json
        if not isinstance(events, list) or not events:
            return None
        values = [self.value(event) for event in events]
        known = [value for value in values if value is not None]
        return self.together(known) if len(known) == len(values) else None


@dataclass(frozen=True, slots=True)
class Digest:
    """The SHA-256 of the body: for providers that repeat an event to the byte and give it no id."""

    def read(self, request: WebhookRequest) -> str | None:
        return f"sha256:{sha256(request.body).hexdigest()}"


def parse_place(text: str) -> Place:
    """
    Read a place as it is written in postroom.toml.

    Raises:
        ValueError: It is none; ALLOWED says what is.
    """
    text = text.strip()
    if match := _HEADER.fullmatch(text):
        return Header(match[1])
    if text == "digest":
        return Digest()
    if ":" in text or not _PATH.fullmatch(text):
        raise ValueError(ALLOWED)
    return Body(text)


def read_id(places: Places, request: WebhookRequest) -> str | None:
    """An event's id, as a text that a database can hold: one that it cannot is told by its digest."""
    found = _read(places, request)
    if found is None or _is_storable(found):
        return found
    return f"sha256:{sha256(found.encode('utf-8', 'surrogatepass')).hexdigest()}"


def read_type(places: Places, request: WebhookRequest) -> str | None:
    """An event's type; one that no database can hold is None."""
    found = _read(places, request)
    return found if found is not None and _is_storable(found) else None


def step_into(content: Any, path: str) -> Any:
    """What lies at a path such as `data.items[0].id`; None where nothing does."""
    for step in _STEP.findall(path):
        if step[0] == "[" and isinstance(content, list):
            index = int(step[1:-1])
            content = content[index] if index < len(content) else None
        elif step[0] != "[" and isinstance(content, Mapping):
            content = content.get(step)
        else:
            return None
    return content


def as_text(value: object) -> str | None:
    """A text or a whole number as a text; everything else names nothing."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def value_at(path: str) -> Callable[[Any], str | None]:
    """What Batch takes of an event: the value at a path in it."""
    return lambda event: as_text(step_into(event, path))


def content_without(*fields: str) -> Callable[[Any], str | None]:
    """What Batch takes of an event: all of it but the fields that differ from try to try."""

    def content(event: Any) -> str | None:
        if not isinstance(event, Mapping):
            return None
        kept = {name: value for name, value in event.items() if name not in fields}
        try:
            return json.dumps(kept, sort_keys=True)
        except (ValueError, RecursionError):
            return None

    return content


def digest_all(values: Sequence[str]) -> str:
    """One id of several: a batch is a duplicate where all of its events are, in their order."""
    if len(values) == 1 and _is_storable(values[0]):
        return values[0]
    whole = json.dumps(list(values)).encode()
    return f"batch:{sha256(whole).hexdigest()}"


def same_of_all(values: Sequence[str]) -> str | None:
    """The type of a batch whose events are all of one type."""
    return values[0] if len(set(values)) == 1 else None


def _read(places: Places, request: WebhookRequest) -> str | None:
    return next((found for place in places if (found := place.read(request))), None)


def _is_storable(text: str) -> bool:
    if len(text) > VALUE_CHARACTERS_MAX or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True


def _as_utf8(value: str) -> str:
    data = value.encode("latin-1")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return value
