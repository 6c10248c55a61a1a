"""
What a maildir holds, for a person who looks at the mails that went out: newest first, a page at a time.

A list parses the heads of its page alone: which mail is newer stands in the names of the files. A file that
is broken is one line of the list, and hinders no other. Everything here reads a disk: call it in a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from uuid import UUID

from postroom.email.parts import Parts, header, parse, read_parts

HEAD_BYTES_MAX = 64 * 1024
MAIL_BYTES_MAX = 25 * 1024 * 1024
SEARCHED_MAX = 1_000
"""Of so many mails, the newest, the heads are looked through for a text."""

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.:,=_-]{0,254}")


@dataclass(frozen=True, slots=True)
class Head:
    """
    A line of the list.

    Attributes:
        name: The file's.
        at: Unix time at which the mail was queued, by the name.
        broken: Why it could not be read; None where it could.
    """

    name: str
    at: int
    sender: str
    recipient: str
    subject: str
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Mail:
    """
    One mail.

    Attributes:
        row_id: The e-mail's in the queue, by its file's name; None of a file that is not ours.
        content: The file.
    """

    head: Head
    row_id: UUID | None
    parts: Parts
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Page:
    """Some mails, how many there are, and where the next page begins."""

    heads: list[Head] = field(default_factory=list)
    count: int = 0
    next: str | None = None


def list_mails(folder: Path, *, text: str = "", after: str | None = None, limit: int = 50) -> Page:
    """
    The mails of a folder, newest first; of one that is not there, none.

    Args:
        text: Found in any case in a sender, recipient or subject of the newest SEARCHED_MAX.
        after: The last name of the page before.
    """
    paths = sorted(_paths(folder), key=_key, reverse=True)
    wanted = [path for path in paths if after is None or _key(path) < _key(Path(after))]
    if not text:
        heads = [_head(path) for path in wanted[:limit]]
        return Page(heads, len(paths), heads[-1].name if len(wanted) > limit else None)
    found = (_head(path) for path in wanted[:SEARCHED_MAX])
    hits = [
        head for head in found if text.lower() in f"{head.sender}\n{head.recipient}\n{head.subject}".lower()
    ]
    return Page(hits[:limit], len(paths), hits[limit - 1].name if len(hits) > limit else None)


def read_mail(folder: Path, name: str) -> Mail | None:
    """One mail, its parts as far as they can be decoded; None where there is none of this name."""
    path = _find(folder, name)
    if path is None:
        return None
    with suppress(OSError):
        content = _read(path, MAIL_BYTES_MAX)
        return Mail(_head_of(path.name, parse(content)), _row_id(path.name), read_parts(content), content)
    return None


def delete_mails(folder: Path, name: str | None) -> int:
    """Remove one mail, or all (None), from the folder; returns how many."""
    paths = list(_paths(folder)) if name is None else [path for path in [_find(folder, name)] if path]
    deleted = 0
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()
            deleted += 1
    return deleted


def _paths(folder: Path) -> Iterator[Path]:
    for part in ("new", "cur"):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / part) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def _find(folder: Path, name: str) -> Path | None:
    """Where it is; a mail program may have moved it to cur/ and added `:2,S`."""
    if not _NAME.fullmatch(name):
        return None
    return next(
        (path for path in _paths(folder) if path.name.partition(":")[0] == name.partition(":")[0]), None
    )


def _key(path: Path) -> tuple[int, str]:
    name = path.name.partition(":")[0]
    return _at(name), name


def _at(name: str) -> int:
    begin = name.partition(".")[0]
    return int(begin) if begin.isdigit() and len(begin) <= 11 else 0


def _row_id(name: str) -> UUID | None:
    try:
        return UUID(name.split(".")[1])
    except (IndexError, ValueError):
        return None


def _head(path: Path) -> Head:
    try:
        parsed = parse(_head_bytes(path))
    except OSError as error:
        return Head(path.name, _at(path.name), "", "", "", error.strerror or "it cannot be read")
    return _head_of(path.name, parsed)


def _head_bytes(path: Path) -> bytes:
    """Up to the empty line: a body is not parsed for a list."""
    return re.split(rb"\r?\n\r?\n", _read(path, HEAD_BYTES_MAX), maxsplit=1)[0] + b"\n\n"


def _head_of(name: str, parsed: EmailMessage) -> Head:
    sender, recipient, subject = (header(parsed, key) for key in ("from", "to", "subject"))
    broken = None if {"from", "to"} & {key.lower() for key in parsed} else "it is no e-mail"
    return Head(name, _at(name), sender, recipient, subject, broken)


def _read(path: Path, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(size)
