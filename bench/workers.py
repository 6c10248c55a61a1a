"""Do more workers on one queue get more done, and do they at least not lose by it?"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from statistics import median

from bench.contenders import Postroom, fill
from bench.email_drain import NO_LIMIT
from bench.report import Result, spread, versions
from bench.servers import running_postgres, server_version

QUESTION = "mails a second through one queue, with a transport that does nothing, by the number of workers"
WORKERS = (1, 2, 4)


def run(*, count: int = 20_000, rounds: int = 5) -> Result:
    """
    Measure in turns, so that whatever else the machine does hits all alike.

    Args:
        count: Mails in the queue.
    """
    return asyncio.run(_run(count, rounds))


async def _run(count: int, rounds: int) -> Result:
    result = Result("workers", QUESTION, ["workers", "mails/s", "of one", "CPU us a mail: workers"])
    with running_postgres() as server_url:
        contender = Postroom(await Postroom.make_database(server_url), None, NO_LIMIT)
        result.settings |= {
            "queue": f"{count:,} mails of 2 KB of HTML",
            "figures": f"median of {rounds} rounds in turns (lowest-highest); ratios within a round",
            "machine": f"{os.cpu_count()} cores for workers and PostgreSQL together",
            "PostgreSQL": f"{await server_version(server_url)}, fsync on",
            "postroom": "a process for each worker, default settings",
            "versions": versions("postroom", "asyncpg", "uvloop"),
        }
        rates: dict[int, list[float]] = {number: [] for number in WORKERS}
        cpu_us: dict[int, list[float]] = {number: [] for number in WORKERS}
        for turn in range(rounds):
            for place in range(len(WORKERS)):
                number = WORKERS[(place + turn) % len(WORKERS)]
                rate, used_us = await _drain(contender, count, number)
                rates[number].append(rate)
                cpu_us[number].append(used_us)
    for number in WORKERS:
        of_one = median(some / one for some, one in zip(rates[number], rates[1], strict=True))
        result.rows.append(
            [str(number), spread(rates[number]), f"{of_one:.2f}", f"{median(cpu_us[number]):.0f}"]
        )
        result.measured[str(number)] = {"rates": rates[number], "cpu_us": cpu_us[number]}
    return result


async def _drain(contender: Postroom, count: int, workers: int) -> tuple[float, float]:
    """Mails a second from the word to the last worker's end, and CPU us a mail of all of them."""
    await fill(contender, count, count // 3)
    with ExitStack() as stack:
        ready = [stack.enter_context(contender.running("drain")) for _ in range(workers)]
        ended = await asyncio.gather(*(asyncio.to_thread(worker.work) for worker in ready))
    if unsent := await contender.unsent():
        raise RuntimeError(f"{workers} workers: of {count} mails {unsent} are not marked as sent")
    if (sent := sum(said["sent"] for _, said in ended)) != count:
        raise RuntimeError(f"{workers} workers: {sent} attempts for {count} mails")
    used_s = sum(said["cpu_s"] for _, said in ended)
    return count / max(took_s for took_s, _ in ended), used_s * 1e6 / count
