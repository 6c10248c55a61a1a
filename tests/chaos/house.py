"""The house under test: a PostgreSQL of its own behind a bad network, workers and doors, a receiver."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import psutil
import psycopg

from postroom.database.migrate import migrate
from tests.chaos.scenario import Scenario
from tests.chaos.sink import Sink
from tests.journey.mails import SENDER
from tests.support.postgres import (
    SETTINGS,
    PostgresServer,
    free_port,
    running_server,
    temporary_folder,
)
from tests.support.proxy import Proxy, running_proxy
from tests.support.waiting import until_now

ROOT = Path(__file__).parents[2]
SERVICE_KEY = "service-key-of-the-chaos"
STRIPE_SECRET = "whsec_of_the_chaos"
FAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
)
BALLAST = "ballast"
DATABASE_DISK_MB, MAILDIR_DISK_MB = 700, 8

DURABLE = (
    SETTINGS.replace("synchronous_commit = off", "synchronous_commit = on").replace(
        "max_connections = 200",
        "max_connections = 600",  # half open ones stay until the network is mended
    )
    + "max_wal_size = 128MB\nmin_wal_size = 32MB\ndeadlock_timeout = 200ms\nlog_lock_waits = off\n"
)
"""What was acknowledged outlives a kill of the server; only a loss of power would need fsync as well."""

TOML = """
    [webhooks.stripe]
    secrets = ["env:STRIPE_WEBHOOK_SECRET"]
    [[webhooks.stripe.handlers]]
    name = "sql"
    sql = "chaos.on_event"
"""

Db = psycopg.Connection[tuple[object, ...]]


@dataclass
class Seat:
    """
    One place in the house for a process: who sits there is replaced when it dies.

    Attributes:
        command: What is started.
        told_to_end: It is about to end; who told it so seats the next one.
        ends: Exit codes of those that were told to end.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    started: int = 0
    told_to_end: bool = False
    ends: list[int] = field(default_factory=list)

    def start(self) -> None:
        """Seat a new process."""
        self.started += 1
        self.told_to_end = False
        with (self.folder / f"{self.name}-{self.started}.log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What the present process has logged."""
        return (self.folder / f"{self.name}-{self.started}.log").read_text(errors="replace")

    def is_at_work(self) -> bool:
        """Whether the present process has begun its work and lives."""
        begun = "worker.started" if "worker" in self.command else "house.opened"
        return self.ended() is None and begun in self.log

    def kill(self) -> None:
        """kill -9, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def ended(self) -> int | None:
        """Its exit code, None while it lives."""
        return None if self.process is None else self.process.poll()


@dataclass
class House:
    """
    Everything that a fault may break.

    Attributes:
        servers: All that there were; the last one is the database, or its standby.
        url: The database by the bad network, as workers, doors and callers use it.
        missing: Faults that cannot be had here, and why.
        pauses: What a person paused, `queue` or `transport`: from when on it was known to be, and until when.
    """

    scenario: Scenario
    folder: Path
    server: PostgresServer
    proxy: Proxy
    sink: Sink
    database: str
    url: str
    database_disk: Path | None
    maildir: Path
    maildir_disk: Path | None
    workers: list[Seat] = field(default_factory=list)
    doors: list[Seat] = field(default_factory=list)
    door_urls: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    servers: list[PostgresServer] = field(default_factory=list)
    pauses: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def transport(self) -> str:
        """The way to the receiver, as a worker names it."""
        return f"smtp://127.0.0.1:{self.sink.port}"

    @property
    def direct_url(self) -> str:
        """The database without the network, for the rig's own looks."""
        return self.server.url_of(self.database)

    def connected(self) -> Db:
        """The rig's own look at the database."""
        return psycopg.connect(self.direct_url, autocommit=True, connect_timeout=10)

    def crash(self) -> None:
        """kill -9 of PostgreSQL and all its processes, in the middle of whatever they do."""
        children = psutil.Process(self.server.pid).children(recursive=True)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.suspend()  # else they would end in good order when the first one is gone
        self.server.stop(signal.SIGKILL)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=30)

    def add_standby(self) -> None:
        """Give the server a synchronous standby, on which every commit waits from now on."""
        folder = self.folder / f"standby{len(self.servers)}"
        folder.mkdir(mode=0o711)
        standby = self.server.make_standby(folder)
        standby.start()
        self.servers.append(standby)
        with psycopg.connect(self.server.url, autocommit=True) as db:
            db.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            db.execute("SELECT pg_reload_conf()")

    def fail_over(self) -> None:
        """The server is gone for ever; its standby takes over."""
        self.crash()
        self.server = self.servers[-1]
        with psycopg.connect(self.server.url, autocommit=True) as db:
            db.execute("SELECT pg_promote()")
        self.proxy.server_port = self.server.port
        self.proxy.drop_connections()

    def server_lives(self) -> bool:
        """Whether PostgreSQL answers; one that its full disk has ended must be started by somebody."""
        try:
            self.connected().close()
        except psycopg.OperationalError as error:
            return "too many clients" in str(error)
        return True

    @property
    def disk_is_full(self) -> bool:
        """Whether the database's disk is being kept full."""
        return self.database_disk is not None and (self.database_disk / BALLAST).exists()

    def heal_server(self) -> None:
        """See that PostgreSQL runs; where its disk is still full, that comes later."""
        ends = time.monotonic() + 60
        while not self.server_lives():
            if self.disk_is_full:
                return
            if not self.server.is_running():
                self.server.stop(signal.SIGKILL)
                with suppress(AssertionError):  # what the last one left may take a moment to go
                    self.server.start()
            assert time.monotonic() < ends, "PostgreSQL does not come back"
            time.sleep(0.1)

    def restart_ended(self) -> None:
        """As a supervisor does: who found no database when it began has ended with 1."""
        for seat in (*self.workers, *self.doors):
            if seat.ended() is not None and not seat.told_to_end:
                seat.start()

    def wait_until_at_work(self) -> None:
        """Return once every worker has begun and every door answers."""
        with self.connected() as db:
            until_now(
                lambda: (
                    db.execute("SELECT count(*) FROM postroom.workers WHERE claims").fetchone()
                    == (2 * len(self.workers),)
                    and all(_answers(url) for url in self.door_urls)
                ),
                limit_s=60,
            )

    def logs(self) -> Iterator[str]:
        """All lines that the house's processes have logged."""
        for path in sorted(self.folder.glob("*.log")):
            yield from path.read_text(errors="replace").splitlines()


