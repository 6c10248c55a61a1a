"""
The job queues that we measure against: where each one is installed, and with which settings it runs.

Each has an environment of its own below bench/.peers, made when it is first needed from a lock file of
bench/peers. What cannot run here is left out with a line.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg

from bench import program
from bench.program import DRIVERS, Program
from bench.servers import create_database

HERE = Path(__file__).parent
LOCKS = HERE / "peers"
ENVIRONMENTS = HERE / ".peers"
PAYLOAD_BYTES = 200
BATCH = 1_000


class NotHere(Exception):
    """A peer cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class QueuePeer:
    """
    A job queue.

    Attributes:
        environment: Its lock file's name; `node` for those in JavaScript.
        driver: Below bench/drivers (Python) or bench/peers (JavaScript).
        options: Its settings, as its manual has them.
        source: Where the settings come from.
        trials: What else may serve it better, each in place of some of the options.
        python: The oldest Python that it runs on.
        jobs_max: So many jobs are enough to time the slow ones.
    """

    package: str
    environment: str
    driver: str
    options: dict[str, Any]
    source: str
    trials: tuple[dict[str, Any], ...] = ()
    python: tuple[int, int] = (3, 11)
    jobs_max: int = 20_000
    database_url: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return f"{self.package} {self.version()}"

    def version(self) -> str:
        """Of the package, as its lock file has it."""
        if self.environment == "node":
            packages = json.loads((LOCKS / "package-lock.json").read_text())["packages"]
            found: str = packages[f"node_modules/{self.package}"]["version"]
            return found
        lines = (LOCKS / f"{self.environment}.lock").read_text().splitlines()
        return next(line for line in lines if line.startswith(f"{self.package}==")).split("==")[1].split()[0]

    @property
    def settings(self) -> str:
        """For people."""
        return ", ".join(f"{name} {value}" for name, value in self.options.items()) + f" ({self.source})"

    def tried(self) -> list[QueuePeer]:
        """The same with its own settings, and with each of those that are to be tried."""
        return [self, *(replace(self, options=self.options | trial) for trial in self.trials)]

    async def on(self, server_url: str) -> QueuePeer:
        """
        The same with a database of its own, and its tables in it.

        Raises:
            NotHere: It cannot be installed or started.
        """
        self.install()
        url = await create_database(server_url, f"peer_{self.package.replace('-', '_')}")
        made = replace(self, database_url=url)
        try:
            with made.running("migrate"):
                pass
        except RuntimeError as error:
            raise NotHere(str(error)[-300:]) from error
        return made

    def running(self, mode: str, *, count: int = 0) -> AbstractContextManager[Program]:
        """Its driver, ready for the word; bench/drivers/queue_peer.py has the modes."""
        settings = {
            "database_url": self.database_url,
            "mode": mode,
            "options": self.options,
            "count": count,
            "payload_bytes": PAYLOAD_BYTES,
        }
        return program.running(self.driver, settings, command=self._command())

    def fill(self, count: int) -> list[float]:
        """Queue so many jobs in batches; how many seconds each batch took."""
        with self.running("fill", count=count) as filling:
            took_s: list[float] = filling.work()[1]["took_s"]
        return took_s

    async def vacuum(self) -> None:
        """What the server would do in a quiet moment."""
        connection = await asyncpg.connect(self.database_url)
        try:
            await connection.execute("VACUUM ANALYZE")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    def install(self) -> None:
        """
        Make its environment, where it is not made yet.

        Raises:
            NotHere: There is no such Python, or the registry does not answer.
        """
        folder = ENVIRONMENTS / self.environment
        stamp = folder / ".done"
        lock = (LOCKS / f"{self.environment}.lock").read_bytes()
        if self.environment == "node":
            lock += (LOCKS / "package-lock.json").read_bytes()
        wanted = hashlib.sha256(lock).hexdigest()
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print(f"installing {self.environment} into {folder} …", file=sys.stderr, flush=True)
        _run(_python(self.python), "-m", "venv", "--clear", str(folder))
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes"]
        _run(*pip, "-r", str(LOCKS / f"{self.environment}.lock"))
        if self.environment == "node":
            _run(
                str(folder / "bin" / "npm"), "ci", "--silent", "--no-audit", "--no-fund", path=folder / "bin"
            )
        stamp.write_text(wanted)

    def _command(self) -> list[str]:
        if self.environment == "node":
            return [str(ENVIRONMENTS / "node" / "bin" / "node"), str(LOCKS / self.driver)]
        return [str(ENVIRONMENTS / self.environment / "bin" / "python"), str(DRIVERS / self.driver)]


