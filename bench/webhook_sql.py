"""How many webhook events a second go through a SQL handler, from stored to processed?"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

import asyncpg

from bench import program
from bench.report import Result, spread, versions
from bench.servers import create_database, execute, running_postgres, server_cpu_s, server_version
from postroom.database.migrate import migrate

QUESTION = "webhook events a second through a SQL handler that inserts a row"
EVENT_BYTES = 500
TABLE = "CREATE TABLE public.orders (event_id text PRIMARY KEY, payload jsonb NOT NULL)"
HANDLER = """
    CREATE FUNCTION public.on_order(payload jsonb, event_id text) RETURNS void LANGUAGE sql
    AS 'INSERT INTO public.orders (event_id, payload) VALUES ($2, $1)'
"""
CONFIG = """
[webhooks.shop]
scheme = "none"
[[webhooks.shop.handlers]]
name = "orders"
sql = "public.on_order"
"""
COPY = "one row an event by COPY, nothing else: the limit"
SINGLE = "one INSERT and COMMIT an event, 10 connections"
OURS = "postroom: stored, claimed, handled exactly once, settled"


def run(*, count: int = 10_000, rounds: int = 3) -> Result:
    """
    Measure in turns: our whole way, and what the handler's rows alone cost.

    Args:
        count: Events a round.
    """
    return asyncio.run(_run(count, rounds))


async def _run(count: int, rounds: int) -> Result:
    result = Result("webhook_sql", QUESTION, ["", "events/s", "of COPY", "of an INSERT each"])
    rates: dict[str, list[float]] = {OURS: [], SINGLE: [], COPY: []}
    parts: dict[str, list[float]] = {"store": [], "work": [], "worker": [], "PostgreSQL": []}
    with running_postgres() as server_url, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "postroom.toml"
        config.write_text(CONFIG)
        url = await create_database(server_url, "webhook_sql")
        await migrate(url)
        await execute(url, TABLE, HANDLER)
        for _ in range(rounds):
            await _ours(url, config, count, rates[OURS], parts)
            rates[SINGLE].append(await _inserts(url, count))
            rates[COPY].append(await _copy(url, count))
        result.settings |= {
            "events": f"{count:,} a round, {EVENT_BYTES} bytes each, each with an id of its own",
            "figures": f"median of {rounds} rounds in turns (lowest-highest)",
            "postroom": "one process, default settings, stored in groups as the door does; a log line each",
            "us an event": f"storing {median(parts['store']):.0f}, the rest {median(parts['work']):.0f}; "
            f"CPU: worker {median(parts['worker']):.0f}, PostgreSQL {median(parts['PostgreSQL']):.0f}",
            "PostgreSQL": f"{await server_version(url)}, fsync on",
            "versions": versions("postroom", "asyncpg", "uvloop"),
        }
    for name, own in rates.items():
        of_copy = [rate / other for rate, other in zip(own, rates[COPY], strict=True)]
        of_single = [rate / other for rate, other in zip(own, rates[SINGLE], strict=True)]
        result.rows.append([name, spread(own), f"{median(of_copy):.2f}x", f"{median(of_single):.2f}x"])
        result.measured[name] = own
    result.measured["us an event"] = parts
    return result


async def _ours(
    url: str, config: Path, count: int, rates: list[float], parts: dict[str, list[float]]
) -> None:
    await execute(
        url,
        "TRUNCATE public.orders, public.webhook_retry_queue",
        "TRUNCATE postroom.webhook_requests, postroom.seen_webhooks",
        "CHECKPOINT",
    )
    settings = {"database_url": url, "config": str(config), "count": count, "bytes": EVENT_BYTES}
    connection = await asyncpg.connect(url)
    try:
        with program.running("webhook_worker", settings) as worker:
            before_s = server_cpu_s(connection.get_server_pid())
            said = (await asyncio.to_thread(worker.work))[1]
            used_s = server_cpu_s(connection.get_server_pid()) - before_s
        there = await connection.fetchval("SELECT count(*) FROM public.orders")
        settled = await connection.fetchval(
            "SELECT count(*) FROM public.webhook_retry_queue WHERE status = 'processed'"
        )
    finally:
        await connection.close()
    if (there, settled) != (count, count):
        raise RuntimeError(f"of {count} events {there} are handled and {settled} processed")
    rates.append(count / (said["store_s"] + said["work_s"]))
    parts["store"].append(said["store_s"] * 1e6 / count)
    parts["work"].append(said["work_s"] * 1e6 / count)
    parts["worker"].append(said["cpu_s"] * 1e6 / count)
    parts["PostgreSQL"].append(used_s * 1e6 / count)


def _rows(count: int) -> list[tuple[str, str]]:
    filling = "x" * (EVENT_BYTES - 60)
    return [
        (f"evt_{number}", f'{{"id": "evt_{number}", "type": "order.paid", "note": "{filling}"}}')
        for number in range(count)
    ]


async def _copy(url: str, count: int) -> float:
    await execute(url, "TRUNCATE public.orders", "CHECKPOINT")
    connection = await asyncpg.connect(url)
    rows = _rows(count)
    try:
        began = time.perf_counter()
        await connection.copy_records_to_table("orders", records=rows, columns=["event_id", "payload"])
        return count / (time.perf_counter() - began)
    finally:
        await connection.close()


async def _inserts(url: str, count: int) -> float:
    await execute(url, "TRUNCATE public.orders", "CHECKPOINT")
    connections = [await asyncpg.connect(url) for _ in range(10)]
    rows = iter(_rows(count))

    async def insert(connection: asyncpg.Connection) -> None:
        for row in rows:
            await connection.execute("INSERT INTO public.orders (event_id, payload) VALUES ($1, $2)", *row)

    try:
        began = time.perf_counter()
        await asyncio.gather(*map(insert, connections))
        return count / (time.perf_counter() - began)
    finally:
        for connection in connections:
            await connection.close()
