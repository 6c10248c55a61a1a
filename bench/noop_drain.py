"""How many jobs a second does one worker take from a full queue, do nothing with, and mark as done?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import asyncpg

from bench import mails
from bench.contenders import Postroom, best_of, fill
from bench.email_drain import NO_LIMIT
from bench.program import Program
from bench.queue_peers import PAYLOAD_BYTES, QueuePeer, peers_on
from bench.report import Result, spread, versions
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


def run(
    *, count: int = 20_000, rounds: int = 3, tuning_count: int = 5_000, with_peers: bool = True
) -> Result:
    """
    Measure in turns, so that whatever else the machine does hits all alike.

    Args:
        count: Jobs in the queue; fewer for peers that are slow.
        tuning_count: The same while each peer's best settings are looked for.
    """
    return asyncio.run(_run(count, rounds, tuning_count, with_peers))


async def _run(count: int, rounds: int, tuning_count: int, with_peers: bool) -> Result:
    columns = ["", "jobs/s", "of the best peer", "CPU us a job: worker", "PostgreSQL"]
    result = Result("noop_drain", QUESTION, columns)
    with running_postgres() as server_url:
        url = await Postroom.make_database(server_url)
        ours = [
            Postroom(url, None, NO_LIMIT),
            Postroom(url, None, NO_LIMIT, concurrency=CONCURRENCY_BEST),
        ]
        peers = []
        for untuned in await peers_on(server_url, result.notes) if with_peers else []:
            peer, tried = await tuned(untuned, tuning_count)
            peers.append(peer)
            result.measured[f"the settings of {peer.package}"] = tried
            result.settings[peer.package] = f"{peer.settings}; the best of {len(tried)}"
        fewer = ", ".join(f"{one.package} {one.jobs_max:,}" for one in peers if one.jobs_max < count)
        result.settings |= {
            "queue": f"{count:,} jobs of {PAYLOAD_BYTES} bytes; of slow peers fewer: {fewer or 'none'}",
            "figures": f"median of {rounds} rounds in turns (lowest-highest); the process has started before",
            "PostgreSQL": f"{await server_version(server_url)}, fsync on",
            "postroom": "one process; a start mark, a deadline and a log line for each mail",
            "versions": versions("postroom", "asyncpg", "uvloop"),
        }
        await measure(result, ours, peers, count, rounds)
    return result


async def measure(
    result: Result, ours: Sequence[Postroom], peers: Sequence[QueuePeer], count: int, rounds: int
) -> None:
    """Let each contender drain its queue so many times, and put the figures into the table."""
    contenders: list[Postroom | QueuePeer] = [*ours, *peers]
    measured = {contender.name: Rounds() for contender in contenders}
    for turn in range(rounds):
        for place in range(len(contenders)):
            contender = contenders[(place + turn) % len(contenders)]
            if isinstance(contender, Postroom):
                await drain(contender, count, measured[contender.name])
            else:
                await drain_peer(contender, min(count, contender.jobs_max), measured[contender.name])
    best = max(
        (median(measured[peer.name].rates) for peer in peers), default=median(measured[ours[0].name].rates)
    )
    for name, own in measured.items():
        result.rows.append(
            [
                name,
                spread(own.rates),
                f"{median(own.rates) / best:.2f}x",
                f"{median(own.cpu_us):.0f}",
                f"{median(own.server_cpu_us):.0f}",
            ]
        )
        result.measured[name] = vars(own)


async def tuned(peer: QueuePeer, count: int) -> tuple[QueuePeer, dict[str, float]]:
    """The peer with the settings that serve it best here, and what each of them came to."""

    async def rate_of(tried: QueuePeer) -> float:
        rounds = Rounds()
        await drain_peer(tried, min(count, tried.jobs_max // 2), rounds)
        return rounds.rates[0]

    return await best_of(peer.tried(), rate_of)


async def drain(contender: Postroom, count: int, into: Rounds) -> None:
    """
    Fill our queue, give the word, wait for the end, and check that nothing is left.

    Its driver answers the word, once nothing is left, with a JSON object that has `cpu_s`.
    """
    await fill(contender, count, count // 3, mails.short_html(PAYLOAD_BYTES))
    with contender.running("drain") as worker:
        await work(contender.database_url, worker, count, into)
    if unsent := await contender.unsent():
        raise RuntimeError(f"{contender.name}: of {count} jobs {unsent} are not marked as done")


async def drain_peer(peer: QueuePeer, count: int, into: Rounds) -> None:
    """The same with a peer, whose driver waits itself until no job is left that is not done."""
    await asyncio.to_thread(peer.fill, count)
    await peer.vacuum()
    with peer.running("drain", count=count) as worker:
        await work(peer.database_url, worker, count, into)


async def work(database_url: str, worker: Program, count: int, into: Rounds) -> None:
    """Give a worker the word, and add what it took, also of PostgreSQL's CPU time."""
    connection = await asyncpg.connect(database_url)
    try:
        before_s = server_cpu_s(connection.get_server_pid())
        took_s, said = await asyncio.to_thread(worker.work)
        used_s = server_cpu_s(connection.get_server_pid()) - before_s
    finally:
        await connection.close()
    into.rates.append(count / said.get("took_s", took_s))
    into.cpu_us.append(said["cpu_s"] * 1e6 / count)
    into.server_cpu_us.append(used_s * 1e6 / count)
