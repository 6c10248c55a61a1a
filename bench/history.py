"""What do ten million settled mails of history cost the live queue, /metrics and `postroom status`?"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.request
from statistics import median

from bench.contenders import Postroom
from bench.noop_drain import Rounds, work
from bench.old_mails import ENQUEUE_MANY, make_old_mails, queue_mails
from bench.report import Result, spread, versions
from bench.servers import Sink, create_database, running_postgres, server_version, serving
from postroom.database.migrate import migrate

QUESTION = "a full queue through SMTP, /metrics and status, with many settled mails beside it and with none"
WAYS = {"INSERT": Postroom.insert, "enqueue_emails": ENQUEUE_MANY}
"""How mails come into the queue."""

SCRAPES, SCRAPE_AGAIN_S = 5, 1.2
"""A scrape is answered from memory where the one before is younger than a second."""


def run(*, history: int | None = None, count: int = 10_000, rounds: int = 5) -> Result:
    """
    Measure in turns in two databases of one server.

    Args:
        history: Settled mails of about 250 bytes; POSTROOM_BENCH_HISTORY, or 10 million.
        count: Mails in the queue at each turn.
    """
    if history is None:
        history = int(os.environ.get("POSTROOM_BENCH_HISTORY", "10000000"))
    return asyncio.run(_run(history, count, rounds))


async def _run(history: int, count: int, rounds: int) -> Result:
    columns = [
        *("", "mails/s", "of none", "CPU us a mail: worker", "PostgreSQL", "of none"),
        *("/metrics ms", "highest", "status s"),
    ]
    result = Result("history", QUESTION, columns)
    with running_postgres() as server_url, Sink.running() as sink:
        houses = {
            "no history": await _house(server_url, "empty", sink),
            f"{history:,} settled mails": await _house(server_url, "full", sink),
        }
        began = time.monotonic()
        await make_old_mails(list(houses.values())[1].database_url, history)
        fill_s = time.monotonic() - began
        drained: dict[tuple[str, str], Rounds] = {(way, name): Rounds() for way in WAYS for name in houses}
        scrapes: dict[str, list[float]] = {}
        status_s: dict[str, float] = {}
        for turn in range(rounds):
            for way, insert in WAYS.items():
                for name, house in list(houses.items())[:: 1 if turn % 2 else -1]:
                    await queue_mails(house.database_url, insert, count)
                    if name not in scrapes:
                        scrapes[name] = await asyncio.to_thread(_scrapes_ms, house.database_url)
                        status_s[name] = await asyncio.to_thread(_status_s, house.database_url)
                    await _drain(house, count, drained[way, name])
        result.settings = {
            "history": f"{history:,} rows of sent mails, made in {fill_s:.0f} s, vacuumed",
            "queue": f"{count:,} mails of 2 KB of HTML; they wait while /metrics and status are asked",
            "figures": f"medians of {rounds} rounds in turns (lowest-highest); of none: within a round",
            "status": "the whole program, with its start",
            "PostgreSQL": f"{await server_version(server_url)}, fsync on",
            "versions": versions("postroom", "asyncpg"),
        }
    for (way, name), found in drained.items():
        none = drained[way, next(iter(houses))]
        result.rows.append(
            [
                f"{way}, {name}",
                spread(found.rates),
                f"{_share(found.rates, none.rates):.2f}",
                f"{median(found.cpu_us):.0f}",
                f"{median(found.server_cpu_us):.0f}",
                f"{_share(found.server_cpu_us, none.server_cpu_us):.2f}",
                f"{median(scrapes[name]):.0f}",
                f"{max(scrapes[name]):.0f}",
                f"{status_s[name]:.1f}",
            ]
        )
        result.measured[f"{way}, {name}"] = vars(found)
    result.measured |= {"scrapes_ms": scrapes, "status_s": status_s}
    return result


def _share(found: list[float], none: list[float]) -> float:
    return median(one / other for one, other in zip(found, none, strict=True))


async def _house(server_url: str, name: str, sink: Sink) -> Postroom:
    url = await create_database(server_url, name)
    await migrate(url)
    house = Postroom(url, sink, "off")
    await house.empty()
    return house


async def _drain(house: Postroom, count: int, into: Rounds) -> None:
    """Give the word, and check that each mail has arrived."""
    assert house.sink is not None
    house.sink.reset()
    with house.running("drain") as worker:
        await work(house.database_url, worker, count, into)
    arrived = house.sink.report()
    if arrived["mails"] != count:
        raise RuntimeError(f"of {count} mails {arrived} arrived")


def _scrapes_ms(url: str) -> list[float]:
    with serving(url, POSTROOM_SERVICE_KEY="bench") as address:
        found = []
        for _ in range(SCRAPES):
            time.sleep(SCRAPE_AGAIN_S)
            began = time.monotonic()
            with urllib.request.urlopen(f"{address}/metrics") as answer:
                text = answer.read()
            found.append((time.monotonic() - began) * 1000)
            if b"postroom_database_up 1" not in text:
                raise RuntimeError(f"/metrics is not whole: {text[:200]!r}")
    return found


def _status_s(url: str) -> float:
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "postroom", "status"],
        env={**os.environ, "POSTROOM_DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.monotonic() - began
