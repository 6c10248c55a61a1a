"""How many mails a second go from a full queue through SMTP until they are marked as sent?"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field, replace
from statistics import median

import asyncpg

from bench.contenders import Contender, PostOffice, Postroom, best_of, fill
from bench.report import Result, ratio, spread, versions
from bench.servers import Sink, running_postgres, server_version

QUESTION = "mails a second from a full queue through SMTP until they are marked as sent"
NO_LIMIT, HIGH_LIMIT = "off", "1000000/60s"

LIMIT = "postfix's smtp-source, for the limit"
LIMIT_SESSIONS = 20
_SMTP_SOURCE = shutil.which("smtp-source", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

PEER_PROCESSES = (1, 2, 4, 8)
PEER_THREADS = (1, 5, 10)
PEER_BATCH = 5_000
"""All that is in the queue: a smaller batch costs it a query and new connections, and gains nothing."""


@dataclass
class Rounds:
    """
    One contender's measurements, a value a round.

    Attributes:
        rates: Mails a second, from the word to the last mail's mark.
        cpu_ms: CPU time of its own processes a mail, without the database's and the sink's.
        start_s: What its process took to be ready: not in the rates.
    """

    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)


def run(*, count: int = 10_000, rounds: int = 3, tuning_count: int = 1_000, with_peer: bool = True) -> Result:
    """
    Measure in turns, so that whatever else the machine does hits all alike.

    Args:
        count: Mails in the queue.
        tuning_count: The same while the peer's best settings are looked for.
    """
    return asyncio.run(_run(count, rounds, tuning_count, with_peer))


async def _run(count: int, rounds: int, tuning_count: int, with_peer: bool) -> Result:
    result = Result(
        "email_drain", QUESTION, ["", "mails/s", "ratio", "of the limit", "CPU ms a mail", "start s"]
    )
    with running_postgres() as server_url, Sink.running() as sink:
        url = await Postroom.make_database(server_url)
        contenders: list[Contender] = [
            Postroom(url, sink, NO_LIMIT, workers=2),
            Postroom(url, sink, NO_LIMIT),
            Postroom(url, sink, HIGH_LIMIT),
        ]
        result.settings |= {
            "queue": f"{count:,} mails of 2 KB of HTML to {_recipients(count):,} recipients",
            "figures": f"median of {rounds} rounds in turns (lowest-highest); the process has started before",
            "PostgreSQL": f"{await server_version(url)}, fsync on, {await _commit_ms(url):.1f} ms a commit",
            "mails": "each has HTML of its own",
            "postroom": "default settings; makes a plain part too, and logs each mail",
        }
        if with_peer:
            peer, tried = await _tuned(
                PostOffice(await PostOffice.make_database(server_url), sink), tuning_count
            )
            contenders.append(peer)
            result.measured["the peer's settings"] = tried
            result.settings[peer.name] = (
                f"{peer.settings}: the best of {len(tried)}; the HTML part alone, no log"
            )
        result.settings["versions"] = versions(
            "postroom", "asyncpg", "django-post-office", "Django", "psycopg"
        )
        measured = {contender.name: Rounds() for contender in contenders}
        if _SMTP_SOURCE is not None:
            measured[LIMIT] = Rounds()
            result.settings[LIMIT] = f"-d -s {LIMIT_SESSIONS}: no queue, no database, connections kept"
        else:
            result.notes.append(
                "smtp-source was not measured: Debian's package postfix, which has it, is missing"
            )
        for turn in range(rounds):
            for place in range(len(contenders)):
                contender = contenders[(place + turn) % len(contenders)]
                await _drain(contender, count, sink, measured[contender.name])
            if LIMIT in measured:
                await asyncio.to_thread(_send_without_queue, count, sink, measured[LIMIT])
    _tabulate(result, measured)
    return result


async def _drain(contender: Contender, count: int, sink: Sink, into: Rounds) -> None:
    """Fill the queue, give the word, wait for the end, and check that every mail arrived once."""
    await fill(contender, count, _recipients(count))
    sink.reset()
    with contender.running("drain") as worker:
        took_s, said = await asyncio.to_thread(worker.work)
    arrived, unsent = sink.report(), await contender.unsent()
    if (arrived["mails"], arrived["subjects"], unsent) != (count, count, 0):
        raise RuntimeError(f"{contender.name}: of {count} mails {unsent} are not marked as sent; {arrived}")
    into.rates.append(count / took_s)
    into.cpu_ms.append(said["cpu_s"] * 1000 / count)
    into.start_s.append(worker.start_s)


async def _tuned(peer: PostOffice, count: int) -> tuple[PostOffice, dict[str, float]]:
    """The peer with the settings that serve it best here, and what each of them came to."""

    async def rate_of(tried: PostOffice) -> float:
        rounds = Rounds()
        await _drain(tried, count, peer.sink, rounds)
        return rounds.rates[0]

    return await best_of(
        (
            replace(peer, processes=processes, threads=threads, batch=PEER_BATCH)
            for processes in PEER_PROCESSES
            for threads in PEER_THREADS
        ),
        rate_of,
    )


def _tabulate(result: Result, measured: dict[str, Rounds]) -> None:
    slowest = min(median(rounds.rates) for rounds in measured.values())
    limit = median(measured[LIMIT].rates) if LIMIT in measured else None
    for name, rounds in measured.items():
        result.rows.append(
            [
                name,
                spread(rounds.rates),
                ratio(median(rounds.rates), slowest),
                f"{median(rounds.rates) / limit:.2f}" if limit else "",
                f"{median(rounds.cpu_ms):.2f}",
                f"{median(rounds.start_s):.1f}",
            ]
        )
        result.measured[name] = vars(rounds)


def _recipients(count: int) -> int:
    return max(count // 3, 1)


async def _commit_ms(url: str) -> float:
    """What one commit costs here: a value near 0 would be a disk that does not keep its word."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE one_row (id integer)")
        began = time.perf_counter()
        for _ in range(100):
            await connection.execute("INSERT INTO one_row VALUES (1)")
        took_s = time.perf_counter() - began
        await connection.execute("DROP TABLE one_row")
    finally:
        await connection.close()
    return took_s * 1000 / 100


def _send_without_queue(count: int, sink: Sink, into: Rounds) -> None:
    """What postfix's smtp-source does: a measure of the sink and the machine."""
    assert _SMTP_SOURCE is not None
    command = [_SMTP_SOURCE, "-d", "-s", str(LIMIT_SESSIONS), "-m", str(count), "-l", "2048"]
    before, began = os.times(), time.monotonic()
    subprocess.run([*command, f"127.0.0.1:{sink.port}"], check=True, timeout=60)
    into.rates.append(count / (time.monotonic() - began))
    after = os.times()
    into.cpu_ms.append((sum(after[2:4]) - sum(before[2:4])) * 1000 / count)
    into.start_s.append(0.0)
