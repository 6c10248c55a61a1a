"""What does the SMTP transport come to where the server is far away: 30 ms for a question and its answer?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import cast

from bench.report import Result, ratio, spread, versions
from bench.servers import Sink
from bench.smtp_client import Client, plain_aiosmtplib, postroom, rate

QUESTION = "mails a second that an SMTP client hands over, 30 ms away from the server, 4 connections"
WAY_S = 0.015
CONNECTIONS = 4


def run(*, count: int = 200, rounds: int = 3) -> Result:
    """
    Measure in turns, each client through a proxy that holds all back for 15 ms each way.

    Args:
        count: Mails a round.
    """
    result = Result("smtp_distance", QUESTION, ["", "mails/s", "ratio", "waits a mail"])
    contenders: dict[str, tuple[Client, tuple[str, ...], int]] = {
        "postroom, CHUNKING": (postroom, (), 1),
        "postroom, PIPELINING": (postroom, ("PIPELINING",), 2),
        "aiosmtplib": (plain_aiosmtplib, (), 4),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (client, extensions, _) in contenders.items():
            with Sink.running(*extensions) as sink, running_distance(sink.port) as port:
                rates[name].append(rate(client, port, sink, count, CONNECTIONS))
    slowest = min(median(values) for values in rates.values())
    for name, values in rates.items():
        row = [name, spread(values, 1), ratio(median(values), slowest), str(contenders[name][2])]
        result.rows.append(row)
        result.measured[name] = values
    result.settings |= {
        "mails": f"{count:,} of 2 KB of HTML and a plain part; the time holds the connecting, too",
        "figures": f"median of {rounds} rounds in turns (lowest-highest)",
        "what the server offers": "all that the sink can, or PIPELINING alone",
        "versions": versions("postroom", "aiosmtplib", "uvloop"),
    }
    return result


class _Way(asyncio.Protocol):
    """One end of a connection through the proxy: what comes here leaves at the other end, later."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Way | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(WAY_S, self._pass_on, data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        asyncio.get_running_loop().call_later(WAY_S, self._close_other)

    def _pass_on(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def _close_other(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _NearEnd(_Way):
    """The client's; it has to wait for the other one, and the server speaks first."""

    def __init__(self, port: int, connecting: set[asyncio.Task[None]]) -> None:
        super().__init__()
        self._port = port
        self._connecting = connecting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        task = asyncio.get_running_loop().create_task(self._connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        far = _Way()
        far.other = self
        await asyncio.get_running_loop().create_connection(lambda: far, "127.0.0.1", self._port)
        self.other = far


@contextmanager
def running_distance(port: int) -> Iterator[int]:
    """A proxy before a port of this machine, in a thread of its own; gives its own port."""
    loop = asyncio.new_event_loop()
    connecting: set[asyncio.Task[None]] = set()
    server = loop.run_until_complete(loop.create_server(lambda: _NearEnd(port, connecting), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
