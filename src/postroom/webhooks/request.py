"""
A request as it came over the wire, and an answer to it.

Whatever bytes a stranger puts into it, none of its parts raises: what cannot be read is None or empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import orjson

FORM_FIELDS_MAX = 1_000

_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_PART_NAME = re.compile(rb'content-disposition:\s*form-data;[^\r\n]*?\bname="([^"\r\n]*)"', re.IGNORECASE)
_PART_FILE = re.compile(rb'content-disposition:[^\r\n]*;\s*filename\*?="?([^"\r\n]*)', re.IGNORECASE)

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
TEXT = "text/plain; charset=utf-8"


class Headers:
    """
    Header fields in their order: names in any case, values as often as they came.

    Values are kept as latin-1 text, one character a byte, so any bytes can be held and given back.
    Names are given back as they were written.
    """

    def __init__(self, fields: Iterable[tuple[str | bytes, str | bytes]] = ()) -> None:
        self._fields = [(_latin1(name), _latin1(value).strip(" \t")) for name, value in fields]
        self._by_name: dict[str, tuple[str, ...]] | None = None

    @classmethod
    def of_bytes(cls, fields: Iterable[tuple[bytes, bytes]]) -> Self:
        """The same of fields as ASGI has them, in a quarter of the time."""
        headers = cls()
        headers._fields = [
            (name.decode("latin-1"), value.decode("latin-1").strip(" \t")) for name, value in fields
        ]
        return headers

    def all(self, name: str) -> tuple[str, ...]:
        """The values of a field, in their order."""
        return self.by_name().get(name.lower(), ())

    def first(self, name: str) -> str | None:
        """The first value of a field."""
        values = self.all(name)
        return values[0] if values else None

    def by_name(self) -> Mapping[str, tuple[str, ...]]:
        """The values of each field, by its name in lower case."""
        if self._by_name is None:
            found: dict[str, tuple[str, ...]] = {}
            for name, value in self._fields:
                name = name.lower()
                found[name] = (*found[name], value) if name in found else (value,)
            self._by_name = found
        return self._by_name

    def with_field(self, name: str, value: str) -> Headers:
        """The same with this field, in place of all of its name."""
        return Headers((*self.without_field(name), (name, value)))

    def without_field(self, name: str) -> Headers:
        """The same without this field."""
        name = name.lower()
        return Headers((own, value) for own, value in self._fields if own.lower() != name)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._fields)

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self._folded() == other._folded()

    def __hash__(self) -> int:
        return hash(self._folded())

    def _folded(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.lower(), value) for name, value in self._fields)

    def __repr__(self) -> str:
        return f"Headers({', '.join(name for name, _ in self._fields)})"  # a value may be a credential


@dataclass(frozen=True)
class WebhookRequest:
    """
    A request of a provider.

    Attributes:
        url: The address that the provider called, whole: POSTROOM_PUBLIC_URL, path and query as
            they came. It counts where the scheme signs it.
        body: The bytes as they came.
    """

    method: str
    url: str = field(repr=False)
    headers: Headers
    body: bytes = field(repr=False)

    @cached_property
    def body_json(self) -> Any:
        """The body as JSON; None where it is none."""
        return parse_json(self.body)

    @cached_property
    def json(self) -> Any:
        """The body as JSON, or the field `payload` of a form; None where there is none."""
        if self.body_json is not None:
            return self.body_json
        payload = dict(self.form).get("payload")
        return None if payload is None else parse_json(payload.encode("utf-8", "surrogateescape"))

    @cached_property
    def form(self) -> tuple[tuple[str, str], ...]:
        """
        The fields of a form, of whichever kind; those of the address where the request came by GET.

        Empty where there is none. A file stands there by its name.
        """
        if self.method == "GET" and not self.body:
            return self.query
        if self.is_multipart:
            return _parts(self.body, self.headers.first("content-type") or "")
        return _pairs(self.body.decode("utf-8", "surrogateescape"))

    @property
    def is_multipart(self) -> bool:
        """Whether the body is a form in parts, as it is with files."""
        return (self.headers.first("content-type") or "").lower().startswith(MULTIPART)

    @cached_property
    def query(self) -> tuple[tuple[str, str], ...]:
        """The fields of the address' query."""
        try:
            return _pairs(urlsplit(self.url).query)
        except ValueError:
            return ()

    def with_header(self, name: str, value: str) -> WebhookRequest:
        """The same request with this header, in place of all of its name."""
        return replace(self, headers=self.headers.with_field(name, value))

    def with_url(self, url: str) -> WebhookRequest:
        """The same request at another address."""
        return replace(self, url=url)

    def with_body(self, body: bytes) -> WebhookRequest:
        """The same request with another body."""
        return replace(self, body=body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider's document demands as an answer."""

    status: int
    body: bytes = field(default=b"", repr=False)
    content_type: str | None = None


def answer_json(value: object, status: int = 200) -> Answer:
    """An answer of JSON."""
    return Answer(status, orjson.dumps(value), JSON)


def parse_json(data: bytes) -> Any:
    """
    JSON as providers send it: also with half characters and numbers that no float holds.

    Returns:
        None where it is none, or is nested so deep that no parser takes it.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        pass
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    if "=" not in text or "\n" in text:
        return ()
    try:
        found = parse_qsl(
            text, keep_blank_values=True, errors="surrogateescape", max_num_fields=FORM_FIELDS_MAX
        )
    except ValueError:
        return ()
    return tuple(found)


def _parts(body: bytes, content_type: str) -> tuple[tuple[str, str], ...]:
    """The fields of multipart/form-data, which is RFC 7578."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return ()
    line = b"\r\n--" + (boundary[1] or boundary[2]).encode("latin-1")
    found = []
    for part in (b"\r\n" + body).split(line, FORM_FIELDS_MAX + 1)[1 : FORM_FIELDS_MAX + 1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name, file = (pattern.search(head) for pattern in (_PART_NAME, _PART_FILE))
        if name is not None:
            value = content if file is None else file[1]
            found.append((name[1].decode(errors="replace"), value.decode("utf-8", "surrogateescape")))
    return tuple(found)


def _latin1(text: str | bytes) -> str:
    if isinstance(text, bytes):
        return text.decode("latin-1")
    return text if _is_latin1(text) else text.encode("utf-8", "replace").decode("latin-1")


def _is_latin1(text: str) -> bool:
    return all(ord(character) < 256 for character in text)
