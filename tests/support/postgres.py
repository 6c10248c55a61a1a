"""PostgreSQL servers for tests: real ones, each in a folder of its own, gone when their owner is."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psycopg
from psycopg import sql

from postroom.database.embedded.account import Account, account_for
from postroom.database.embedded.programs import Programs, find_programs

# No test pulls the plug, so nothing is lost without fsync; it makes a fresh database cost half.
SETTINGS = """
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 200
shared_buffers = 128MB
autovacuum_naptime = 5s
jit = off
log_min_messages = warning
"""

IN_MEMORY = Path("/dev/shm")
IN_MEMORY_BYTES_MIN = 6 * 1024**3

_PR_SET_PDEATHSIG = 1

PORTS_TRIED = 5


class PostgresServer:
    """A server under a folder; start, stop and kill it as often as a test needs."""

    def __init__(self, folder: Path, programs: Programs, account: Account) -> None:
        self.folder = folder
        self.programs = programs
        self.port = free_port()
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of the database `postgres`, as its superuser."""
        return self.url_of("postgres")

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None
        return self._process.pid

    def is_running(self) -> bool:
        """Whether the postmaster lives, ready or not."""
        return self._process is not None and self._process.poll() is None

    def url_of(self, database: str, user: str = "postgres") -> str:
        """The address of a database on this server; local users need no password."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def initialise(self, settings: str = SETTINGS) -> None:
        """Make the server's data."""
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        os.chown(data, self._account.uid, self._account.gid)
        self._run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        with (data / "postgresql.conf").open("a") as conf:
            conf.write(settings)

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [
                    self.programs["postgres"],
                    "-D",
                    str(self.folder / "data"),
                    *("-c", "listen_addresses=127.0.0.1", "-c", f"port={self.port}"),
                    *("-c", "unix_socket_directories="),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
                **self._account.popen_options(),
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def start_anywhere(self) -> None:
        """Start it for the first time; where somebody has taken its port meanwhile, at another one."""
        for _ in range(PORTS_TRIED):
            try:
                self.start()
                return
            except AssertionError as error:
                if "could not create any TCP/IP sockets" not in str(error):
                    raise
                self.port = free_port()
        raise AssertionError(f"{PORTS_TRIED} ports that were free were taken")

    def stop(self, signal_number: int = signal.SIGINT) -> None:
        """Stop it: SIGINT is a fast shutdown, SIGQUIT an immediate one, SIGKILL a crash."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal_number)
            process.wait(timeout=60)

    def make_standby(self, folder: Path) -> PostgresServer:
        """A copy in another folder, which follows this server once it is started."""
        standby = PostgresServer(folder, self.programs, self._account)
        data = folder / "data"
        data.mkdir(mode=0o700)
        os.chown(data, self._account.uid, self._account.gid)
        copying = ("-d", self.url, "-D", str(data), "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        self._run("pg_basebackup", *copying)
        return standby

    def create_database(self, *, template: str | None = None, owner: str | None = None) -> str:
        """Create a database with a name of its own and return the name."""
        name = f"t_{secrets.token_hex(6)}"
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        if owner is not None:
            statement += sql.SQL(" OWNER {}").format(sql.Identifier(owner))
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs[program], *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            **self._account.popen_options(),
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """
    A folder that an unprivileged PostgreSQL may reach, which pytest's own are not for root.

    It is short, too: a socket's path has 107 bytes. And it is in memory where there is enough: databases that
    come and go are thousands of files, and ext4 spent half of the machine's time on finding inodes for them.
    """
    folder = Path(tempfile.mkdtemp(prefix="postroom-test-", dir=IN_MEMORY if _has_memory() else "/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_server(
    programs_folder: Path | None = None, settings: str = SETTINGS, folder: Path | None = None
) -> Iterator[PostgresServer]:
    """
    A new server that runs while the block does.

    Args:
        programs_folder: Whose programs; None takes those that postroom brings.
        settings: Lines of its postgresql.conf.
        folder: Where its data are; None makes one that is gone afterwards.
    """
    with nullcontext(folder) if folder is not None else temporary_folder() as folder:
        account = account_for(folder / "data")
        if programs_folder is None:
            programs = find_programs(account, copies=[folder])
        else:
            programs = Programs(programs_folder, int(programs_folder.parent.name))
        server = PostgresServer(folder, programs, account)
        server.initialise(settings)
        server.start_anywhere()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)


def _has_memory() -> bool:
    if not IN_MEMORY.is_dir() or os.statvfs(IN_MEMORY).f_flag & os.ST_NOEXEC:
        return False
    return shutil.disk_usage(IN_MEMORY).free > IN_MEMORY_BYTES_MIN


def free_port() -> int:
    """A loopback port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> Callable[[], None]:
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)

    return ask
