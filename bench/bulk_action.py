"""What does it cost to retry or discard a whole group of dead letters, and how long is its longest step?"""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any
from uuid import UUID

import asyncpg

from bench.contenders import Postroom
from bench.report import Result, versions
from bench.servers import running_postgres, server_version
from postroom.database.audit import Actor
from postroom.database.connect import Database
from postroom.queue import bulk
from postroom.queue.dead_letters import What
from postroom.queues import QUEUES

QUESTION = "a retry and a discard of a whole group of dead letters, in steps"
BY = Actor("bench", "cli")

_DEAD = """
    INSERT INTO email_queue (to_email, subject, html, status, dead_reason, last_error, attempts, failed_at)
    SELECT
        'customer' || n || '@example.com', 'Order ' || n, repeat('<p>Thank you.</p>', 60), 'dead_letter',
        'exhausted', '451 4.3.0 Temporary lookup failure', 6, now() - n * interval '10 ms'
    FROM generate_series(1, $1::integer) AS n
"""


def run(*, count: int = 200_000, step_rows: int = bulk.STEP_ROWS) -> Result:
    """
    Measure each action once, on a group of its own.

    Args:
        count: Dead letters of a kilobyte.
        step_rows: How many are changed in a transaction; as many as there are: all in one.
    """
    bulk.STEP_ROWS = step_rows
    return asyncio.run(_run(count))


async def _run(count: int) -> Result:
    result = Result("bulk_action", QUESTION, ["", "rows/s", "in all", "a step", "longest", "WAL a row"])
    with running_postgres() as server_url:
        url = await Postroom.make_database(server_url)
        database = await Database.open(url)
        db = await asyncpg.connect(url)
        try:
            actions: tuple[What, ...] = ("retry", "discard")
            for what in actions:
                await db.execute("TRUNCATE email_queue")
                await db.execute(_DEAD, count)
                await db.execute("VACUUM ANALYZE email_queue")
                await db.execute("CHECKPOINT")
                measured = await _measure(database, db, what, count)
                steps_ms = measured["steps_ms"]
                result.rows.append(
                    (
                        what,
                        f"{count / measured['took_s']:,.0f}",
                        f"{measured['took_s']:.1f} s",
                        f"{median(steps_ms):.0f} ms",
                        f"{max(steps_ms):.0f} ms",
                        f"{measured['wal_bytes'] / count:,.0f} bytes",
                    )
                )
                result.measured[what] = measured
            result.settings = {
                "dead letters": f"{count:,} of 1 KB",
                "rows a step": f"{bulk.STEP_ROWS:,}",
                "versions": f"PostgreSQL {await server_version(url)}, {versions('asyncpg')}",
            }
        finally:
            await db.close()
            await database.close()
    return result


async def _measure(database: Database, db: Any, what: What, count: int) -> dict[str, Any]:
    begun_at = await db.fetchval("SELECT pg_current_wal_lsn()::text")
    action_id: UUID = await bulk.begin(database, QUEUES, what, reason="exhausted", by=BY)
    steps_ms: list[float] = []
    began_s = last_s = time.monotonic()

    def stepped(_done: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        steps_ms.append((now_s - last_s) * 1000)
        last_s = now_s

    changed = await bulk.run(database, action_id, BY, report=stepped)
    took_s = time.monotonic() - began_s
    if len(changed.done) != count:
        raise RuntimeError(f"{len(changed.done):,} of {count:,} were changed: {changed.missed}")
    wal_bytes = await db.fetchval("SELECT pg_current_wal_lsn() - $1::text::pg_lsn", begun_at)
    return {"took_s": took_s, "steps_ms": steps_ms, "wal_bytes": int(wal_bytes)}
