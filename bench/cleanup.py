"""How much of its speed does a full queue keep while cleanup deletes five million old rows beside it?"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from statistics import median

import asyncpg

from bench import mails
from bench.contenders import Postroom
from bench.report import Result, spread, versions
from bench.servers import Sink, execute, running_postgres, server_version

QUESTION = "mails a second from a full queue through SMTP, alone and beside a cleanup"
OLD_ROWS_A_STATEMENT = 250_000


def run(*, old_rows: int = 5_000_000, count: int = 10_000, rounds: int = 5) -> Result:
    """
    Measure in turns: the cleanup is stopped (SIGSTOP) for every other drain.

    Args:
        old_rows: Sent rows of a year ago, of about 250 bytes.
        count: Mails in the queue at each turn.
    """
    return asyncio.run(_run(old_rows, count, rounds))


async def _run(old_rows: int, count: int, rounds: int) -> Result:
    result = Result("cleanup", QUESTION, ["", "mails/s", "of alone"])
    rates: dict[str, list[float]] = {"alone": [], "beside a cleanup": []}
    with running_postgres() as server_url, Sink.running() as sink:
        url = await Postroom.make_database(server_url)
        house = Postroom(url, sink, "off")
        await house.empty()
        await _make_old(url, old_rows)
        began = time.monotonic()
        cleanup = subprocess.Popen(
            [sys.executable, "-m", "postroom", "cleanup"],
            env={**os.environ, "POSTROOM_DATABASE_URL": url},
            stdout=subprocess.PIPE,
            text=True,
        )
        stood_s = 0.0
        try:
            await asyncio.sleep(2)
            for _ in range(rounds):
                rates["beside a cleanup"].append(await _drain(house, count))
                if cleanup.poll() is not None:
                    raise RuntimeError(f"the cleanup ended ({cleanup.returncode}) before the measurement did")
                cleanup.send_signal(signal.SIGSTOP)
                stopped = time.monotonic()
                rates["alone"].append(await _drain(house, count))
                cleanup.send_signal(signal.SIGCONT)
                stood_s += time.monotonic() - stopped
            said = (await asyncio.to_thread(cleanup.communicate))[0].splitlines()[0]
        finally:
            cleanup.kill()
        took_s = time.monotonic() - began - stood_s
        result.settings = {
            "queue": f"{count:,} mails of 2 KB of HTML, beside {old_rows:,} rows to be deleted",
            "cleanup": f"{said}; {old_rows / took_s:,.0f} rows/s while it ran",
            "figures": f"median of {rounds} rounds in turns (lowest-highest)",
            "PostgreSQL": f"{await server_version(url)}, fsync on",
            "versions": versions("postroom", "asyncpg"),
        }
    for name, found in rates.items():
        result.rows.append([name, spread(found), f"{median(found) / median(rates['alone']):.2f}"])
    result.measured = dict(rates)
    return result


async def _make_old(url: str, old_rows: int) -> None:
    for first in range(0, old_rows, OLD_ROWS_A_STATEMENT):
        await execute(
            url,
            f"""
            INSERT INTO email_queue (to_email, subject, html, status, due_at, sent_at, created_at)
            SELECT
                'old' || n || '@example.com', 'Old ' || n, '<p>Old</p>', 'sent', NULL,
                now() - interval '1 year', now() - interval '1 year'
            FROM generate_series({first + 1}, {min(first + OLD_ROWS_A_STATEMENT, old_rows)}) AS n
            """,
        )
    await execute(url, "VACUUM ANALYZE email_queue")
    await execute(url, "CHECKPOINT")


async def _drain(house: Postroom, count: int) -> float:
    """Queue mails, give the word, and check that each has arrived; mails a second."""
    connection = await asyncpg.connect(house.database_url)
    try:
        await connection.executemany(
            house.insert,
            [
                (mails.recipient(number, count), mails.subject(number), mails.html())
                for number in range(count)
            ],
        )
    finally:
        await connection.close()
    house.sink.reset()
    with house.running("drain") as worker:
        took_s, _ = await asyncio.to_thread(worker.work)
    arrived, unsent = house.sink.report(), await house.unsent()
    if (arrived["mails"], unsent) != (count, 0):
        raise RuntimeError(f"of {count} mails {unsent} are not marked as sent; {arrived}")
    return count / took_s
