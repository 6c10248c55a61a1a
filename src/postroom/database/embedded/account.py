"""
The account that PostgreSQL runs under: our own, or, since it refuses root, an unprivileged one.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postroom.errors import ConfigError

PREFERRED = ("postgres", "nobody", "daemon")


@dataclass(frozen=True, slots=True)
class Account:
    """A user and group id that programs can be run under."""

    uid: int
    gid: int

    @property
    def is_ours(self) -> bool:
        """Whether this is the account that we run under."""
        return self.uid == os.geteuid()

    def popen_options(self) -> dict[str, Any]:
        """What subprocess needs so that a program runs under this account, in a folder it may enter."""
        if self.is_ours:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": (), "cwd": "/"}

    def can_enter(self, folder: Path) -> bool:
        """Whether this account can reach the folder through all of its parents."""
        if self.is_ours:
            return os.access(folder, os.X_OK)
        return self.runs(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)])

    def runs(self, command: list[str]) -> bool:
        """Whether a program that does nothing but answer ends well under this account."""
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=30,
                **self.popen_options(),
            )
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0


def account_for(data: Path) -> Account:
    """
    The account for a folder of PostgreSQL's data: its owner where it is there, else one that can be used.

    Raises:
        ConfigError: The folder belongs to somebody else, or we are root and can become nobody else.
    """
    own = Account(os.geteuid(), os.getegid())
    if data.exists():
        stat = data.stat()
        owner = Account(stat.st_uid, stat.st_gid)
        if own.uid != 0 and owner.uid != own.uid:
            raise ConfigError(
                f"{data} belongs to user {owner.uid}, not to {own.uid}: run postroom as that user, "
                "or name another folder in POSTROOM_DATA_DIR"
            )
        if owner.uid != 0:
            return owner
    if own.uid != 0:
        return own
    return unprivileged_account()


def unprivileged_account() -> Account:
    """
    The first account that root may become: postgres, nobody, daemon, then any other that is not root.

    Raises:
        ConfigError: There is none, as in a container that maps one user only.
    """
    for account in _candidates():
        if account.runs(["/bin/sh", "-c", ":"]):
            return account
    raise ConfigError(
        "PostgreSQL refuses to run as root, and root may become no other user here: "
        "run postroom as an ordinary user, or name a database in POSTROOM_DATABASE_URL"
    )


def _candidates() -> Iterator[Account]:
    for name in PREFERRED:
        try:
            yield _account(pwd.getpwnam(name))
        except KeyError:
            continue
    yield from _others(pwd.getpwall())


def _others(users: Iterable[pwd.struct_passwd]) -> Iterator[Account]:
    # System users first: files that belong to a person's account would count as that person's.
    for user in sorted(users, key=lambda user: user.pw_uid):
        if user.pw_uid != 0 and user.pw_name not in PREFERRED:
            yield _account(user)


def _account(user: pwd.struct_passwd) -> Account:
    return Account(user.pw_uid, user.pw_gid)
