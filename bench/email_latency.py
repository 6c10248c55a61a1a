"""How long does a mail take from its INSERT's commit to the server's 250, when the queue is idle?"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from statistics import median

import asyncpg

from bench import mails
from bench.contenders import Contender, PostOffice, Postroom
from bench.email_drain import HIGH_LIMIT
from bench.queue_peers import peers_on
from bench.report import Result, percentile, ratio, versions
from bench.servers import Sink, running_postgres, server_version

QUESTION = "milliseconds from an INSERT's commit to the server's 250, idle queue, running worker"
PAUSE_S_MIN, PAUSE_S_MAX = 0.02, 0.1
ARRIVAL_S_MAX = 30.0


def run(*, count: int = 300, with_peer: bool = True) -> Result:
    """
    Insert mails at random moments, each in its own transaction, and look when each one arrived.

    Args:
        count: Mails for each contender.
    """
    return asyncio.run(_run(count, with_peer))


async def _run(count: int, with_peer: bool) -> Result:
    result = Result("email_latency", QUESTION, ["", "p50 ms", "p99 ms", "most ms", "ratio of p50"])
    waits_ms: dict[str, list[float]] = {}
    with running_postgres() as server_url, Sink.running() as sink:
        url = await Postroom.make_database(server_url)
        contenders: list[Contender] = [Postroom(url, sink, HIGH_LIMIT)]
        if with_peer:
            contenders.append(PostOffice(await PostOffice.make_database(server_url), sink))
        for contender in contenders:
            waits_ms[contender.name] = await _waits_ms(contender, count, sink)
        for peer in await peers_on(server_url, result.notes) if with_peer else []:
            with peer.running("latency", count=count) as worker:
                said = (await asyncio.to_thread(worker.work))[1]
            waits_ms[f"{peer.name}: to the job's start"] = said["waits_ms"]
            result.settings[peer.package] = peer.settings
        result.settings |= {
            "mails": f"{count} for each, 20 to 100 ms apart, 2 KB of HTML",
            "clock": "this machine's: read when the INSERT returns and when the sink writes its 250",
            "PostgreSQL": f"{await server_version(url)}, fsync on",
            "postroom": "woken by NOTIFY; limits on (and high), default settings",
            "versions": versions("postroom", "asyncpg", "django-post-office", "Django", "psycopg"),
        }
    if with_peer:
        result.settings["django-post-office"] = "its send_queued() called again and again, 5 ms apart"
        result.notes.append(
            "django-post-office has no worker that waits. Its manual starts it by cron each minute: 30 s on "
            "average. The loop is the best that can be made of it without a broker; it asks the "
            "database all the time and connects to the mail server for each mail."
        )
        result.notes.append(
            "Job queues: until the job's function is called, in the process that has queued it, with "
            "nothing to send. Ours sends a mail over SMTP to another process and waits for its answer."
        )
    slowest = max(median(values) for values in waits_ms.values())
    for name, values in waits_ms.items():
        result.rows.append(
            [
                name,
                f"{median(values):.1f}",
                f"{percentile(values, 99):.1f}",
                f"{max(values):.1f}",
                ratio(slowest, median(values)),
            ]
        )
        result.measured[name] = [round(value, 2) for value in values]
    return result


async def _waits_ms(contender: Contender, count: int, sink: Sink) -> list[float]:
    await contender.empty()
    sink.reset()
    connection = await asyncpg.connect(contender.database_url)
    try:
        with contender.running("wait") as worker:
            await asyncio.to_thread(worker.work)
            # The first one finds the worker awake and its connections made.
            await connection.execute(contender.insert, "ada@example.com", "first", mails.html())
            await _arrived(sink, 1)
            committed_ns = await _insert(contender, connection, count)
            await _arrived(sink, count + 1)
    finally:
        await connection.close()
    arrived_ns = sink.arrivals_ns()
    return [(arrived_ns[subject] - at_ns) / 1e6 for subject, at_ns in committed_ns.items()]


async def _insert(contender: Contender, connection: asyncpg.Connection, count: int) -> dict[str, int]:
    """Insert at random moments; when each INSERT had returned, by subject."""
    committed_ns: dict[str, int] = {}
    pauses_s: Sequence[float] = [random.uniform(PAUSE_S_MIN, PAUSE_S_MAX) for _ in range(count)]
    for number, pause_s in enumerate(pauses_s):
        await asyncio.sleep(pause_s)
        subject = mails.subject(number)
        await connection.execute(contender.insert, mails.recipient(number, count), subject, mails.html())
        committed_ns[subject] = time.time_ns()
    return committed_ns


async def _arrived(sink: Sink, count: int) -> None:
    ends = time.monotonic() + ARRIVAL_S_MAX
    while sink.report()["subjects"] < count:
        if time.monotonic() > ends:
            raise RuntimeError(f"of {count} mails only {sink.report()['subjects']} have arrived")
        await asyncio.sleep(0.05)
