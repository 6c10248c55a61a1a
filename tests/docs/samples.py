"""
The samples of a page, run in the order in which a reader meets them, in one folder.

A block of `console` has commands behind `$ ` and what they print; `…` stands for anything there, and a
line of it for any lines. One whose comment begins with `exit 1` is to fail. A program that serves stays in
the background until the page ends, or starts it again: then it is begun anew. `sleep 1; ` before a command
says that it looks at what others do: it is asked until it prints what the page says. `sql` goes to the
database. A block whose first line is a comment with a file's name is that file, or the rest of it where
`, further down` follows; `python` without one is run, and may await. `<!-- not run: WHY -->` above a block
leaves it out.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import until_now

COMMAND_S_MAX = 60.0

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<language>[a-z]+)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"(?:#|//|--|;) (?P<name>(?:[\w.-]+/)*[\w.-]+\.\w+)(?P<further>, further down)?$")
_STAYS = re.compile(
    r"(?:\w+=\S+ )*(?P<program>postroom (?:up|serve|worker|scheduler)|"
    r"python manage\.py runserver|uvicorn|node shop\.mjs)\b"
    r"(?!.*--drain)"
)
_MAY_FAIL = {"postroom doctor"}
"""It finds that the tests' server is not durable."""


@dataclass(frozen=True)
class Sample:
    """
    One block of a page.

    Attributes:
        line: Where it stands, from 1.
        skipped: Why it is not run; empty where it is.
    """

    language: str
    text: str
    line: int
    skipped: str


def samples_of(page: Path) -> list[Sample]:
    """All blocks of a page that have a language."""
    text = page.read_text()
    return [
        Sample(found["language"], found["text"], text[: found.start()].count("\n") + 1, found["why"] or "")
        for found in _BLOCK.finditer(text)
    ]


@dataclass(frozen=True)
class Command:
    """
    One command of a console.

    Attributes:
        expected: What it is to print.
        code: How it is to end.
    """

    text: str
    expected: str
    code: int = 0


class Reader:
    """
    Follows a page to its end.

    Args:
        folder: An empty folder.
        settings: Variables of the environment beside the reader's own.
        instead: What stands in a page, and what is there instead: a mail server, a port.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str], instead: Mapping[str, str]) -> None:
        self._folder = folder
        self._instead = instead
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **settings}
        self._staying: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, Path] = {}

    def take(self, folder: Path) -> None:
        """Have the files of a folder beside the page."""
        for path in folder.iterdir():
            if path.is_file():
                (self._folder / path.name).write_text(self._here(path.read_text()))

    def follow(self, page: Path) -> None:
        """
        Run each sample.

        Raises:
            AssertionError: One failed, or printed something else; it names the line.
        """
        try:
            for sample in samples_of(page):
                if not sample.skipped:
                    self._run(sample, f"{page.name}:{sample.line}")
        finally:
            self.close()

    def close(self) -> None:
        """End what stays."""
        for program in list(self._staying):
            self._end(program)

    def _end(self, program: str) -> None:
        process = self._staying.pop(program)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)

    def _run(self, sample: Sample, where: str) -> None:
        text = self._here(sample.text)
        if named := _FILE.match(text.partition("\n")[0]):
            path = self._folder / named["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if named["further"] else "w") as file:
                file.write(text)
        elif sample.language == "console":
            for command in _commands(text):
                self._command(command, where)
        elif sample.language == "sql":
            self._command(Command(f"postroom psql -c {shlex.quote(text)}", "…"), where)
        elif sample.language == "python":
            self._command(Command(f"{sys.executable} -c {shlex.quote(_AWAITING.format(text))}", "…"), where)
        else:
            raise AssertionError(f"{where}: a sample of {sample.language} is no file, and nothing runs it")

    def _here(self, text: str) -> str:
        for said, instead in self._instead.items():
            text = text.replace(said, instead)
        return text

    def _command(self, command: Command, where: str) -> None:
        if stays := _STAYS.match(command.text):
            self._stay(stays["program"], command, where)
            return
        looks = re.match(r"sleep \d+; (.*)", command.text, re.DOTALL)
        done = self._done(looks[1] if looks else command.text)
        if looks and command.expected:
            ends = time.monotonic() + COMMAND_S_MAX
            while not _is_said(done.stdout, command.expected) and time.monotonic() < ends:
                done = self._done(command.text)
        assert done.returncode == command.code or command.text in _MAY_FAIL, (
            f"{where}: $ {command.text}\nit ended with exit {done.returncode}:\n{done.stdout}{self._beside()}"
        )
        assert _is_said(done.stdout, command.expected), (
            f"{where}: $ {command.text}\nthe page says:\n{command.expected}\nit printed:\n{done.stdout}"
            f"{self._beside()}"
        )
        self._remember_exports()

    def _beside(self) -> str:
        """The ends of the logs of what stays."""
        return "".join(
            f"\n{self._logs[one]}:\n{self._logs[one].read_text()[-1500:]}" for one in self._staying
        )

    def _done(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}\n_code=$?; export -p > .exported; exit $_code"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMAND_S_MAX,
        )

    def _stay(self, program: str, command: Command, where: str) -> None:
        if program in self._staying:
            self._end(program)
        output = self._folder / f".{program.replace(' ', '-')}"
        self._logs[program] = output.with_suffix(".log")
        with output.open("wb") as file, self._logs[program].open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {command.text}"],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=log,
                start_new_session=True,
            )
        self._staying[program] = process

        def stands() -> bool:
            assert process.poll() is None, f"{where}: $ {command.text}\nit has ended{self._beside()}"
            is_up = program != "uvicorn" or "Uvicorn running" in self._logs[program].read_text()
            return is_up and _is_said(output.read_text(), command.expected)

        until_now(stands)

    def _remember_exports(self) -> None:
        """What a command has exported counts for those that come."""
        for found in re.finditer(
            r"^declare -x (\w+)=\"(.*)\"$", (self._folder / ".exported").read_text(), re.MULTILINE
        ):
            if found[1] not in {"PWD", "OLDPWD", "SHLVL", "_"}:
                self._environment[found[1]] = re.sub(r"\\(.)", r"\1", found[2])


_AWAITING = """
import ast, asyncio, inspect
code = compile({0!r}, "sample", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
result = eval(code, {{"__name__": "sample"}})
if inspect.isawaitable(result):
    asyncio.run(result)
"""


def _commands(text: str) -> Iterator[Command]:
    """Each command of a console; what stands before the first one is nobody's."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        count = 1
        while lines[count - 1].endswith("\\") or _is_open("\n".join(lines[:count])):
            count += 1
        command = "\n".join(lines[:count])
        exits = re.search(r"\s# exit (\d+)\b[^\n]*$", command)
        yield Command(
            re.sub(r"\s+# [^\n]*$", "", command),
            "\n".join(lines[count:]).strip("\n"),
            int(exits[1]) if exits else 0,
        )


def _is_open(command: str) -> bool:
    """Whether a quote is still open at the end of a line."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False


def _is_said(printed: str, expected: str) -> bool:
    """Whether that is what a page says; blanks and empty lines at the end count for nothing."""
    parts = []
    for line in expected.splitlines() or ["…"]:
        if line.strip() == "…":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            words = (r"[^\n]*".join(map(re.escape, word.split("…"))) for word in line.split())
            parts.append(r" *" + r" +".join(words) + r" *\n")
    return re.fullmatch("".join(parts), printed.rstrip() + "\n") is not None
