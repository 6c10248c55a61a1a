"""How many webhook events a second does the door store before it answers?"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from dataclasses import dataclass, field
from statistics import median
from urllib.parse import urlsplit

import asyncpg

from bench import program
from bench.report import Result, percentile, ratio, spread, versions
from bench.servers import create_database, running_postgres, server_version
from postroom.database.migrate import migrate

QUESTION = "webhook events a second that are stored before they are answered 200"
SECRET = "whsec_of_the_benchmark"
CONNECTIONS = 64
MODES = {
    "none": "the same server, no database",
    "grouped": "postroom: whatever waits in one insert",
    "single": "an insert for each event, 10 at once",
}


@dataclass
class Rounds:
    """One mode's measurements: events a second, and every answer's time in ms."""

    rates: list[float] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)


def run(*, count: int = 6_000, rounds: int = 3) -> Result:
    """
    Post signed events of 2 KB over kept connections, each mode in turn.

    Args:
        count: Events a round.
    """
    return asyncio.run(_run(count, rounds))


async def _run(count: int, rounds: int) -> Result:
    result = Result("webhook_intake", QUESTION, ["", "events/s", "ratio", "p50 ms", "p99 ms"])
    measured = {mode: Rounds() for mode in MODES}
    with running_postgres() as server_url:
        url = await create_database(server_url, "intake")
        await migrate(url)
        for turn in range(rounds):
            for mode in MODES:
                await _measure(url, mode, count, turn, measured[mode])
        result.settings |= {
            "events": f"{count:,} a round, 2 KB each, every one with an id of its own, signed as Stripe does",
            "client": f"one process, {CONNECTIONS} kept connections, each sends when it has its answer",
            "figures": f"median of {rounds} rounds in turns (lowest-highest)",
            "PostgreSQL": f"{await server_version(url)}, fsync on",
            "versions": versions("postroom", "asyncpg", "uvicorn", "starlette"),
        }
    slowest = min(median(one.rates) for one in measured.values())
    for mode, name in MODES.items():
        one = measured[mode]
        rate = median(one.rates)
        times = sorted(one.waits_ms)
        result.rows.append(
            [
                name,
                spread(one.rates),
                ratio(rate, slowest),
                f"{percentile(times, 50):.1f}",
                f"{percentile(times, 99):.1f}",
            ]
        )
        result.measured[mode] = {"rates": one.rates}
    return result


async def _measure(url: str, mode: str, count: int, turn: int, into: Rounds) -> None:
    requests = [_request(f"evt_{mode}_{turn}_{n}") for n in range(count)]
    with program.running("webhook_door", {"database_url": url, "secret": SECRET, "mode": mode}) as door:
        address = urlsplit((await asyncio.to_thread(door.work))[1]["url"])
        assert address.port is not None
        began = time.monotonic()
        await asyncio.gather(
            *(
                _post(address.port, requests[first::CONNECTIONS], into.waits_ms)
                for first in range(CONNECTIONS)
            )
        )
        into.rates.append(count / (time.monotonic() - began))
    if mode != "none":
        connection = await asyncpg.connect(url)
        try:
            stored = await connection.fetchval(
                "SELECT count(*) FROM webhook_retry_queue WHERE webhook_event_id LIKE $1",
                f"evt_{mode}_{turn}_%",
            )
        finally:
            await connection.close()
        if stored != count:
            raise RuntimeError(f"{mode}: {count} events were answered 200, {stored} are stored")


async def _post(port: int, requests: list[bytes], waits_ms: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        began = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answered {head[:40]!r}")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        waits_ms.append((time.monotonic() - began) * 1000)
    writer.close()


def _request(event_id: str) -> bytes:
    body = b'{"id":"%s","type":"charge.succeeded","data":"%s"}' % (event_id.encode(), b"x" * 2_000)
    stamp = int(time.time())
    signature = hmac.new(SECRET.encode(), b"%d.%s" % (stamp, body), hashlib.sha256).hexdigest()
    head = (
        "POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Stripe-Signature: t={stamp},v1={signature}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
