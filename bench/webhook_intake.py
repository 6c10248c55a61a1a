"""How many webhook events a second does the door store before it answers, and what does each cost?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from bench import program
from bench.report import Result, percentile, ratio, spread, versions
from bench.servers import create_database, running_postgres, server_version
from postroom.database.migrate import migrate

QUESTION = "webhook events a second that are stored before they are answered 200"
SECRET = "whsec_of_the_benchmark"
CONNECTIONS = (32, 64)
WARM_UP_EVENTS = 300
MODES = {
    "none": "the same server, no database",
    "grouped": "postroom: whatever waits in one insert",
    "single": "an insert for each event, 10 at once",
}


@dataclass
class Rounds:
    """One mode's measurements: events a second, every answer's time in ms, CPU us an event."""

    rates: list[float] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)
    door_us: list[float] = field(default_factory=list)
    client_us: list[float] = field(default_factory=list)


def run(*, count: int = 8_000, rounds: int = 3) -> Result:
    """
    Post signed events of 2 KB over kept connections, each mode in turn.

    Args:
        count: Events a round.
    """
    return asyncio.run(_run(count, rounds))


async def _run(count: int, rounds: int) -> Result:
    columns = [
        "",
        "events/s",
        "of no database",
        "of an insert each",
        "p50 ms",
        "p99 ms",
        "CPU us",
        "client's",
    ]
    result = Result("webhook_intake", QUESTION, columns)
    measured = {(clients, mode): Rounds() for clients in CONNECTIONS for mode in MODES}
    with running_postgres() as server_url:
        url = await create_database(server_url, "intake")
        await migrate(url)
        for turn in range(rounds):
            for (clients, mode), into in measured.items():
                await _measure(url, mode, clients, count, turn, into)
        result.settings |= {
            "events": f"{count:,} a round, 2 KB each, every one with an id of its own, signed as Stripe does",
            "client": "one process, kept connections, each sends when it has its answer",
            "figures": f"median of {rounds} rounds in turns (lowest-highest); CPU an event",
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
                f"{median(one.door_us):.0f}",
                f"{median(one.client_us):.0f}",
            ]
        )
        result.measured[f"{clients} {mode}"] = {
            "rates": one.rates,
            "door_us": one.door_us,
            "client_us": one.client_us,
        }
    return result


async def _measure(url: str, mode: str, clients: int, count: int, turn: int, into: Rounds) -> None:
    prefix = f"evt_{mode}_{clients}_{turn}"
    with program.running("webhook_door", {"database_url": url, "secret": SECRET, "mode": mode}) as door:
        said = (await asyncio.to_thread(door.work))[1]
        await _post(said, f"{prefix}_warm", clients, WARM_UP_EVENTS)
        began_s = _cpu_s(said["pid"])
        came = await _post(said, f"{prefix}_event", clients, count)
        into.door_us.append((_cpu_s(said["pid"]) - began_s) / count * 1e6)
    into.rates.append(count / came["took_s"])
    into.waits_ms += came["waits_ms"]
    into.client_us.append(came["cpu_s"] / count * 1e6)
    if mode != "none":
        stored = await _stored(url, f"{prefix}_event")
        if stored != count:
            raise RuntimeError(f"{mode}: {count} events were answered 200, {stored} are stored")


async def _post(door: dict[str, Any], prefix: str, clients: int, count: int) -> dict[str, Any]:
    settings = {
        "port": urlsplit(door["url"]).port,
        "path": "/webhooks/stripe",
        "secret": SECRET,
        "prefix": prefix,
        "count": count,
        "connections": clients,
    }
    with program.running("webhook_load", settings) as load:
        return (await asyncio.to_thread(load.work))[1]


def _cpu_s(pid: int) -> float:
    """The CPU time that a process has used."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in threads) / 1e9


async def _stored(url: str, prefix: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        stored: int = await connection.fetchval(
            "SELECT count(*) FROM webhook_retry_queue WHERE starts_with(webhook_event_id, $1)", prefix
        )
        return stored
    finally:
        await connection.close()
