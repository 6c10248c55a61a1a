"""How many jobs a second does one worker take from a full queue, do nothing with, and mark as done?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import asyncpg

from bench.contenders import Contender, Postroom, fill
from bench.email_drain import NO_LIMIT
from bench.report import Result, ratio, spread, versions
from bench.servers import running_postgres, server_cpu_s, server_version

QUESTION = (
    "jobs a second from a full queue through an attempt that does nothing until they are marked as done"
)

CONCURRENCY_BEST = 200
"""Attempts in flight where they take no time: 100 and 400 are no better."""


@dataclass
class Rounds:
    """
    One contender's measurements, a value a round.

    Attributes:
        rates: Jobs a second, from the word to the last job's mark.
        cpu_us: CPU time of its own processes a job.
        server_cpu_us: The same of all of PostgreSQL.
    """

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    server_cpu_us: list[float] = field(default_factory=list)


def run(*, count: int = 20_000, rounds: int = 5) -> Result:
    """
    Measure in turns, so that whatever else the machine does hits all alike.

    Args:
        count: Jobs in the queue, each a mail of 2 KB of HTML.
    """
    return asyncio.run(_run(count, rounds))


async def _run(count: int, rounds: int) -> Result:
    columns = ["", "jobs/s", "ratio", "CPU us a job: worker", "PostgreSQL"]
    result = Result("noop_drain", QUESTION, columns)
    with running_postgres() as server_url:
        url = await Postroom.make_database(server_url)
        contenders: list[Contender] = [
            Postroom(url, None, NO_LIMIT),
            Postroom(url, None, NO_LIMIT, concurrency=CONCURRENCY_BEST),
        ]
        result.settings |= {
            "queue": f"{count:,} jobs of 2 KB of HTML",
            "figures": f"median of {rounds} rounds in turns (lowest-highest); the process has started before",
            "PostgreSQL": f"{await server_version(server_url)}, fsync on",
            "postroom": "one process; a start mark, a deadline and a log line for each mail",
            "versions": versions("postroom", "asyncpg", "uvloop"),
        }
        await measure(result, contenders, count, rounds)
    return result


async def measure(result: Result, contenders: Sequence[Contender], count: int, rounds: int) -> None:
    """Let each contender drain its queue so many times, and put the figures into the table."""
    measured = {contender.name: Rounds() for contender in contenders}
    for turn in range(rounds):
        for place in range(len(contenders)):
            contender = contenders[(place + turn) % len(contenders)]
            await drain(contender, count, measured[contender.name])
    slowest = min(median(own.rates) for own in measured.values())
    for name, own in measured.items():
        result.rows.append(
            [
                name,
                spread(own.rates),
                ratio(median(own.rates), slowest),
                f"{median(own.cpu_us):.0f}",
                f"{median(own.server_cpu_us):.0f}",
            ]
        )
        result.measured[name] = vars(own)


async def drain(contender: Contender, count: int, into: Rounds) -> None:
    """
    Fill a contender's queue, give the word, wait for the end, and check that nothing is left.

    Its driver answers the word, once nothing is left, with a JSON object that has `cpu_s`.
    """
    await fill(contender, count, count // 3)
    with contender.running("drain") as worker:
        connection = await asyncpg.connect(contender.database_url)
        try:
            before_s = server_cpu_s(connection.get_server_pid())
            took_s, said = await asyncio.to_thread(worker.work)
            used_s = server_cpu_s(connection.get_server_pid()) - before_s
        finally:
            await connection.close()
    if unsent := await contender.unsent():
        raise RuntimeError(f"{contender.name}: of {count} jobs {unsent} are not marked as done")
    into.rates.append(count / took_s)
    into.cpu_us.append(said["cpu_s"] * 1e6 / count)
    into.server_cpu_us.append(used_s * 1e6 / count)