@contextmanager
def running_house(scenario: Scenario) -> Iterator[House]:
    """A house at work, before anything is broken."""
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        missing: dict[str, str] = {}
        disk = stack.enter_context(_small_disk(folder / "pg", DATABASE_DISK_MB))
        maildir_disk = stack.enter_context(_small_disk(folder / "post", MAILDIR_DISK_MB))
        if disk is None or maildir_disk is None:
            why = "mounting a small tmpfs needs root"
            missing |= {"disk full for PostgreSQL": why, "disk full for the maildir": why}
        server = stack.enter_context(running_server(settings=DURABLE, folder=disk))
        database = server.create_database()
        asyncio.run(migrate(server.url_of(database)))
        proxy = stack.enter_context(running_proxy(server.port))
        sink = stack.enter_context(Sink(folder).running())
        url = proxy.url_of(server.url_of(database))
        maildir = (maildir_disk or folder) / "mail"
        house = House(
            scenario, folder, server, proxy, sink, database, url, disk, maildir, maildir_disk, missing=missing
        )
        house.servers.append(server)
        _prepare_database(house)
        (folder / "postroom.toml").write_text(dedent(TOML))
        _seat(house)
        try:
            if scenario.standby:
                house.add_standby()
            for seat in (*house.workers, *house.doors):
                seat.start()
            house.wait_until_at_work()
            yield house
        finally:
            for seat in (*house.workers, *house.doors):
                seat.kill()
            for standby in house.servers[1:]:
                standby.stop(signal.SIGQUIT)
            if scenario.keep is not None:
                scenario.keep.mkdir(parents=True, exist_ok=True)
                for path in (*folder.glob("*.log"), sink.ledger, house.server.folder / "log"):
                    shutil.copy(path, scenario.keep)


def _prepare_database(house: House) -> None:
    with house.connected() as db:
        db.execute((Path(__file__).parent / "tables.sql").read_text())
        for key, value in house.scenario.policy.items():
            db.execute("SELECT postroom.set_setting(%s, %s)", (key, value))
        for name, old, new in house.scenario.edits:
            row = db.execute("SELECT pg_get_functiondef(%s::regproc)", (name,)).fetchone()
            assert row is not None
            body = str(row[0])
            assert body.count(old) == 1, f"{name} has no longer one {old!r}: mend the sabotage"
            db.execute(body.replace(old, new).encode())
        for statement in house.scenario.statements:
            db.execute(statement.encode())


def _seat(house: House) -> None:
    scenario = house.scenario
    environment = {
        "POSTROOM_DATABASE_URL": house.url,
        "POSTROOM_FROM": SENDER,
        "POSTROOM_SERVICE_KEY": SERVICE_KEY,
        "POSTROOM_TRANSPORT": house.transport,
        "POSTROOM_LOG": "json",
        "STRIPE_WEBHOOK_SECRET": STRIPE_SECRET,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))),
        **scenario.environment,
    }
    postroom = (sys.executable, "-m", "postroom")
    command = (*(scenario.worker_command or postroom), "worker", "--app", "tests.chaos.shop:room")
    library = next((one for one in FAKETIME if Path(one).exists()), None)
    if scenario.clocks_off and library is None:
        house.missing["a worker's clock an hour off"] = "needs Debian's package libfaketime"
    for number in range(scenario.workers):
        own = dict(environment)
        if scenario.clocks_off and library is not None and number in (1, 2):
            own |= {
                "LD_PRELOAD": library,
                "FAKETIME": "+1h" if number == 1 else "-1h",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        if scenario.maildir and number == scenario.workers - 1:
            own["POSTROOM_TRANSPORT"] = f"maildir:{house.maildir}"
        house.workers.append(Seat(f"worker{number}", command, own, house.folder))
    for number in range(scenario.doors):
        port = free_port()
        own = {**environment, "POSTROOM_PORT": str(port)}
        command = (*(scenario.door_command or postroom), "serve")
        house.doors.append(Seat(f"door{number}", command, own, house.folder))
        house.door_urls.append(f"http://127.0.0.1:{port}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def _small_disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """A tmpfs of that size, so that a disk can be full; None where we may not mount one."""
    folder.mkdir(mode=0o711)
    options = f"size={megabytes}m,mode=0711"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "postroom-chaos", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
