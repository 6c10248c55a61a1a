"""What the HTTP doors store a second before they answer: posts by clients, each mode of the doors in turn."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal
from urllib.parse import urlsplit

import asyncpg

from bench import program
from bench.report import Result, percentile, ratio, spread, versions
from bench.servers import create_database, running_postgres, server_version
from postroom.database.migrate import migrate

SECRET = "whsec_of_the_benchmark"
CONNECTIONS = (32, 64)
WARM_UP_POSTS = 300
MODES = {
    "none": "the same server, no database",
    "grouped": "postroom: whatever waits in one statement",
    "single": "a statement for each, 10 at once",
}
Kind = Literal["webhook", "email"]
COUNTS = {
    "webhook": "SELECT count(*) FROM webhook_retry_queue WHERE starts_with(webhook_event_id, $1)",
    "email": "SELECT count(*) FROM email_queue WHERE starts_with(to_email, $1)",
}
"""How many are stored whose name begins so."""


@dataclass
class Rounds:
    """One mode's measurements: posts a second, every answer's time in ms, CPU us a post."""

    rates: list[float] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)
    doors_us: list[float] = field(default_factory=list)
    client_us: list[float] = field(default_factory=list)


async def measure(result: Result, kind: Kind, *, count: int, rounds: int) -> None:
    """
    Post over kept connections, and put what came of it into a result.

    Args:
        kind: Webhook events, or e-mails to be queued.
        count: Posts a round.
    """
    result.columns = [
        *("", "posts/s", "of no database", "of one each"),
        *("p50 ms", "p99 ms", "CPU us", "of a client"),
    ]
    measured = {(clients, mode): Rounds() for clients in CONNECTIONS for mode in MODES}
    with running_postgres() as server_url:
        url = await create_database(server_url, kind)
        await migrate(url)
        for turn in range(rounds):
            for (clients, mode), into in measured.items():
                await _measure(url, kind, mode, clients, count, turn, into)
        result.settings |= {
            "posts": f"{count:,} a round",
            "client": "one process, kept connections, each sends when it has its answer",
            "figures": f"median of {rounds} rounds in turns (lowest-highest); CPU of the server, a post",
            "PostgreSQL": f"{await server_version(url)}, fsync on",
            "versions": versions("postroom", "asyncpg", "uvicorn", "starlette"),
        }
    for (clients, mode), one in measured.items():
        rate = median(one.rates)
        times = sorted(one.waits_ms)
        result.rows.append(
            [
                f"{clients} clients, {MODES[mode]}",
                spread(one.rates),
                f"{rate / median(measured[clients, 'none'].rates):.2f}",
                ratio(rate, median(measured[clients, "single"].rates)),
                f"{percentile(times, 50):.1f}",
                f"{percentile(times, 99):.1f}",
                f"{median(one.doors_us):.0f}",
                f"{median(one.client_us):.0f}",
            ]
        )
        result.measured[f"{clients} {mode}"] = {
            "rates": one.rates,
            "doors_us": one.doors_us,
            "client_us": one.client_us,
        }


async def _measure(
    url: str, kind: Kind, mode: str, clients: int, count: int, turn: int, into: Rounds
) -> None:
    prefix = f"{mode}_{clients}_{turn}"
    with program.running("http_doors", {"database_url": url, "secret": SECRET, "mode": mode}) as doors:
        said = (await asyncio.to_thread(doors.work))[1]
        await _post(said, kind, f"{prefix}_warm", clients, WARM_UP_POSTS)
        began_s = _cpu_s(said["pid"])
        came = await _post(said, kind, f"{prefix}_post", clients, count)
        into.doors_us.append((_cpu_s(said["pid"]) - began_s) / count * 1e6)
    into.rates.append(count / came["took_s"])
    into.waits_ms += came["waits_ms"]
    into.client_us.append(came["cpu_s"] / count * 1e6)
    if mode != "none":
        stored = await _stored(url, kind, f"{prefix}_post")
        if stored != count:
            raise RuntimeError(f"{mode}: {count} were answered 200, {stored} are stored")


async def _post(doors: dict[str, Any], kind: Kind, prefix: str, clients: int, count: int) -> dict[str, Any]:
    settings = {
        "port": urlsplit(doors["url"]).port,
        "what": kind,
        "secret": SECRET,
        "prefix": prefix,
        "count": count,
        "connections": clients,
    }
    with program.running("http_load", settings) as load:
        return (await asyncio.to_thread(load.work))[1]


def _cpu_s(pid: int) -> float:
    """The CPU time that a process has used."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in threads) / 1e9


async def _stored(url: str, kind: Kind, prefix: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        stored: int = await connection.fetchval(COUNTS[kind], prefix)
        return stored
    finally:
        await connection.close()
