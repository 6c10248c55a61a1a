"""
A TCP proxy before PostgreSQL that breaks the line at a statement of a test's choice.

It reads as much of the wire protocol as tells which statement is about to run and when the server has
answered it. So a test can lose a statement before it reached the server, or its answer after it has
committed: the two cases that look the same to the client. The bytes themselves pass as they are.

    with running_proxy(server.port) as proxy:
        lost = proxy.on("settle_emails", CUT_AFTER)
        ...                                            # against proxy.url_of(database_url)
        assert lost.fired == 1

It runs in a thread of its own, for tests with an event loop and for those without.

Source: PostgreSQL's documentation, "Frontend/Backend Protocol", "Message Formats".
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

START_S_MAX = 10.0
_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
_ENDS_A_ROUND = b"SHQXdcfpF"  # Sync, Flush, Query, Terminate, Copy*, Password, FunctionCall
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Cut:
    """
    Reset the connection.

    Attributes:
        after: Not before the statement has run and its answer is there; the client gets none of it.
    """

    after: bool


@dataclass(frozen=True)
class HalfOpen:
    """
    Pass nothing on any more, in either direction, and close nothing: neither side hears of it.

    Attributes:
        after: Not before the statement has run; its answer is the first thing that does not come.
    """

    after: bool


@dataclass(frozen=True)
class Delay:
    """Hand the statement on so much later."""

    seconds: float


@dataclass(frozen=True)
class Trickle:
    """Give the answer in pieces, so many bytes each, with a pause after each."""

    piece_bytes: int = 1
    pause_s: float = 0.01


Fault = Cut | HalfOpen | Delay | Trickle
CUT_BEFORE = Cut(after=False)
CUT_AFTER = Cut(after=True)
HALF_OPEN_BEFORE = HalfOpen(after=False)
HALF_OPEN_AFTER = HalfOpen(after=True)


@dataclass(eq=False)
class Rule:
    """
    A fault that waits for its statement.

    Attributes:
        pattern: Searched for in the statement's text.
        within: Where set, an earlier statement of the same transaction must match it: whose COMMIT it is.
        skip: So many matches pass first.
        times: How often it strikes; None is every time.
        share: The share of matches that it strikes.
        fired: How often it has struck.
    """

    pattern: re.Pattern[str]
    fault: Fault
    within: re.Pattern[str] | None = None
    skip: int = 0
    times: int | None = 1
    share: float = 1.0
    fired: int = 0

    def strikes(self, statements: list[str], before: list[str]) -> bool:
        """Whether it strikes one of the statements that are about to run; `before` ran in the transaction."""
        if self.times is not None and self.fired >= self.times:
            return False
        if not any(self.pattern.search(statement) for statement in statements):
            return False
        if self.within is not None and not any(self.within.search(statement) for statement in before):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.share < 1 and random.random() >= self.share:
            return False
        self.fired += 1
        return True


@dataclass(eq=False)
class Proxy:
    """
    A listening port whose connections lead to one server.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        statements: The texts of the statements that were about to run, in their order.
    """

    server_port: int
    port: int = 0
    statements: list[str] = field(default_factory=list)
    _rules: list[Rule] = field(default_factory=list)
    _links: set[_Link] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _refuses: bool = False
    _passing: asyncio.Event = field(default_factory=asyncio.Event)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    def url_of(self, database_url: str) -> str:
        """The address of a database through the proxy."""
        parts = urlsplit(database_url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    def on(
        self,
        pattern: str,
        fault: Fault,
        *,
        within: str | None = None,
        skip: int = 0,
        times: int | None = 1,
        share: float = 1.0,
    ) -> Rule:
        """Break the line at a statement; see Rule. Of several rules for one statement the first strikes."""
        rule = Rule(
            re.compile(pattern, re.IGNORECASE),
            fault,
            re.compile(within, re.IGNORECASE) if within is not None else None,
            skip,
            times,
            share,
        )
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget all rules."""
        self._rules.clear()

    def drop_connections(self) -> None:
        """Reset all connections now, on both sides."""
        self._call(self._cut_all)

    def silence(self) -> None:
        """The net is gone: nothing passes and nothing is closed; new connections stand and are silent."""
        self._call(self._passing.clear)

    def refuse(self) -> None:
        """Reset all connections, and each new one."""
        self._refuses = True
        self.drop_connections()

    def heal(self) -> None:
        """Take new connections, and let pass what has been held."""
        self._refuses = False
        self._call(self._passing.set)

    def _call(self, function: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(START_S_MAX)

    async def _serve(self, ready: threading.Event) -> None:
        self._passing.set()
        server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        self._cut_all()
        while self._links:
            await asyncio.sleep(0.001)

    def _cut_all(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            if self._refuses:
                link.cut()
            else:
                await link.run()
        finally:
            self._links.discard(link)


@contextmanager
def running_proxy(server_port: int) -> Iterator[Proxy]:
    """A proxy while the block runs."""
    proxy = Proxy(server_port)
    ready = threading.Event()
    thread = threading.Thread(
        target=lambda: proxy._loop.run_until_complete(proxy._serve(ready)), name="proxy", daemon=True
    )
    thread.start()
    assert ready.wait(START_S_MAX)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(proxy._stop.set)
        thread.join(START_S_MAX)
        proxy._loop.close()


class _Link:
    """One client's connection, and its own to the server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = reader, writer
        self._to_server: asyncio.StreamWriter | None = None
        self._statements: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        self._transaction: list[str] = []
        self._ended = asyncio.Event()
        self._strike: Cut | HalfOpen | None = None  # when the answer is there
        self._trickle: Trickle | None = None

    async def run(self) -> None:
        """Pass bytes in both directions until a side has ended, or the line is cut."""
        with suppress(OSError, asyncio.IncompleteReadError):
            from_server, self._to_server = await asyncio.open_connection("127.0.0.1", self._proxy.server_port)
            pumps = [
                asyncio.create_task(_until_lost(self._pump_client)),
                asyncio.create_task(_until_lost(lambda: self._pump_server(from_server))),
                asyncio.create_task(self._ended.wait()),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        for writer in (self._to_client, self._to_server):
            if writer is not None:
                writer.close()

    def cut(self) -> None:
        """Reset both sides."""
        self._ended.set()
        for writer in (self._to_client, self._to_server):
            if writer is not None:
                _reset(writer)

    # From the client: by rounds, which end where it waits for an answer

    async def _pump_client(self) -> None:
        if not await self._pass_startup():
            return
        messages: list[bytes] = []
        runs: list[str] = []
        while True:
            kind, body = await _message(self._from_client)
            messages.append(kind + struct.pack("!i", len(body) + 4) + body)
            if (statement := self._understood(kind, body)) is not None:
                runs.append(statement)
            if kind in _ENDS_A_ROUND:
                await self._pass_round(b"".join(messages), runs)
                messages, runs = [], []

    async def _pass_startup(self) -> bool:
        """Answer the wish for encryption with no, pass the rest; whether statements follow."""
        while True:
            (size,) = struct.unpack("!i", await self._from_client.readexactly(4))
            body = await self._from_client.readexactly(size - 4)
            (code,) = struct.unpack("!i", body[:4])
            if code in (_SSL_REQUEST, _GSS_REQUEST):
                await self._proxy._passing.wait()
                self._to_client.write(b"N")
                continue
            await self._give_server(struct.pack("!i", size) + body)
            return bool(code != _CANCEL_REQUEST)

    def _understood(self, kind: bytes, body: bytes) -> str | None:
        """The statement that a message runs, if it runs one."""
        first, _, rest = body.partition(b"\0")
        if kind == b"Q":
            return first.decode("utf-8", "replace")
        if kind == b"P":
            self._statements[first] = rest.partition(b"\0")[0].decode("utf-8", "replace")
        elif kind == b"B":
            self._portals[first] = self._statements.get(rest.partition(b"\0")[0], "")
        elif kind == b"E":
            return self._portals.get(first, "")
        return None

    async def _pass_round(self, data: bytes, runs: list[str]) -> None:
        self._proxy.statements.extend(runs)
        rules = self._proxy._rules if runs else ()
        fault = next((rule.fault for rule in rules if rule.strikes(runs, self._transaction)), None)
        self._transaction.extend(runs)
        self._trickle = fault if isinstance(fault, Trickle) else None
        if isinstance(fault, Cut | HalfOpen):
            if not fault.after:
                await self._struck(fault)
            self._strike = fault
        elif isinstance(fault, Delay):
            await asyncio.sleep(fault.seconds)
        await self._give_server(data)

    async def _give_server(self, data: bytes) -> None:
        assert self._to_server is not None
        await self._proxy._passing.wait()
        self._to_server.write(data)
        await self._to_server.drain()

    # From the server: `Z` says that it is ready, and whether a transaction is open

    async def _pump_server(self, from_server: asyncio.StreamReader) -> None:
        unread = bytearray()
        while data := await from_server.read(_CHUNK_BYTES):
            is_answered = self._read_answer(unread, data)
            if self._strike is None:
                await self._give_client(data)
            elif is_answered:
                await self._struck(self._strike)

    def _read_answer(self, unread: bytearray, data: bytes) -> bool:
        """Whether the server has become ready; takes whole messages from `unread`."""
        unread += data
        ready, start = False, 0
        while len(unread) - start >= 5:
            (size,) = struct.unpack_from("!i", unread, start + 1)
            if len(unread) - start < size + 1:
                break
            if unread[start : start + 1] == b"Z":
                ready = True
                if unread[start + 5 : start + 6] == b"I":
                    self._transaction = []
            start += size + 1
        del unread[:start]
        return ready

    async def _give_client(self, data: bytes) -> None:
        piece_bytes = self._trickle.piece_bytes if self._trickle is not None else len(data)
        for start in range(0, len(data), piece_bytes):
            await self._proxy._passing.wait()
            self._to_client.write(data[start : start + piece_bytes])
            await self._to_client.drain()
            if self._trickle is not None:
                await asyncio.sleep(self._trickle.pause_s)

    async def _struck(self, fault: Cut | HalfOpen) -> None:
        if isinstance(fault, Cut):
            self.cut()
        await asyncio.Event().wait()  # nothing passes any more; run() or the proxy's end ends it


async def _until_lost(pump: Callable[[], Awaitable[None]]) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        await pump()


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    (size,) = struct.unpack("!i", head[1:])
    return head[:1], await reader.readexactly(size - 4)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST: the other side gets an error and not an end."""
    transport = writer.transport
    if (stream := transport.get_extra_info("socket")) is not None and not transport.is_closing():
        with suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
