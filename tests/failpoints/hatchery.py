"""
Programs of postroom in processes of their own that cost no start-up.

A process that has imported everything forks for each program: a real process to kill and to stop, in 10 ms
instead of the 500 that a start from nothing takes. The child is told by the environment, as any other is.

Run as a program it is that process: orders come in on stdin, one JSON line each, and go out on stdout as what
became of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1


@dataclass(eq=False)
class Program:
    """
    One program.

    Attributes:
        code: How it ended, as subprocess has it: negative by a signal. None while it runs.
    """

    number: int
    log_file: Path
    answer_file: Path
    pid: int = 0
    code: int | None = None
    _started: threading.Event = field(default_factory=threading.Event)

    @property
    def log(self) -> str:
        """What it has said on stderr."""
        return self.log_file.read_text(errors="replace")

    @property
    def answer(self) -> str:
        """What it has said on stdout."""
        return self.answer_file.read_text(errors="replace")

    @property
    def is_stopped(self) -> bool:
        """Whether all of it stands still, as under SIGSTOP."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is still there."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, which needs no SIGCONT before."""
        self.signal(signal.SIGKILL)


class Hatchery:
    """Starts programs, and knows how they have ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._programs: dict[int, Program] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, arguments: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> Program:
        """Start `postroom` with these arguments."""
        with self._lock:
            number = len(self._programs)
            log_file, answer_file = folder / f"{number}.log", folder / f"{number}.out"
            log_file.touch()
            answer_file.touch()
            program = Program(number, log_file, answer_file)
            self._programs[number] = program
            order = {
                "number": number,
                "arguments": arguments,
                "environment": dict(environment),
                "folder": str(folder),
                "log": str(log_file),
                "answer": str(answer_file),
            }
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        assert program._started.wait(30)
        return program

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            program = self._programs[told["number"]]
            program.pid = told["pid"]
            if "code" in told:
                program.code = told["code"]
            program._started.set()


@contextmanager
def running_hatchery() -> Iterator[Hatchery]:
    """A hatchery while the block runs; what it has started ends with it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.failpoints.hatchery"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Hatchery(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def _serve() -> None:
    """Fork for each order; tell which process it became, and how that ended."""
    _import_all()
    running: dict[int, int] = {}
    unread = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.01)
        if ready:
            read = os.read(0, 65536)
            if not read:
                break
            *lines, unread = (unread + read).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become(order)
                running[pid] = order["number"]
                _tell(number=order["number"], pid=pid)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            _tell(number=running.pop(pid), pid=pid, code=os.waitstatus_to_exitcode(status))
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _tell(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _become(order: dict[str, Any]) -> None:
    """Be the program."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["answer"], os.O_WRONLY),
        (2, order["log"], os.O_WRONLY | os.O_APPEND),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(order["folder"])
    for name in list(os.environ):
        if name.startswith("POSTROOM_"):
            del os.environ[name]
    os.environ.update(order["environment"])
    sys.path.insert(0, order["folder"])

    from postroom import failpoints
    from postroom.cli.main import run
    from postroom.queue import engine

    engine.HEARTBEAT_S = 0.3  # a test need not wait for five seconds
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    code = 1
    try:
        code = run(order["arguments"])
        sys.stdout.flush()
    finally:
        os._exit(code)


def _import_all() -> None:
    import psycopg  # noqa: F401

    import postroom.cli.main
    import postroom.cli.staying
    import postroom.email.delivery
    import postroom.email.enqueue
    import postroom.email.transports
    import postroom.http
    import postroom.http.server
    import postroom.queue.engine
    import postroom.webhooks.handlers  # noqa: F401


if __name__ == "__main__":
    _serve()
