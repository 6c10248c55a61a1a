"""
Header fields as bytes: RFC 5322 folding, RFC 2047 encoded words, and what a caller may add.

No value gets here with a line break in it, and none of these functions makes one that is not
followed by a space: a header cannot be injected.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import quote

from postroom.email.address import Mailbox, check_unicode, kind_of, quote_name
from postroom.errors import InvalidEmail

LINE_BYTES_MAX = 998
"""RFC 5322, 2.1.1, without the CRLF."""

SUBJECT_CHARACTERS_MAX = 2_000
"""Beyond 100 KB Postfix cuts a header off without a word; nobody reads a tenth of this."""

HEADERS_MAX = 100
VALUE_CHARACTERS_MAX = 10_000

_LINE_BYTES = 76
_NAME = re.compile(r"[!-9;-~]{1,76}")
# A tab is harmless and comes with text that was pasted; it leaves inside an encoded word.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Ours, or the mail servers' own. A Bcc would show what it should hide, and a Cc would promise a
# copy that nobody gets: an e-mail has one recipient here.
_OWNED = frozenset(
    {"from", "sender", "reply-to", "to", "cc", "bcc", "subject", "date", "message-id", "mime-version"}
    | {"return-path", "received", "dkim-signature", "delivered-to"}
)
_OWNED_PREFIXES = ("content-", "resent-", "arc-")


def check_headers(headers: object) -> dict[str, str]:
    """
    Check the further headers of an e-mail.

    Returns:
        Name to value, sorted by name, so that every attempt sends them in one order.

    Raises:
        InvalidEmail: A name is none or is not the caller's to set, or a value is no text.
    """
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise InvalidEmail("headers", f"must be an object of names and values, not {kind_of(headers)}")
    if len(headers) > HEADERS_MAX:
        raise InvalidEmail("headers", f"has {len(headers):,} fields; at most {HEADERS_MAX} are allowed")
    return {name: _check_field(name, value) for name, value in sorted(headers.items(), key=_by_name)}


def check_line(field: str, value: str) -> str:
    """
    Refuse a text that cannot be one line of a header, and give it back as it is.

    Raises:
        InvalidEmail: It holds a line break, a NUL, another control character or half a character.
    """
    if found := _CONTROL.search(value):
        what = {"\r": "a line break", "\n": "a line break", "\0": "a NUL"}
        text = what.get(found[0], f"the control character U+{ord(found[0]):04X}")
        raise InvalidEmail(field, f"holds {text} at position {found.start() + 1}; take it out")
    return check_unicode(field, value)


def check_subject(subject: str) -> str:
    """
    Refuse a subject that is no line, or no subject any more, and give it back as it is.

    Raises:
        InvalidEmail: It is too long, or holds what check_line() refuses.
    """
    if len(subject) > SUBJECT_CHARACTERS_MAX:
        size = f"is {len(subject):,} characters long"
        raise InvalidEmail("subject", f"{size}; at most {SUBJECT_CHARACTERS_MAX:,} are allowed")
    return check_line("subject", subject)


def text_header(name: str, value: str) -> bytes:
    """A header of free text, such as Subject: as it is where it can be, in encoded words else."""
    line = f"{name}: {value}"
    # A trailing or leading space would be lost, and `=?` would be taken for an encoded word.
    plain = value.isascii() and "=?" not in value and "\t" not in value and value == value.strip()
    if plain and len(line) <= _LINE_BYTES:
        return line.encode() + b"\r\n"
    if plain and "  " not in value and (folded := _fold(line)):
        return folded.encode() + b"\r\n"
    return _encoded_words(name, value)


def further_header(name: str, value: str) -> bytes:
    """A header of the caller's: ASCII leaves as it is written, whatever its grammar."""
    line = f"{name}: {value}"
    if not value.isascii():
        return _encoded_words(name, value)
    if len(line) <= _LINE_BYTES:
        return line.encode() + b"\r\n"
    # A value that cannot be folded was refused by check_headers.
    return (_fold(line) or line).encode() + b"\r\n"


