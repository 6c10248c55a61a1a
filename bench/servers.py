"""What every benchmark stands on: a PostgreSQL that keeps its promises (fsync on), and the sink."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, cast
from urllib.parse import urlsplit

import asyncpg

from bench.sink import Report
from postroom.database import embedded

_SINK = Path(__file__).with_name("sink.py")


@contextmanager
def running_postgres() -> Iterator[str]:
    """
    The PostgreSQL that postroom brings, with its own settings, new, and gone with the block.

    Yields:
        An address of its owner, who may create databases; see create_database().
    """
    with tempfile.TemporaryDirectory(prefix="postroom-bench-") as folder:
        # Its account must be able to reach the data where we are root.
        Path(folder).chmod(0o711)
        with embedded.joined(Path(folder) / "data") as url:
            yield url


async def create_database(url: str, name: str) -> str:
    """Make a database anew on that server and return its address."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@contextmanager
def serving(database_url: str, **settings: str) -> Iterator[str]:
    """
    Postroom's HTTP server on a free port while the block runs, and its address.

    Args:
        settings: Of its environment.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "postroom", "serve"],
        env={**os.environ, "POSTROOM_DATABASE_URL": database_url, "POSTROOM_PORT": "0", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            if not said.startswith("ready http://"):
                raise RuntimeError(f"the server did not start: {said!r}")
            yield said.removeprefix("ready ").strip()
        finally:
            server.terminate()


async def server_version(url: str) -> str:
    """PostgreSQL's version, such as `18.6`."""
    connection = await asyncpg.connect(url)
    try:
        version: str = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return version


async def execute(url: str, *statements: str) -> None:
    """Run statements, each in its own transaction."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement, timeout=60)
    finally:
        await connection.close()


def server_cpu_s(backend_pid: int) -> float:
    """CPU time of a server with its processes, also those that have ended: /proc knows, by a backend."""
    postmaster = _stat(str(backend_pid))[1]
    ticks = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            parent, own, children = _stat(process.name)[1:]
        except OSError:
            continue  # it has ended meanwhile
        if process.name == postmaster:
            ticks += int(own) + int(children)
        elif parent == postmaster:
            ticks += int(own)
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: str) -> tuple[str, str, str, str]:
    """State, parent, ticks of its own and ticks of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (
        fields[0],
        fields[1],
        str(int(fields[11]) + int(fields[12])),
        str(int(fields[13]) + int(fields[14])),
    )


class Sink:
    """A running sink (bench/sink.py), and what it says of what has arrived."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port = port
        self._process = process
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._answers = self._socket.makefile("rb")
        self._answers.readline()

    @classmethod
    @contextmanager
    def running(cls, *extensions: str) -> Iterator[Self]:
        """
        A new sink that runs while the block does; it ends with this process, however that ends.

        Args:
            extensions: What it offers, `-` for nothing; by default what postfix does.
        """
        process = subprocess.Popen(
            [sys.executable, str(_SINK), *extensions],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            try:
                yield cls(process, int(process.stdout.readline()))
            finally:
                process.stdin.close()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()

    @property
    def url(self) -> str:
        """Its address, as POSTROOM_TRANSPORT takes it."""
        return f"smtp://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Forget what has arrived."""
        self._ask("XRESET")

    def report(self) -> Report:
        """Sum up what has arrived."""
        return cast(Report, json.loads(self._ask("XREPORT")))

    def arrivals_ns(self) -> dict[str, int]:
        """When the mail with each subject was answered 250, in ns since 1970."""
        return cast("dict[str, int]", json.loads(self._ask("XARRIVALS")))

    def _ask(self, verb: str) -> bytes:
        self._socket.sendall(f"{verb}\r\n".encode())
        answer = self._answers.readline()
        assert answer.startswith(b"250 "), answer
        return answer[4:]
