"""Locks on files, which the kernel takes back from a process however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from postroom.errors import DatabaseUnavailable

_POLL_S = 0.01


class LockFile:
    """A file to lock, shared or exclusively; open until it is closed, which gives up the lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        give_to_owner_of(path.parent, self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def try_shared(self) -> bool:
        """Take it together with others; False where somebody has it exclusively."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Take it alone. False where others have it; what was held of it is lost then."""
        return self._try(fcntl.LOCK_EX)

    def shared(self, limit_s: float) -> Self:
        """Wait until it can be taken together with others."""
        return self._wait(fcntl.LOCK_SH, limit_s)

    def exclusive(self, limit_s: float) -> Self:
        """Wait until it can be taken alone."""
        return self._wait(fcntl.LOCK_EX, limit_s)

    def text(self) -> str:
        """What its holder has written into it."""
        return os.pread(self._descriptor, 100, 0).decode()

    def close(self) -> None:
        """Give up the lock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _try(self, how: int) -> bool:
        try:
            fcntl.flock(self._descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait(self, how: int, limit_s: float) -> Self:
        ends = time.monotonic() + limit_s
        while not self._try(how):
            if time.monotonic() > ends:
                self.close()
                raise DatabaseUnavailable(
                    f"{self._path} has been locked for {limit_s:g} s: another process hangs"
                )
            time.sleep(_POLL_S)
        return self


def give_to_owner_of(folder: Path, descriptor: int) -> None:
    """Let a file that root made belong to the folder's owner, who may be the next to open it."""
    owner = folder.stat()
    if os.geteuid() == 0 and os.fstat(descriptor).st_uid != owner.st_uid:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