PEERS = (
    QueuePeer(
        "graphile-worker",
        "node",
        "graphile_worker.mjs",
        {"concurrentJobs": 24, "localQueueSize": 500, "batchDelay": 0},
        "worker.graphile.org/docs/performance",
        trials=(
            {"concurrentJobs": 10},
            {"concurrentJobs": 100},
            {"localQueueSize": 200},
            {"localQueueSize": 1000},
            {"concurrentJobs": 100, "localQueueSize": 1000},
        ),
    ),
    QueuePeer(
        "pg-boss",
        "node",
        "pg_boss.mjs",
        {"batchSize": 1000, "localConcurrency": 4},
        "its manual: batchSize, localConcurrency, burstWhenBatchFull",
        trials=(
            {"localConcurrency": 1},
            {"localConcurrency": 2},
            {"batchSize": 500},
            {"batchSize": 2500, "localConcurrency": 2},
        ),
    ),
    QueuePeer(
        "pgqueuer",
        "pgqueuer",
        "pgqueuer_peer.py",
        {"batch_size": 250},
        "its default is 10; larger batches are faster",
        trials=({"batch_size": 100}, {"batch_size": 500}, {"batch_size": 1000}),
    ),
    QueuePeer(
        "procrastinate",
        "procrastinate",
        "procrastinate_peer.py",
        {"concurrency": 10, "delete_jobs": "never"},
        "its manual: concurrency for asynchronous jobs; it fetches them one by one",
        trials=({"concurrency": 1}, {"concurrency": 30}),
        jobs_max=2_000,
    ),
    QueuePeer(
        "chancy",
        "chancy",
        "chancy_peer.py",
        {"concurrency": 1000, "polling_interval": 1, "eager_polling": True},
        "its manual: AsyncExecutor, eager_polling",
        trials=({"concurrency": 100},),
        jobs_max=5_000,
    ),
    QueuePeer(
        "oban",
        "oban",
        "oban_peer.py",
        {"limit": 200},
        "its manual: the queue's limit",
        trials=({"limit": 50}, {"limit": 1000}),
        python=(3, 12),
        jobs_max=10_000,
    ),
)


async def peers_on(server_url: str, left_out: list[str]) -> list[QueuePeer]:
    """Those that run here, each with its database; of the others a line each."""
    made = []
    for peer in PEERS:
        try:
            made.append(await peer.on(server_url))
        except NotHere as reason:
            left_out.append(f"{peer.package} is left out: {reason}")
    return made


def _python(oldest: tuple[int, int]) -> str:
    if sys.version_info[:2] >= oldest:
        return sys.executable
    for path in _pythons(oldest):
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if told.returncode == 0:
            return path
    major, minor = oldest
    raise NotHere(f"it needs Python {major}.{minor}: put python{major}.{minor} on PATH")


def _pythons(oldest: tuple[int, int]) -> Iterator[str]:
    for minor in range(oldest[1], oldest[1] + 3):
        if found := shutil.which(f"python{oldest[0]}.{minor}"):
            yield found
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        yield from map(str, sorted(pyenv.glob(f"{oldest[0]}.{minor}.*/bin/python")))


def _run(*command: str, path: Path | None = None) -> None:
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    ended = subprocess.run(command, cwd=LOCKS, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise NotHere(f"{' '.join(command[:4])} failed: {(ended.stderr or ended.stdout).strip()[-300:]}")