def address_header(name: str, mailbox: Mailbox) -> bytes:
    """A header of one address: the name as a phrase, the domain in ASCII."""
    if not mailbox.name:
        return f"{name}: {mailbox.wire_address}\r\n".encode()
    if mailbox.name.isascii() and "=?" not in mailbox.name:
        line = f"{name}: {quote_name(mailbox.name)} <{mailbox.wire_address}>"
        if len(line) <= LINE_BYTES_MAX and "  " not in mailbox.name:
            return line.encode() + b"\r\n"
    return _encoded_words(name, mailbox.name)[:-2] + f"\r\n <{mailbox.wire_address}>\r\n".encode()


def filename_parameter(filename: str) -> bytes:
    """
    What follows `Content-Disposition: attachment`: in quotes where ASCII will do, else in UTF-8, in sections
    where that is long (RFC 2231, 3 and 4).
    """
    # What many programs take away, or take for an encoded word, is encoded.
    if filename.isascii() and "=?" not in filename and filename == filename.strip():
        escaped = filename.replace("\\", "\\\\").replace('"', '\\"')
        space = " " if len(escaped) < _LINE_BYTES - 40 else "\r\n "
        return f';{space}filename="{escaped}"'.encode()
    encoded = quote(filename, safe="")
    if len(encoded) <= _LINE_BYTES - 20:
        return f";\r\n filename*=utf-8''{encoded}".encode()
    sections = re.findall(r"(?:%[0-9A-F]{2}|[^%]){1,18}", encoded)  # of at most 54 characters
    sections[0] = f"utf-8''{sections[0]}"
    lines = [f" filename*{number}*={section}" for number, section in enumerate(sections)]
    return (";\r\n" + ";\r\n".join(lines)).encode()


def _by_name(item: tuple[object, object]) -> str:
    return str(item[0])


def _check_field(name: object, value: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidEmail("headers", f"{str(name)[:80]!r} is no header name: letters, digits and dashes")
    lower = name.lower()
    if lower == "reply-to":
        raise InvalidEmail("headers", "Reply-To is set by reply_to, not here")
    if lower in _OWNED or lower.startswith(_OWNED_PREFIXES):
        raise InvalidEmail("headers", f"{name} is set by postroom or by mail servers; take it out")
    field = f"headers: {name}"
    if not isinstance(value, str):
        raise InvalidEmail(field, f"must be a text, not {kind_of(value)}")
    if len(value) > VALUE_CHARACTERS_MAX:
        raise InvalidEmail(field, f"is {len(value):,} characters long; at most {VALUE_CHARACTERS_MAX:,} are")
    value = check_line(field, value).replace("\t", " ").strip(" ")
    if value.isascii() and len(name) + 2 + len(value) > LINE_BYTES_MAX and _fold(f"{name}: {value}") is None:
        raise InvalidEmail(field, f"has a word that is longer than a line of {LINE_BYTES_MAX} bytes")
    return value


def _fold(line: str) -> str | None:
    """Break before words to get lines of 76; None where a word is longer than a line may be."""
    name, *words = line.split(" ")
    lines = [name]
    for word in words:
        # Not right behind the name: a first line without a value confuses some programs.
        if word and lines[-1] != name and len(lines[-1]) + 1 + len(word) > _LINE_BYTES:
            lines.append(f" {word}")
        else:
            lines[-1] += f" {word}"
    if max(map(len, lines)) > LINE_BYTES_MAX:
        return None
    return "\r\n".join(lines)


def _encoded_words(name: str, value: str) -> bytes:
    """The value as UTF-8 in base64 words of at most 75 bytes, none of which splits a character."""
    data = value.encode()
    lines: list[bytes] = []
    room = _LINE_BYTES - len(name) - 2
    prefix = f"{name}: ".encode()
    if room < 24:
        lines.append(prefix.rstrip())
        prefix, room = b" ", _LINE_BYTES - 1
    start = 0
    while start < len(data):
        end = min(start + (min(room, 75) - 12) // 4 * 3, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        lines.append(prefix + b"=?utf-8?B?" + b64encode(data[start:end]) + b"?=")
        start, prefix, room = end, b" ", _LINE_BYTES - 1
    return b"\r\n".join(lines) + b"\r\n"
