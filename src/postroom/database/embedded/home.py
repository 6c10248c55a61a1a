"""
Where the embedded server lives: a folder in the data folder, or, where the account that it runs
under cannot get there, a folder of postroom's own elsewhere, to which a file in the data folder leads.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from postroom.database.embedded.account import Account, account_for, unprivileged_account
from postroom.database.embedded.locks import LockFile, give_to_owner_of
from postroom.errors import ConfigError

ELSEWHERE = (Path("/var/lib/postroom"), Path("/srv/postroom"))
"""Folders of postroom's own for root's servers, and for copies of the programs."""

LOCK_LIMIT_S = 60.0

_NAME = "postgres"
_POINTER = "postgres-is-at"


@dataclass(frozen=True, slots=True)
class Home:
    """
    The server's folder.

    Attributes:
        folder: Has the folder `data`, the files that belong to it, and the locks.
        account: Who runs the server and owns `data`.
    """

    folder: Path
    account: Account

    @property
    def data(self) -> Path:
        """PostgreSQL's own folder."""
        return self.folder / "data"

    def write(self, name: str, text: str) -> None:
        """Write a small file that only its owner may read, whole or not at all."""
        _write(self.folder / name, text)

    def read(self, name: str) -> str | None:
        """Read such a file; None where it is not there."""
        try:
            return (self.folder / name).read_text().strip()
        except FileNotFoundError:
            return None


def find_home(data_dir: Path, *, elsewhere: Sequence[Path] = ELSEWHERE) -> Home:
    """
    The home of a data folder's server, made where there is none yet.

    Raises:
        ConfigError: There is no folder that the account can reach, or its data are gone.
    """
    make_data_dir(data_dir)
    data_dir = data_dir.resolve()
    with LockFile(data_dir / f"{_NAME}.lock").exclusive(LOCK_LIMIT_S):
        folder = _known(data_dir)
        if folder is not None and (folder / "data").exists():
            return Home(folder, account_for(folder / "data"))
        account = _new_account(data_dir)
        if folder is None:
            folder = _inside(data_dir, account) or _outside(data_dir, account, elsewhere)
        return Home(folder, account)


def make_data_dir(data_dir: Path) -> None:
    """Make the data folder where it is missing; for root, others may pass through it but not look."""
    # An unprivileged server must get through to its own folder; everything in it is 0600 or 0700.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    if not data_dir.is_dir():
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            data_dir.mkdir(mode=mode)
            data_dir.chmod(mode)  # whatever the umask says


def _known(data_dir: Path) -> Path | None:
    pointer = data_dir / _POINTER
    if pointer.exists():
        folder = Path(pointer.read_text().strip())
        if not folder.is_dir():
            raise ConfigError(
                f"the database of {data_dir} was at {folder}, which is gone: bring it back, "
                f"or remove {pointer} to begin with an empty one"
            )
        return folder
    folder = data_dir / _NAME
    return folder if (folder / "data").exists() else None


def _new_account(data_dir: Path) -> Account:
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    owner = data_dir.stat()
    if owner.st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    return unprivileged_account()


def _inside(data_dir: Path, account: Account) -> Path | None:
    folder = data_dir / _NAME
    _make_folder(folder, account, data_dir)
    if account.can_enter(folder):
        return folder
    folder.rmdir()
    return None


def _outside(data_dir: Path, account: Account, elsewhere: Sequence[Path]) -> Path:
    for base in elsewhere:
        try:
            base.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError:
            continue
        if not account.can_enter(base):
            continue
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", str(data_dir)).strip("-.")[-40:]
        folder = base / f"{slug}-{secrets.token_hex(4)}"
        _make_folder(folder, account, base)
        _write(folder / "belongs-to", f"{data_dir}\n")
        _write(data_dir / _POINTER, f"{folder}\n")
        return folder
    raise ConfigError(
        f"PostgreSQL cannot run as root, and user {account.uid} can reach neither {data_dir} nor "
        f"{' nor '.join(map(str, elsewhere))}: name a folder in POSTROOM_DATA_DIR that others may "
        "pass through, or a database in POSTROOM_DATABASE_URL"
    )


def _make_folder(folder: Path, account: Account, parent: Path) -> None:
    ours = account.is_ours or parent.stat().st_uid == account.uid
    mode = 0o700 if ours else 0o711
    folder.mkdir(mode=mode, exist_ok=True)
    folder.chmod(mode)
    if ours and not account.is_ours:
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        give_to_owner_of(path.parent, descriptor)
        os.fsync(descriptor)
    draft.replace(path)
