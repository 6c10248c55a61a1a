"""What do ten million settled mails of history cost the live queue, /metrics and `postroom status`?"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from bench.contenders import Postroom
from bench.old_mails import make_old_mails, queue_mails
from bench.report import Result, spread, versions
from bench.servers import Sink, create_database, running_postgres, server_version
from postroom.database.migrate import migrate

QUESTION = "a full queue through SMTP, /metrics and status, with many settled mails beside it and with none"
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
    result = Result("history", QUESTION, ["", "mails/s", "of none", "/metrics ms", "highest", "status s"])
    with running_postgres() as server_url, Sink.running() as sink:
        houses = {
            "no history": await _house(server_url, "empty", sink),
            f"{history:,} settled mails": await _house(server_url, "full", sink),
        }
        began = time.monotonic()
        await make_old_mails(list(houses.values())[1].database_url, history)
        fill_s = time.monotonic() - began
        rates: dict[str, list[float]] = {name: [] for name in houses}
        scrapes: dict[str, list[float]] = {name: [] for name in houses}
        status_s: dict[str, float] = {}
        for turn in range(rounds):
            for name, house in list(houses.items())[:: 1 if turn % 2 else -1]:
                await queue_mails(house.database_url, house.insert, count)
                if turn == 0:
                    scrapes[name] = await asyncio.to_thread(_scrapes_ms, house.database_url)
                    status_s[name] = await asyncio.to_thread(_status_s, house.database_url)
                rates[name].append(await _drain(house, count))
        result.settings = {
            "history": f"{history:,} rows of sent mails, made in {fill_s:.0f} s, vacuumed",
            "queue": f"{count:,} mails of 2 KB of HTML; they wait while /metrics and status are asked",
            "figures": f"medians of {rounds} rounds in turns (lowest-highest); of none: within a round",
            "status": "the whole program, with its start",
            "PostgreSQL": f"{await server_version(server_url)}, fsync on",
            "versions": versions("postroom", "asyncpg"),
        }
    none = next(iter(rates.values()))
    for name, found in rates.items():
        result.rows.append(
            [
                name,
                spread(found),
                f"{median(one / other for one, other in zip(found, none, strict=True)):.2f}",
                f"{median(scrapes[name]):.0f}",
                f"{max(scrapes[name]):.0f}",
                f"{status_s[name]:.1f}",
            ]
        )
        result.measured[name] = {"rates": found, "scrapes_ms": scrapes[name], "status_s": status_s[name]}
    return result


async def _house(server_url: str, name: str, sink: Sink) -> Postroom:
    url = await create_database(server_url, name)
    await migrate(url)
    house = Postroom(url, sink, "off")
    await house.empty()
    return house


async def _drain(house: Postroom, count: int) -> float:
    """Give the word, and check that each mail has arrived; mails a second."""
    assert house.sink is not None
    house.sink.reset()
    with house.running("drain") as worker:
        took_s, _ = await asyncio.to_thread(worker.work)
    arrived = house.sink.report()
    if arrived["mails"] != count:
        raise RuntimeError(f"of {count} mails {arrived} arrived")
    return count / took_s


def _scrapes_ms(url: str) -> list[float]:
    with _serving(url) as address:
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


@contextmanager
def _serving(url: str) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "postroom", "serve"],
        env={
            **os.environ,
            "POSTROOM_DATABASE_URL": url,
            "POSTROOM_PORT": "0",
            "POSTROOM_SERVICE_KEY": "bench",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            ready = re.fullmatch(r"ready (http://\S+)\n", said)
            if ready is None:
                raise RuntimeError(f"the server did not start: {said!r}")
            yield ready[1]
        finally:
            server.terminate()


def _status_s(url: str) -> float:
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "postroom", "status"],
        env={**os.environ, "POSTROOM_DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.monotonic() - began
