"""
What an e-mail's bytes hold, for a person who looks at them; whatever is broken in them is left out.

They may be a stranger's. The standard library's time grows with the square of a header's length (5 s for the
20,000 addresses of one To), and with parts and their depth, so beyond what mails have no more is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage, MIMEPart
from email.parser import BytesHeaderParser
from email.policy import EmailPolicy
from itertools import islice
from typing import TYPE_CHECKING, Any

HEADERS_MAX = 1_000
"""Headers that are shown."""

HEADER_CHARACTERS_MAX, CONTENT_HEADER_CHARACTERS_MAX = 8_000, 2_000
"""What is decoded of a header; of one that says what a part is, which is asked again and again."""

DELIMITERS_MAX, NESTED_MAX = 5_000, 100
"""Lines that may begin a part, and parts that may hold others: what stands behind these is left out."""

if TYPE_CHECKING:
    _Policy = EmailPolicy[EmailMessage]
else:
    _Policy = EmailPolicy

# A line ends as the standard library has it; a boundary may be named in sections, a type be encoded.
_DELIMITER = re.compile(rb"(?:\A|[\r\n])--")
_NESTED = re.compile(rb"boundary[^\r\n=]{0,80}=|(?:\A|[\r\n])content-type:\s*(?:message/|=\?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file in a mail: `number` counts from 0 within its mail; `type` is what the mail says it is."""

    number: int
    name: str
    type: str
    content: bytes = field(repr=False)
    content_id: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """
    An e-mail taken apart.

    Attributes:
        headers: As they stand in it, decoded.
        html, text: The body, as far as there is one of the kind.
    """

    headers: list[tuple[str, str]]
    html: str | None = field(repr=False)
    text: str | None = field(repr=False)
    attachments: list[FoundFile] = field(repr=False)


def read_parts(content: bytes) -> Parts:
    """Take an e-mail apart. A large one takes long: call it in a thread."""
    parsed = parse(content)
    return Parts(
        headers=_headers(parsed),
        html=_part(parsed, "html"),
        text=_part(parsed, "plain"),
        attachments=list(_attachments(parsed)),
    )


def read_headers(content: bytes) -> list[tuple[str, str]]:
    """An e-mail's headers alone, decoded, in their order."""
    return _headers(parse(content.partition(b"\r\n\r\n")[0]))


def parse(content: bytes) -> EmailMessage:
    """The standard library's view of it, which no content makes fail."""
    for pattern, most in ((_DELIMITER, DELIMITERS_MAX), (_NESTED, NESTED_MAX)):
        if (beyond := next(islice(pattern.finditer(content), most, None), None)) is not None:
            content = content[: beyond.start()]
    try:
        return message_from_bytes(content, policy=_POLICY)
    except RecursionError:  # parts within parts, in a way that _NESTED does not know
        return BytesHeaderParser(policy=_POLICY).parsebytes(content)


def header(parsed: EmailMessage, key: str) -> str:
    """The value of the first header of this name; empty where there is none."""
    found = next((raw for name, raw in parsed.raw_items() if name.lower() == key), None)
    return "" if found is None else _decoded(key, found)


def _headers(parsed: EmailMessage) -> list[tuple[str, str]]:
    return [(key, _decoded(key, raw)) for key, raw in islice(parsed.raw_items(), HEADERS_MAX)]


def _decoded(key: str, raw: Any) -> str:
    """A header's value; as it stands where the standard library cannot decode it."""
    try:
        return str(_POLICY.header_fetch_parse(key, raw))
    except Exception:  # whatever a broken header makes the parser raise
        return str(raw)


def _part(parsed: EmailMessage, subtype: str) -> str | None:
    try:
        part = parsed.get_body((subtype,))
    except Exception:  # a broken structure
        return None
    return None if part is None else _content(part)


def _content(part: MIMEPart) -> str:
    try:
        return str(part.get_content())
    except Exception:  # an unknown charset, a broken encoding
        return _bytes(part).decode("utf-8", "replace")


def _attachments(parsed: EmailMessage) -> Iterator[FoundFile]:
    """What is no body: beside it, or in it, as an image that the HTML shows."""
    try:
        bodies = [parsed.get_body((subtype,)) for subtype in ("html", "plain")]
        parts = [part for part in _leaves(parsed) if not any(part is body for body in bodies)]
    except Exception:  # a broken structure
        return
    for number, part in enumerate(parts if parsed.is_multipart() else ()):
        content_id = str(part.get("Content-ID", "")).strip(" <>")
        name, kind = part.get_filename() or "(no name)", part.get_content_type()
        yield FoundFile(number, name, kind, _bytes(part), content_id)


def _leaves(part: MIMEPart) -> Iterator[MIMEPart]:
    """The parts that hold something; a message that is attached is one of them."""
    if part.get_content_maintype() != "multipart" or not part.is_multipart():
        yield part
        return
    for inner in part.iter_parts():
        yield from _leaves(inner)


def _bytes(part: MIMEPart) -> bytes:
    if part.is_multipart():  # a message that is attached
        with suppress(Exception):  # whatever is wrong with it
            return b"".join(inner.as_bytes(policy=policy.SMTP) for inner in part.iter_parts())
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


class _Bounded(_Policy):
    """The standard library's rules, over the beginning of each header."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        is_content = name.lower().startswith("content-")
        most = CONTENT_HEADER_CHARACTERS_MAX if is_content else HEADER_CHARACTERS_MAX
        return super().header_fetch_parse(name, value[:most])


_POLICY = _Bounded()
