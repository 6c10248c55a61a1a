"""How much slower is the queue while somebody's forgotten transaction holds a snapshot?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any
from uuid import uuid4

import asyncpg

from bench.contenders import Postroom
from bench.report import Result, spread
from bench.servers import running_postgres, server_version

QUESTION = (
    "mails a second through claim, begin and settle, behind settled mails that a snapshot keeps from vacuum"
)
LIMITS = ("off", "1000000/60s")
CLAIM, BATCH = 80, 20
"""What a worker with its default settings claims, and what it begins and settles in one statement."""

FILL = 200
"""The same for the mails before: a tenth of the book's versions that such a worker leaves (decision 0013)."""


def run(*, settled: int = 500_000, count: int = 10_000, rounds: int = 3) -> Result:
    """
    Settle many mails with and without a snapshot that is older, then measure.

    Args:
        settled: Mails that were settled since the snapshot was taken.
        count: Mails that are measured, a round.
    """
    return asyncio.run(_run(settled, count, rounds))


async def _run(settled: int, count: int, rounds: int) -> Result:
    result = Result("held_snapshot", QUESTION, ["", "mails/s", "ratio", "empty look ms"])
    with running_postgres() as server_url:
        url = await Postroom.make_database(server_url)
        result.settings |= {
            "before": f"{settled:,} mails to {settled // 3:,} recipients were settled, in batches of {FILL}",
            "measured": f"{count:,} mails, claims of {CLAIM}, starts and settles of {BATCH}",
            "figures": f"median of {rounds} rounds (lowest-highest)",
            "PostgreSQL": f"{await server_version(url)}, fsync on",
        }
        for limit in LIMITS:
            baseline = 1.0
            for held in (False, True):
                async with _worker(url, limit, settled // 3, held=held) as worker:
                    await worker.drain(settled, claim=2 * FILL, batch=FILL)
                    rates = [await worker.drain(count, claim=CLAIM, batch=BATCH) for _ in range(rounds)]
                    empty_ms = [await worker.empty_look_ms() for _ in range(21)]
                name = f"limits {limit}, {'a snapshot is held' if held else 'no snapshot'}"
                baseline = baseline if held else median(rates)
                result.rows.append(
                    [name, spread(rates), f"{median(rates) / baseline:.2f}", f"{median(empty_ms):.1f}"]
                )
                result.measured[name] = {"rates": rates, "empty_ms": empty_ms}
    return result


class _Worker:
    """A worker that is only its SQL calls: nothing is sent."""

    def __init__(self, connection: asyncpg.Connection[Any], recipients: int) -> None:
        self._connection = connection
        self._recipients = recipients
        self._id = uuid4()

    async def register(self) -> None:
        await self._connection.execute(
            "SELECT postroom.register_worker($1, 'email', 'bench', 1, '0', true, false, '{}')", self._id
        )

    async def drain(self, count: int, *, claim: int, batch: int) -> float:
        """Queue so many mails and work them off; mails a second of the second part."""
        for first in range(0, count, 20_000):
            await self._connection.execute(
                """
                INSERT INTO email_queue (to_email, subject, html)
                SELECT
                    'customer' || floor(random() * $2::int) || '@example.com', 'Order ' || n, repeat('x', 500)
                FROM generate_series(1, $1::int) AS n
                """,
                min(20_000, count - first),
                self._recipients,
                timeout=60,
            )
        began = time.monotonic()
        left = count
        while left:
            rows = await self._connection.fetch(
                "SELECT id, lease_no FROM postroom.claim_emails($1, $2, 'shop@example.com')", self._id, claim
            )
            for place in range(0, len(rows), batch):
                await self._work(rows[place : place + batch])
            left -= len(rows)
        return count / (time.monotonic() - began)

    async def _work(self, rows: list[asyncpg.Record]) -> None:
        held = (self._id, [row["id"] for row in rows], [row["lease_no"] for row in rows])
        await self._connection.fetch("SELECT * FROM postroom.begin_emails($1, $2, $3, '{}', '{}')", *held)
        await self._connection.fetch(
            "SELECT * FROM postroom.settle_emails($1, $2, $3, $4, $5, $6, $7)",
            *held,
            ["done"] * len(rows),
            ["250 ok"] * len(rows),
            [None] * len(rows),
            ['{"outcome": "done"}'] * len(rows),
        )

    async def empty_look_ms(self) -> float:
        """What a worker's look at an empty queue takes."""
        began = time.monotonic()
        await self._connection.fetch("SELECT postroom.claim_emails($1, $2)", self._id, CLAIM)
        return (time.monotonic() - began) * 1000


@asynccontextmanager
async def _worker(url: str, limit: str, recipients: int, *, held: bool) -> AsyncIterator[_Worker]:
    connection, holder = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        await connection.execute("TRUNCATE email_queue, rate_limit_counters, postroom.workers")
        for key in ("global", "recipient"):
            await connection.execute("SELECT postroom.set_setting($1, $2)", f"email.limit.{key}", limit)
        if held:
            await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM email_queue")
        worker = _Worker(connection, recipients)
        await worker.register()
        yield worker
    finally:
        await holder.close()
        await connection.close()
