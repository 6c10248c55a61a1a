"""The upgrade is cut off, held up, or meets another one: it is taken up again and holds up nobody."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from postroom.database import migrate as migrate_module
from postroom.database.migrate import migrate, migrations, pending
from tests.support.postgres import PostgresServer
from tests.support.waiting import until, until_now
from tests.upgrade.callers import old_callers
from tests.upgrade.conftest import Project, handmade_project
from tests.upgrade.end_state import end_state

ROOT = Path(__file__).parents[2]

MIGRATE = """
import asyncio, sys
from postroom.database.migrate import migrate
asyncio.run(migrate(sys.argv[1], report=lambda line: print(line, flush=True)))
"""


def start_migrate(project: Project) -> subprocess.Popen[str]:
    """A process that migrates and prints each line that is reported."""
    return subprocess.Popen(
        [sys.executable, "-c", MIGRATE, project.url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_an_upgrade_that_is_killed_is_taken_up_again(postgres_server: PostgresServer) -> None:
    """kill -9 at one line that it prints after the other: in the end it is as if nothing had happened."""
    with handmade_project(postgres_server) as whole, handmade_project(postgres_server) as cut:
        asyncio.run(migrate(whole.url))
        # Further behind each time, so that the end is reached.
        for lines in range(1, 40, 4):
            process = start_migrate(cut)
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        asyncio.run(migrate(cut.url))
        assert not asyncio.run(pending(cut.url))
        assert end_state(cut) == end_state(whole)


async def test_who_holds_a_lock_holds_up_the_upgrade_and_nobody_else(project: Project) -> None:
    """
    A report has read the table and its transaction stays open: no change of the table can begin.

    The upgrade gives way after each try, says who holds it up, and goes on when it can. The callers, who
    would fail after 2 s in the queue for a lock, do not.
    """
    lines: list[str] = []
    with project.connect() as report, old_callers(project) as traffic:
        pid = report.info.backend_pid
        with report.transaction():
            report.execute("SELECT count(*) FROM email_queue")
            upgrade = asyncio.create_task(migrate(project.url, report=lines.append))
            await until(lambda: any(line.startswith("waiting for a lock") for line in lines))
            seen = traffic.calls["inserted"]
            await until(lambda: traffic.calls["inserted"] > seen + 20)
            assert not upgrade.done()
        await upgrade
    assert traffic.errors == []
    told = next(line for line in lines if line.startswith("waiting for a lock"))
    assert f"pid {pid} of {project.owner}" in told


async def test_an_index_is_built_when_the_last_old_snapshot_is_gone(project: Project) -> None:
    """A transaction that only looks at another table makes CREATE INDEX CONCURRENTLY wait; it is repeated."""
    lines: list[str] = []
    with project.connect() as looker:
        with looker.transaction():
            looker.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            looker.execute("SELECT 1")
            upgrade = asyncio.create_task(migrate(project.url, report=lines.append))
            await until(lambda: any(line.startswith("waiting for a lock") for line in lines))
        await upgrade
    ours = {
        name
        for migration in migrations()
        for name in re.findall(r"INDEX CONCURRENTLY IF NOT EXISTS (\w+)", migration.text)
    }
    built = "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE indisvalid"
    assert ours
    assert ours <= {row["name"] for row in project.execute(built)}


async def test_a_row_that_somebody_has_locked_is_settled_when_it_is_free(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller has locked a stuck row just before the rows are settled: the others are not held up by it."""
    settle = migrate_module._settle_old_rows
    with project.connect() as busy:

        async def lock_and_settle(*arguments: Any) -> None:
            if busy.info.transaction_status == TransactionStatus.IDLE:
                busy.execute("BEGIN")
                busy.execute("SELECT FROM email_queue WHERE to_email = 'stuck7@example.com' FOR UPDATE")
            await settle(*arguments)

        monkeypatch.setattr(migrate_module, "_settle_old_rows", lock_and_settle)
        # In a loop of its own: the queries below wait for locks that it holds.
        upgrade = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(migrate(project.url))))
        await until(lambda: states_of_stuck(project) == {"pending": 40, "processing": 1})
        assert not upgrade.done()
        monkeypatch.undo()
        busy.execute("COMMIT")
        await upgrade
    assert states_of_stuck(project) == {"pending": 41}


def states_of_stuck(project: Project) -> dict[str, int]:
    """How many of the rows that were stuck are in which state."""
    rows = project.execute("SELECT status FROM email_queue WHERE email_type = 'stuck'", "postgres")
    return dict(Counter(row["status"] for row in rows))


@pytest.mark.chaos
def test_two_million_rows_are_upgraded_under_traffic_and_kills(postgres_server: PostgresServer) -> None:
    """Prints the slowest call of an old caller; none waits 2 s for a lock, and none fails."""
    with handmade_project(postgres_server) as project:
        project.execute("ALTER TABLE email_queue DISABLE TRIGGER USER")
        project.execute(
            """
            INSERT INTO email_queue (to_email, subject, html, status, created_at, updated_at, email_type)
            SELECT
                'many' || n || '@example.com', 'Many', repeat('<p>Hi</p>', 20),
                CASE WHEN n % 100 = 0 THEN 'processing' WHEN n % 100 = 1 THEN 'pending' ELSE 'sent' END,
                now() - interval '3 days' * (1 + n % 100), now() - interval '1 day', 'many'
            FROM generate_series(1, 2000000) AS n
            """
        )
        project.execute("ALTER TABLE email_queue ENABLE TRIGGER USER")
        with old_callers(project, pause_s=0.002) as traffic:
            began = time.monotonic()
            kills = 0
            while True:
                process = start_migrate(project)
                try:
                    told, _ = process.communicate(timeout=1.0 + kills)
                    break
                except subprocess.TimeoutExpired:
                    os.kill(process.pid, signal.SIGKILL)
                    process.communicate()
                    kills += 1
            took_s = time.monotonic() - began
        print(f"\n{told}")
        assert process.returncode == 0
        assert traffic.errors == []
        print(
            f"\n2 M rows upgraded in {took_s:.1f} s with {kills} kills; "
            f"{traffic.total()} calls of old callers, the slowest {traffic.slowest_s:.2f} s"
        )
        until_now(lambda: not asyncio.run(pending(project.url)))
        left = project.execute(
            "SELECT count(*) AS n FROM email_queue "
            "WHERE status = 'processing' AND due_at IS NULL AND email_type = 'many'",
            "postgres",
        )
        assert left == [{"n": 0}]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            project.as_role("anon", "SELECT * FROM email_queue")
