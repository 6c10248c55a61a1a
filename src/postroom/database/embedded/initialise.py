"""Making the data of an embedded server, once and whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from postroom.database.embedded.home import Home
from postroom.database.embedded.programs import Programs
from postroom.errors import ConfigError

USER = "postroom"
DATABASE = "postroom"

# A person may change these; what the server must have is on its command line.
CONFIGURATION = """
# ---- postroom ----
max_connections = 100
# Memory is taken as it is used. With 128 MB the claims of 10,000 plain INSERTs beside ten million old mails
# read 0.6 pages a mail: each of their random ids has a page of the primary key of its own.
shared_buffers = 256MB
jit = off
fsync = on
synchronous_commit = on
# Without "$user": that is schema postroom here, where a person's own tables have no business.
search_path = 'public'
log_line_prefix = '%m [%p] '
log_checkpoints = off
# Errors of statements go to who sent them: here they would repeat what the statement held.
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
"""

_INITDB_LIMIT_S = 120
_DRAFT = "data-in-the-making."


def initialise(home: Home, programs: Programs) -> None:
    """
    Make the server's data with its owner, its password and its database, where there are none yet.

    It is made beside its place and moved there when it is complete, so a kill leaves nothing half done.

    Raises:
        ConfigError: initdb does not work here; the text has its last words.
    """
    _remove_drafts(home.folder)
    if home.data.exists():
        return
    if home.read("password") is None:
        home.write("password", secrets.token_urlsafe(24))
    draft = home.folder / f"{_DRAFT}{secrets.token_hex(4)}"
    draft.mkdir(mode=0o700)
    account = home.account
    os.chown(draft, account.uid, account.gid)
    try:
        with _password_file(home) as password_file:
            _initdb(home, programs, draft, password_file)
        with (draft / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION)
        _create_database(home, programs, draft)
        draft.rename(home.data)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _sync(home.folder)


def _remove_drafts(folder: Path) -> None:
    for draft in folder.glob(f"{_DRAFT}*"):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)  # an initdb whose parent was killed may still write
        else:
            draft.unlink(missing_ok=True)


def _initdb(home: Home, programs: Programs, draft: Path, password_file: Path) -> None:
    if programs.major >= 17:
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    else:
        locale = ["--locale=C.UTF-8"]
    _run(
        home,
        [
            *(programs["initdb"], "-D", str(draft), "-U", USER),
            *("-A", "scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", *locale),
        ],
    )


def _create_database(home: Home, programs: Programs, draft: Path) -> None:
    # Before the server ever listens, so no second step can be cut off.
    said = _run(
        home,
        [programs["postgres"], "--single", "-D", str(draft), "postgres"],
        input=f"CREATE DATABASE {DATABASE};\n",
    )
    if "ERROR" in said:
        raise ConfigError(f"the embedded database cannot be made: {said.strip().splitlines()[-1]}")


@contextlib.contextmanager
def _password_file(home: Home) -> Iterator[Path]:
    """The password where initdb's account can read it, for as long as that takes."""
    path = home.folder / f"{_DRAFT}{secrets.token_hex(4)}.password"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchown(descriptor, home.account.uid, home.account.gid)
            file.write(home.read("password") or "")
        yield path
    finally:
        path.unlink()


def _run(home: Home, command: list[str], **options: Any) -> str:
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=_INITDB_LIMIT_S,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        **{"cwd": "/", **home.account.popen_options()},
        **options,
    )
    if done.returncode != 0:
        said = [line for line in done.stdout.splitlines() if line.strip()]
        problem = next((line for line in said if "error" in line.lower()), (said or ["no word"])[-1])
        raise ConfigError(f"the embedded database cannot be made: {problem}")
    said_all: str = done.stdout
    return said_all


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
