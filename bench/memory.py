"""How much memory does a worker take while a million mails wait, and does it grow as it works them off?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import asyncpg

from bench.contenders import Postroom
from bench.email_drain import NO_LIMIT
from bench.program import Program, log_path
from bench.report import Result, versions
from bench.servers import running_postgres, server_version

QUESTION = "MB of a worker's memory while mails wait, by how many it has delivered"
HTML_BYTES = 1_024
LOOK_S = 0.05
WORK_S_MAX = 1800.0


def run(*, count: int = 1_000_000, looks: tuple[int, ...] = (100_000, 500_000)) -> Result:
    """
    Let one worker drain the queue, and look at its resident memory on the way.

    Args:
        count: Mails in the queue.
        looks: Look after so many were delivered; and before the first and after the last.
    """
    return asyncio.run(_run(count, looks))


async def _run(count: int, looks: tuple[int, ...]) -> Result:
    result = Result("memory", QUESTION, ["delivered", "MB", "most so far"])
    with running_postgres() as server_url:
        contender = Postroom(await Postroom.make_database(server_url), None, NO_LIMIT)
        result.settings |= {
            "queue": f"{count:,} mails of {HTML_BYTES:,} bytes of HTML",
            "figures": "VmRSS and VmHWM of the worker's process",
            "PostgreSQL": await server_version(server_url),
            "postroom": "one process, default settings, with a transport that does nothing",
            "versions": versions("postroom", "asyncpg", "uvloop"),
        }
        await _fill(contender, count)
        with contender.running("drain") as worker:
            _note(result, "0, has started", worker)
            working = Thread(target=worker.work, args=(WORK_S_MAX,))
            working.start()
            delivered = _delivered()
            for wanted in looks:
                while working.is_alive() and next(delivered) < wanted:
                    time.sleep(LOOK_S)
                _note(result, f"{next(delivered):,}", worker)
            await asyncio.to_thread(working.join)
            _note(result, f"{next(delivered):,}, all", worker)
        if unsent := await contender.unsent():
            raise RuntimeError(f"of {count} mails {unsent} are not marked as sent")
    return result


async def _fill(contender: Postroom, count: int) -> None:
    await contender.empty()
    connection = await asyncpg.connect(contender.database_url)
    try:
        await connection.execute(
            """
            INSERT INTO email_queue (to_email, subject, html)
            SELECT 'customer' || n || '@example.com', 'Order ' || n, repeat('x', $2)
            FROM generate_series(1, $1::integer) AS n
            """,
            count,
            HTML_BYTES,
            timeout=300,
        )
        await connection.execute("VACUUM ANALYZE email_queue", timeout=300)
    finally:
        await connection.close()


def _delivered() -> Iterator[int]:
    """How many mails the worker's log says are sent, each time anew."""
    count = 0
    with log_path("postroom_worker").open("rb") as log:
        while True:
            count += log.read().count(b'"email.sent"')
            yield count


def _note(result: Result, delivered: str, worker: Program) -> None:
    status = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        if ":" in line
    )
    now_mb, most_mb = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    result.rows.append([delivered, f"{now_mb:.0f}", f"{most_mb:.0f}"])
    result.measured[delivered] = {"mb": now_mb, "most_mb": most_mb}
