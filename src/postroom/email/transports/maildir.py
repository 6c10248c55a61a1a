"""
The transport that files e-mail in a maildir, which any mail program can open.

The name of a file comes from the row, so an attempt that is repeated, because nobody knew how the
first one ended, replaces the file instead of adding a second one, also where somebody has read
it in between and it was moved to cur/.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from time import time
from typing import ParamSpec, TypeVar

from postroom.email.message import OutgoingEmail
from postroom.email.mime import RenderedEmail, rendered
from postroom.email.transports.base import Start
from postroom.errors import TransportDown
from postroom.failpoints import reach

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
"""An fsync waits for the disk: 1 thread files 330 e-mails a second on an SSD, 4 file 1,100, 8 no more."""

STALE_S = 36 * 3600
"""The maildir specification: what is older in tmp/ was left by a crash."""


class MaildirTransport:
    """
    Files in a folder.

    Args:
        folder: Made with its tmp, new and cur where it is missing, for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"maildir:{folder}"
        self._folder = folder
        self._threads: ThreadPoolExecutor | None = None
        self._made = False

    async def send(self, email: OutgoingEmail, start: Start) -> str:
        """
        File one e-mail; see postroom.email.transports.base.Transport.

        Every OSError (full disk, no permission, read-only) speaks of the folder, not of the e-mail.
        The file is whole or not there, and what is answered is on the disk.
        """
        mail = await rendered(email)
        if not self._made:
            await self._on_disk(_make_folders, self._folder)
            self._made = True
        await start()
        # A first attempt has nothing to look for; listing cur/ takes 50 ms where it holds 100,000.
        name, repeated = _file_name(email), email.attempts > 0
        path = await self._on_disk(_file_email, self._folder, name, mail, repeated)
        return f"filed as {path}"

    async def close(self) -> None:
        """Wait for nothing: a thread that hangs in a dead network disk cannot be stopped."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None

    async def _on_disk(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="maildir")
        call = partial(function, *arguments, **named)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except OSError as error:
            self._made = False  # it may have been removed: made anew at the next attempt
            raise TransportDown(f"{self.name}: {error.strerror or error}") from None


def _file_name(email: OutgoingEmail) -> str:
    """`time.id.host`, as the maildir specification has it, each part the same at every attempt."""
    moment = int(email.created_at.timestamp()) if email.created_at is not None else 0
    return f"{max(moment, 0)}.{email.id.hex}.postroom"


def _make_folders(folder: Path) -> None:
    for name in ("tmp", "new", "cur"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    oldest = time() - STALE_S
    for left in (folder / "tmp").iterdir():
        with suppress(OSError):
            if left.lstat().st_mtime < oldest:
                left.unlink()


def _file_email(folder: Path, name: str, mail: RenderedEmail, repeated: bool) -> str:
    if repeated and (read := _find_read(folder / "cur", name)) is not None:
        return f"cur/{read}"
    temporary = folder / "tmp" / f"{name}.{token_hex(6)}"
    target = folder / "new" / name
    try:
        reach("maildir.write.before")
        _write_file(temporary, _content(mail))
        reach("maildir.write.after")
        temporary.replace(target)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    reach("maildir.move.after")
    _sync(target.parent)
    return f"new/{name}"


def _find_read(cur: Path, name: str) -> str | None:
    """What a mail program renamed to, say, `name:2,S` when somebody read it."""
    with os.scandir(cur) as entries:
        return next((entry.name for entry in entries if entry.name.partition(":")[0] == name), None)


def _content(mail: RenderedEmail) -> bytes:
    """Lines end in LF on a disk; the two fields are what a delivering server adds (RFC 5321, 4.4)."""
    envelope = f"Return-Path: <{mail.sender}>\nDelivered-To: {mail.recipient}\n".encode()
    return envelope + mail.content.replace(b"\r\n", b"\n")


def _write_file(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Make the new name durable, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
