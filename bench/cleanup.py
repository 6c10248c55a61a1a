"""How much of its speed does a full queue keep while cleanup deletes millions of old rows beside it?"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from statistics import median

from bench.contenders import Postroom
from bench.old_mails import make_old_mails, queue_mails
from bench.report import Result, spread, versions
from bench.servers import Sink, running_postgres, server_version

QUESTION = "mails a second from a full queue through SMTP, alone and beside a cleanup"


def run(*, old_rows: int | None = None, count: int = 10_000, rounds: int = 5) -> Result:
    """
    Measure in turns: the cleanup stands still (SIGSTOP) for every other drain, and is ended after the last.

    Args:
        old_rows: Sent rows of a year ago, of about 250 bytes; POSTROOM_BENCH_OLD_ROWS, or 5 million.
        count: Mails in the queue at each turn.
    """
    if old_rows is None:
        old_rows = int(os.environ.get("POSTROOM_BENCH_OLD_ROWS", "5000000"))
    return asyncio.run(_run(old_rows, count, rounds))


async def _run(old_rows: int, count: int, rounds: int) -> Result:
    result = Result("cleanup", QUESTION, ["", "mails/s", "of alone"])
    rates: dict[str, list[float]] = {"alone": [], "beside a cleanup": []}
    with running_postgres() as server_url, Sink.running() as sink:
        url = await Postroom.make_database(server_url)
        house = Postroom(url, sink, "off")
        await house.empty()
        await make_old_mails(url, old_rows, ago="1 year")
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
            took_s = time.monotonic() - began - stood_s
            cleanup.terminate()
            deleted = _deleted((await asyncio.to_thread(cleanup.communicate))[0])
        finally:
            cleanup.kill()
        result.settings = {
            "queue": f"{count:,} mails of 2 KB of HTML, beside {old_rows:,} rows to be deleted",
            "cleanup": f"deleted {deleted:,} rows in the {took_s:.0f} s that it ran",
            "figures": f"median of {rounds} rounds in turns (lowest-highest); of alone: in a round",
            "PostgreSQL": f"{await server_version(url)}, fsync on",
            "versions": versions("postroom", "asyncpg"),
        }
    for name, found in rates.items():
        shares = [beside / alone for beside, alone in zip(found, rates["alone"], strict=True)]
        result.rows.append([name, spread(found), f"{median(shares):.2f}"])
    result.measured = dict(rates)
    return result


def _deleted(said: str) -> int:
    """What it says that it deleted of retention.sent."""
    found = re.search(r"retention\.sent = \S+ ([\d,]+) deleted", said)
    if found is None:
        raise RuntimeError(f"the cleanup said {said!r}")
    return int(found[1].replace(",", ""))


async def _drain(house: Postroom, count: int) -> float:
    """Queue mails, give the word, and check that each has arrived; mails a second."""
    assert house.sink is not None
    await queue_mails(house.database_url, house.insert, count)
    house.sink.reset()
    with house.running("drain") as worker:
        took_s, _ = await asyncio.to_thread(worker.work)
    arrived = house.sink.report()
    if arrived["mails"] != count:
        raise RuntimeError(f"of {count} mails {arrived} arrived")
    return count / took_s
