"""One embedded server as its users see it: join it, and leave it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

from postroom.database.embedded import watch
from postroom.database.embedded.home import ELSEWHERE, Home, find_home
from postroom.database.embedded.initialise import DATABASE, USER, initialise
from postroom.database.embedded.locks import LockFile, give_to_owner_of
from postroom.database.embedded.programs import Programs, find_programs
from postroom.errors import ConfigError, DatabaseUnavailable

JOIN_LIMIT_S = 90.0
READY_LIMIT_S = 600.0
"""A server that recovers from a crash replays its log before it answers."""

LEAVE_LIMIT_S = 90.0
_LOG_BYTES_MAX = 10_000_000
_STARTS_MAX = 3
_POLL_S = 0.01


class Cluster:
    """
    A user's share of an embedded server; the server runs as long as anybody has one.

    Use `join` to make one.
    """

    def __init__(self, home: Home, programs: Programs, share: LockFile) -> None:
        self._home = home
        self._programs = programs
        self._share = share

    @classmethod
    def join(cls, data_dir: Path, *, elsewhere: Sequence[Path] = ELSEWHERE) -> Self:
        """
        Start the server of a data folder, or join those who use it already.

        Raises:
            ConfigError: A folder, the account or the programs cannot be used.
            DatabaseUnavailable: The server does not start.
        """
        try:
            home = find_home(data_dir, elsewhere=elsewhere)
            copies = [*elsewhere, home.folder]
            programs = find_programs(home.account, copies=copies, major=_major_of(home.data))
            # While the last one stops the server, nobody gets a share.
            share = LockFile(home.folder / "users.lock").shared(JOIN_LIMIT_S)
            cluster = cls(home, programs, share)
            try:
                cluster.start()
            except BaseException:
                share.close()
                raise
        except OSError as error:
            raise ConfigError(
                f"the embedded database in {data_dir} cannot be used: {error.strerror}: {error.filename}; "
                "name another folder in POSTROOM_DATA_DIR, or a database in POSTROOM_DATABASE_URL"
            ) from error
        return cluster

    @property
    def url(self) -> str:
        """The address of the database: by socket where that can be seen, else by loopback."""
        password = quote(self._home.read("password") or "", safe="")
        port = self._home.read("port")
        folder = self._home.read("socket")
        if folder and Path(folder, f".s.PGSQL.{port}").exists():
            return f"postgresql://{USER}:{password}@/{DATABASE}?host={quote(folder, safe='')}&port={port}"
        return f"postgresql://{USER}:{password}@127.0.0.1:{port}/{DATABASE}"

    def is_watched(self) -> bool:
        """Whether a watch lives."""
        with LockFile(self._home.folder / "watch.lock") as lock:
            return not lock.try_shared()

    def start(self) -> None:
        """See to it that the server answers: make its data, start its watch, wait for it."""
        with LockFile(self._home.folder / "start.lock").exclusive(JOIN_LIMIT_S):
            initialise(self._home, self._programs)
            for _ in range(_STARTS_MAX):
                if not self.is_watched():
                    self._start_watch()
                if self._becomes_ready():
                    return
        raise DatabaseUnavailable(f"the embedded database does not start: {self._last_words()}")

    def leave(self) -> None:
        """Give up the share; the last one stops the server and waits until it has stopped."""
        try:
            if self._share.try_exclusive():
                # We are the last, and nobody can join before we let go.
                self._stop_watch()
            elif not self._share.try_shared():
                # Somebody else is the last: the watch, or another one who leaves.
                self._wait_until_unwatched()
        finally:
            self._share.close()

    def _start_watch(self) -> None:
        home = self._home
        port, socket_dir = self._free_port(), self._socket_dir()
        home.write("port", f"{port}\n")
        home.write("socket", f"{socket_dir}\n")
        account = home.account
        plan: watch.Plan = {
            "command": self._command(port, socket_dir),
            "uid": None if account.is_ours else account.uid,
            "gid": None if account.is_ours else account.gid,
            "data": str(home.data),
            "watch_lock": str(home.folder / "watch.lock"),
            "users_lock": str(home.folder / "users.lock"),
            "socket_dir": socket_dir,
        }
        with self._opened_log() as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", watch.__file__, json.dumps(plan)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                # No terminal's Ctrl-C reaches it, and no secret of ours.
                start_new_session=True,
                env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
            )
        with process:
            assert process.stdout is not None
            process.stdout.readline()  # it is locked, or has failed

    def _command(self, port: int, socket_dir: str) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": socket_dir,
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
            "log_destination": "stderr",
            "cluster_name": "postroom",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._programs["postgres"], "-D", str(self._home.data), *options]

    def _becomes_ready(self) -> bool:
        ends = time.monotonic() + READY_LIMIT_S
        while not self._is_ready():
            if not self.is_watched() or time.monotonic() > ends:
                return False
            time.sleep(_POLL_S)
        return True

    def _is_ready(self) -> bool:
        try:
            lines = (self._home.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready" and _accepts(int(lines[3]))

    def _stop_watch(self) -> None:
        with LockFile(self._home.folder / "watch.lock") as lock:
            if lock.try_shared():
                return
            pid = lock.text()
        if pid.isdigit():
            try:
                os.kill(int(pid), watch.STOP_SIGNAL)
            except ProcessLookupError:
                return
        self._wait_until_unwatched()

    def _wait_until_unwatched(self) -> None:
        ends = time.monotonic() + LEAVE_LIMIT_S
        while self.is_watched() and time.monotonic() < ends:
            time.sleep(_POLL_S)

    def _free_port(self) -> int:
        """The port of the last time, so that addresses people have noted go on to hold; else a free one."""
        kept = self._home.read("port")
        for port in (int(kept) if kept else 0, 0):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                found: int = probe.getsockname()[1]
                return found
        raise ConfigError("no loopback port is free")

    def _socket_dir(self) -> str:
        """
        A folder for the socket with a short path, since a socket's path has 107 bytes.

        In /tmp anybody may have made a folder first, so it is one of ours or a new one.
        """
        account = self._home.account
        kept = self._home.read("socket")
        if kept:
            try:
                Path(kept).mkdir(mode=0o700, exist_ok=True)
                found = Path(kept).lstat()
                if found.st_uid in (account.uid, os.geteuid()) and found.st_mode & 0o170077 == 0o040000:
                    os.chown(kept, account.uid, account.gid, follow_symlinks=False)
                    return kept
            except OSError:
                pass
        try:
            folder = tempfile.mkdtemp(prefix="postroom-", dir="/tmp")
            os.chown(folder, account.uid, account.gid)
        except OSError:
            return ""  # loopback alone, then
        return folder

    def _opened_log(self) -> BinaryIO:
        path = self._home.folder / "postgres.log"
        if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
            path.replace(path.with_name("postgres.log.1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        give_to_owner_of(path.parent, descriptor)
        return os.fdopen(descriptor, "ab")

    def _last_words(self) -> str:
        try:
            lines = (self._home.folder / "postgres.log").read_text(errors="replace").splitlines()
        except OSError:
            return "it has written no log"
        fatal = [line for line in lines[-50:] if "FATAL" in line or "PANIC" in line]
        return (fatal or lines or ["it has written nothing"])[-1]


def _major_of(data: Path) -> int | None:
    try:
        return int((data / "PG_VERSION").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
