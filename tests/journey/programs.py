"""postroom's programs, started as a user starts them: processes of their own, told by the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from tests.support.waiting import until_now

COMMAND = (sys.executable, "-m", "postroom")
END_S_MAX = 60.0


class Program:
    """One process that stays, with its answer and its log in files."""

    def __init__(
        self,
        arguments: tuple[str, ...],
        folder: Path,
        environment: Mapping[str, str],
        command: tuple[str, ...] = ("postroom",),
    ) -> None:
        self.log_file = folder / f"{arguments[0]}-{os.urandom(3).hex()}.log"
        self._answer_file = self.log_file.with_suffix(".out")
        with self.log_file.open("wb") as log, self._answer_file.open("wb") as answer:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command, *arguments],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.log_file.read_text()

    @property
    def answer(self) -> str:
        """What it has said on stdout so far."""
        return self._answer_file.read_text()

    def events(self, name: str) -> list[dict[str, object]]:
        """The log's lines of one event."""
        lines = [orjson.loads(line) for line in self.log.splitlines() if line.endswith("}")]
        return [line for line in lines if line["event"] == name]

    def ready(self) -> str:
        """Wait until it serves; its address."""
        until_now(lambda: "\n" in self.answer or self.process.poll() is not None)
        assert self.answer.startswith("ready http://"), self.log[-3000:]
        return self.answer.split()[1]

    def working(self) -> None:
        """Wait until its worker has begun."""
        until_now(lambda: bool(self.events("worker.started")) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log[-3000:]

    def end(self) -> int:
        """SIGTERM, and wait for its end; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S_MAX)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(END_S_MAX)


@dataclass
class Programs:
    """
    What the programs of one test share.

    Attributes:
        folder: Where they run.
        settings: Variables of the environment.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    def run(
        self, *arguments: str, limit_s: float = 60.0, log_file: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; its stderr goes into `log_file` where one is given."""
        with ExitStack() as stack:
            log = subprocess.PIPE if log_file is None else stack.enter_context(log_file.open("wb"))
            return subprocess.run(
                [*COMMAND, *arguments],
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                check=False,
                timeout=limit_s,
            )

    def start(self, *arguments: str, command: tuple[str, ...] = ("postroom",)) -> Program:
        """Start a command that stays; whoever starts it ends it."""
        return Program(arguments, self.folder, self._environment(), command)

    @contextmanager
    def running(self, *arguments: str, command: tuple[str, ...] = ("postroom",)) -> Iterator[Program]:
        """A command that stays, while the block runs; it must end well."""
        program = self.start(*arguments, command=command)
        try:
            yield program
            code = program.end()
            assert code == 0, program.log[-3000:]
        finally:
            program.kill()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.settings}
