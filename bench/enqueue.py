"""How many jobs a second can be queued: 1,000 at a time, and one by one by many clients?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median

import asyncpg

from bench import mails
from bench.contenders import Postroom
from bench.queue_peers import BATCH, PAYLOAD_BYTES, peers_on
from bench.report import Result, spread, versions
from bench.servers import execute, running_postgres, server_version
from postroom import Room

QUESTION = "jobs a second into the queue"
BARE = """
    CREATE TABLE public.bare (LIKE public.email_queue INCLUDING DEFAULTS INCLUDING INDEXES INCLUDING STORAGE)
    WITH (fillfactor = 80)
"""
INSERT = "INSERT INTO {} (to_email, subject, html) VALUES ($1, $2, $3)"
CALL = "SELECT enqueue_email($1, $2, $3)"


def run(
    *, count: int = 20_000, clients: int = 32, each: int = 100, rounds: int = 5, with_peers: bool = True
) -> Result:
    """
    Measure in turns, in batches and one by one.

    Args:
        count: Jobs that are queued in batches, a round.
        clients: Connections that queue one by one.
        each: So many jobs each of them, a round.
    """
    return asyncio.run(_run(count, clients, each, rounds, with_peers))


async def _run(count: int, clients: int, each: int, rounds: int, with_peers: bool) -> Result:
    result = Result("enqueue", QUESTION, ["", "jobs/s", "ratio"])
    batches: dict[str, list[float]] = {}
    with running_postgres() as server_url:
        url = await Postroom.make_database(server_url)
        await execute(url, BARE)
        peers = await peers_on(server_url, result.notes) if with_peers else []
        async with Room(database_url=url) as room:
            for _ in range(rounds):
                rates = await _send_many(room, count)
                batches.setdefault(f"postroom, send_many of {BATCH:,}", []).append(median(rates))
                rates = await _send_many(room, count, with_keys=True)
                batches.setdefault("the same, each with an idempotency key", []).append(median(rates))
                batches.setdefault("COPY into the same table, no checks", []).append(await _copy(url, count))
                await execute(url, "TRUNCATE public.email_queue", "CHECKPOINT")
                for peer in peers:
                    took_s = await asyncio.to_thread(peer.fill, min(count, peer.jobs_max))
                    batches.setdefault(peer.name, []).append(BATCH / median(took_s))
        singles = await _one_by_one(url, clients, each, rounds)
        result.settings |= {
            "jobs": f"a short subject and {PAYLOAD_BYTES} bytes; {count:,} in batches, "
            f"{clients} clients x {each} one by one",
            "figures": f"medians of {rounds} rounds in turns (lowest-highest)",
            "bare": "a like table with its indexes, without triggers; INSERT and COMMIT",
            "PostgreSQL": f"{await server_version(url)}, fsync on",
            "versions": versions("postroom", "asyncpg", "uvloop"),
        }
    best = max((median(batches[peer.name]) for peer in peers), default=0.0)
    for name, rates in batches.items():
        compared = f"{median(rates) / best:.2f}x the best peer" if best else ""
        result.rows.append([name, spread(rates), compared])
        result.measured[name] = rates
    bare = singles["one by one: bare"]
    for name, rates in singles.items():
        shares = [rate / other for rate, other in zip(rates, bare, strict=True)]
        result.rows.append([name, spread(rates), f"{median(shares):.2f}x bare"])
        result.measured[name] = rates
    return result


async def _send_many(room: Room, count: int, *, with_keys: bool = False) -> list[float]:
    rates = []
    html = mails.short_html(PAYLOAD_BYTES)
    for first in range(0, count, BATCH):
        emails = [
            {"to": mails.recipient(number, 5_000), "subject": mails.subject(number), "html": html}
            for number in range(first, first + BATCH)
        ]
        if with_keys:
            for email in emails:
                email["idempotency_key"] = f"{email['subject']}-{time.monotonic_ns()}"
        began = time.perf_counter()
        await room.send_many(emails)
        rates.append(BATCH / (time.perf_counter() - began))
    return rates


async def _copy(url: str, count: int) -> float:
    rates = []
    connection = await asyncpg.connect(url)
    rows = [
        (mails.recipient(number, 5_000), mails.subject(number), mails.short_html(PAYLOAD_BYTES))
        for number in range(BATCH)
    ]
    try:
        for _ in range(0, count, BATCH):
            began = time.perf_counter()
            await connection.copy_records_to_table(
                "email_queue", records=rows, columns=["to_email", "subject", "html"]
            )
            rates.append(BATCH / (time.perf_counter() - began))
    finally:
        await connection.close()
    return median(rates)


async def _one_by_one(url: str, clients: int, each: int, rounds: int) -> dict[str, list[float]]:
    """By many clients, each statement a transaction."""
    ways = {
        "one by one: bare": INSERT.format("public.bare"),
        "one by one: INSERT into email_queue": INSERT.format("public.email_queue"),
        "one by one: enqueue_email()": CALL,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    connections = [await asyncpg.connect(url) for _ in range(clients)]
    html = mails.short_html(PAYLOAD_BYTES)

    def client(statement: str) -> Callable[[asyncpg.Connection], Awaitable[None]]:
        async def insert(connection: asyncpg.Connection) -> None:
            for number in range(each):
                await connection.execute(
                    statement, mails.recipient(number, 5_000), mails.subject(number), html
                )

        return insert

    try:
        for turn in range(-1, rounds):  # the first one prepares the statements
            for name, statement in ways.items():
                await execute(url, "TRUNCATE public.email_queue, public.bare", "CHECKPOINT")
                began = time.perf_counter()
                await asyncio.gather(*map(client(statement), connections))
                if turn >= 0:
                    rates[name].append(clients * each / (time.perf_counter() - began))
    finally:
        for connection in connections:
            await connection.close()
    return rates
