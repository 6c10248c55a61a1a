"""What the broken programs of these tests share: a database each, and the look at how they stand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from uuid import UUID

import asyncpg

from tests.failpoints.hatchery import Hatchery, Program
from tests.failpoints.table import Case
from tests.support import waiting
from tests.support.postgres import PostgresServer
from tests.support.proxy import Cut, Proxy, Rule, running_proxy

LIMIT_S = 60.0
LANES = 10
"""How many programs are broken at once: most of their time they wait."""

LEASE = "3s"
"""Longer than a program that lives has to wait for its turn on a busy machine."""

SETTINGS = {
    "lease": LEASE,
    "email.limit.global": "off",
    "email.limit.recipient": "off",
    "email.backoff": "100ms",
    "webhook.backoff": "100ms",
}


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait with the patience that ten programs on two cores need."""
    await waiting.until(condition, limit_s=LIMIT_S, look_s=0.05)


@dataclass
class Bench:
    """
    What all cases share.

    Attributes:
        template: A migrated database.
    """

    server: PostgresServer
    template: str
    hatchery: Hatchery
    folder: Path


@dataclass
class Lane:
    """
    One case's own: a database, a folder, programs.

    Attributes:
        db: A connection that nothing breaks.
    """

    bench: Bench
    case: Case
    url: str
    db: asyncpg.Connection
    folder: Path
    programs: list[Program] = field(default_factory=list)
    proxy: Proxy | None = None
    rule: Rule | None = None

    def start(self, arguments: tuple[str, ...], environment: dict[str, str], *, victim: bool) -> Program:
        """Start a program; the victim meets the case's fault."""
        settings = {"POSTROOM_DATABASE_URL": self.url, "POSTROOM_LOG": "json", "POSTROOM_CONCURRENCY": "4"}
        settings |= environment
        if victim:
            settings |= self.case.environment
            if self.proxy is not None:
                settings["POSTROOM_DATABASE_URL"] = self.proxy.url_of(self.url)
        program = self.bench.hatchery.start(arguments, settings, self.folder)
        self.programs.append(program)
        return program

    async def struck(self, victim: Program) -> None:
        """Wait until the victim has met its fault."""
        fault = self.case.fault

        def has_struck() -> bool:
            if fault == "kill":
                return victim.code is not None
            if fault == "hang":
                return victim.is_stopped or victim.code is not None
            if fault == "raise":
                return f"failpoint {self.case.point}:" in victim.log
            return self.rule is not None and self.rule.fired > 0

        await until(has_struck)
        if fault == "kill":
            assert victim.code == -9, victim.log[-2000:]

    async def quiet(self, *, gone: bool) -> None:
        """Wait until the server does nothing more for others; `gone`: until they are gone."""

        async def is_quiet() -> bool:
            others: int = await self.db.fetchval(
                """
                SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()
                    AND backend_type = 'client backend'
                    -- ClientRead: it waits for the rest of what a stopped client was about to say.
                    AND (state = 'active' AND wait_event IS DISTINCT FROM 'ClientRead' OR $1)
                """,
                gone,
            )
            return others == 0

        await until(is_quiet)

    async def begun(self, table: str) -> set[tuple[UUID, int]]:
        """The rows whose attempt has begun by the marks and is not settled, with the number of its lease."""
        rows = await self.db.fetch(
            f"""
            SELECT queued.id, queued.lease_no
            FROM {table} AS queued
            JOIN postroom.workers AS worker ON worker.id = queued.leased_by
            CROSS JOIN unnest(worker.begun, worker.begun_lease_nos) AS mark (id, lease_no)
            WHERE queued.status = 'processing' AND mark.id = queued.id AND mark.lease_no = queued.lease_no
            """
        )
        return {(row["id"], row["lease_no"]) for row in rows}

    async def end_leases(self, table: str) -> None:
        """The leases of the dead end now; who stands still must wait: its own clock goes on."""
        await self.db.execute(f"UPDATE {table} SET due_at = clock_timestamp() WHERE status = 'processing'")

    async def ended(self, program: Program) -> int:
        """Wait until a program has ended; its code."""
        await until(lambda: program.code is not None)
        assert program.code is not None
        return program.code

    def check_logs(self) -> None:
        """No program shows a traceback, whatever befell it."""
        for program in self.programs:
            assert "Traceback" not in program.log, program.log[-3000:]


@asynccontextmanager
async def open_lane(bench: Bench, case: Case) -> AsyncIterator[Lane]:
    """A lane while the block runs."""
    name = await asyncio.to_thread(bench.server.create_database, template=bench.template)
    url = bench.server.url_of(name)
    folder = Path(mkdtemp(dir=bench.folder))
    db = await asyncpg.connect(url)
    lane = Lane(bench, case, url, db, folder)
    try:
        for key, value in SETTINGS.items():
            await db.execute("SELECT postroom.set_setting($1, $2)", key, value)
        with _line(lane):
            yield lane
    finally:
        for program in lane.programs:
            if program.code is None:
                program.kill()
        await db.close()
        await asyncio.to_thread(bench.server.drop_database, name)


@contextmanager
def _line(lane: Lane) -> Iterator[None]:
    """The proxy that loses the statement, where the case is about one."""
    loss = lane.case.fault
    if isinstance(loss, str) or loss.statement.startswith("smtp:"):
        yield
        return
    with running_proxy(lane.bench.server.port) as lane.proxy:
        cut, skip = Cut(loss.after), lane.case.turn - 1
        lane.rule = lane.proxy.on(loss.statement, cut, within=loss.within, skip=skip)
        yield


async def run_all(broken: Iterable[tuple[object, Callable[[], Awaitable[None]]]]) -> None:
    """Run cases side by side; fails with all that failed."""
    lanes = asyncio.Semaphore(LANES)
    failed: list[str] = []

    async def one(case: object, run: Callable[[], Awaitable[None]]) -> None:
        async with lanes:
            try:
                await run()
            except Exception as error:
                failed.append(f"{case}: {type(error).__name__}: {error}")

    await asyncio.gather(*(one(*each) for each in broken))
    assert not failed, "\n\n".join([f"{len(failed)} cases failed", *failed])
