"""A contender in a process of its own, which waits for the word before it works."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import RESULTS

DRIVERS = Path(__file__).with_name("drivers")
READY_S_MAX = 30.0
WORK_S_MAX = 300.0


@dataclass
class Program:
    """
    A driver that has said `ready`.

    Attributes:
        start_s: How long it took from its start to `ready`, in seconds.
    """

    start_s: float
    _process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def work(self, limit_s: float = WORK_S_MAX) -> tuple[float, dict[str, Any]]:
        """
        Give the word and wait for its end.

        Args:
            limit_s: A program that takes longer than this has failed.

        Returns:
            Seconds from the word to the answer, and what it says of itself.
        """
        began = time.monotonic()
        self.tell("go")
        answer = _line_of(self._process, limit_s)
        took_s = time.monotonic() - began
        if not answer:
            raise RuntimeError("it ended before its work was done: see its log in bench/.results")
        return took_s, json.loads(answer)

    def tell(self, word: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()


def log_path(driver: str) -> Path:
    """The log of the last run of a driver."""
    return RESULTS / f"{driver}.log"


@contextmanager
def running(
    driver: str, settings: Mapping[str, object], command: Sequence[str] | None = None
) -> Iterator[Program]:
    """
    Start bench/drivers/<driver>.py with settings, and end it with the block.

    Its log goes to log_path(driver), with those of others that run beside it.
    To write it is a part of the work.

    Args:
        command: What starts it, where that is not this Python.
    """
    RESULTS.mkdir(exist_ok=True)
    path = log_path(driver)
    began = time.monotonic()
    with path.open("ab") as log:
        log.truncate(0)
        process = subprocess.Popen(
            [*(command or (sys.executable, str(DRIVERS / f"{driver}.py"))), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process:
        try:
            if _line_of(process, READY_S_MAX) != "ready\n":
                raise RuntimeError(f"{driver} does not start: {path.read_text()[-2000:]}")
            yield Program(time.monotonic() - began, process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _line_of(process: subprocess.Popen[str], limit_s: float) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(limit_s):
            process.kill()
            raise TimeoutError(f"no answer within {limit_s:g} s")
    return process.stdout.readline()
