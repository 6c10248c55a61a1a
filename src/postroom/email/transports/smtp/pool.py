"""
Connections that are kept and used again.

There are ten at first, and one more for each e-mail that goes out while others wait, up to the
limit. A server that takes only some of them (providers allow three or five) is asked for one more a
minute; the others' mail waits its turn. A server that does not answer, or refuses the password,
is asked by one connection at a time.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import replace

from postroom.email.transports.smtp.connection import SmtpConnection
from postroom.email.transports.smtp.handshake import SmtpServer, TooManyConnections, connect
from postroom.errors import TransportDown

CLOSE_S = 2.0

AT_FIRST = 10
"""So many connections may stand before the server has taken an e-mail."""

GROW_AGAIN_S = 60.0
"""The wait before a server that refused one is asked for a connection more."""

SHRINK_AGAIN_S = 1.0
"""What the connections in flight say so soon after they were too many was said of as many."""


class ConnectionPool:
    """
    At most so many connections to one server.

    Args:
        connections_max: How many may stand at once.
        mails_max: After so many mails a connection is closed; servers limit them, too (Exim: 1,000).
    """

    def __init__(self, server: SmtpServer, *, connections_max: int, mails_max: int = 500) -> None:
        self._server = server
        self._connections_max = connections_max
        self._capacity = min(connections_max, AT_FIRST)
        self._limited_at: float | None = None
        self._mails_max = mails_max
        self._idle_s_max = server.timeouts.idle_timeout_s
        self._idle: list[SmtpConnection] = []
        self._open: set[SmtpConnection] = set()
        self._ending: set[SmtpConnection] = set()
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._context: ssl.SSLContext | None = None
        self._proven = False
        self._probe = asyncio.Lock()
        self._last_failure: TransportDown | None = None
        self._closed = False

    async def take(self, *, fresh: bool = False) -> tuple[SmtpConnection, bool]:
        """
        Take a connection; give it back with put().

        Args:
            fresh: Open a new one even where an idle one is there.

        Returns:
            The connection, and whether it was used before.

        Raises:
            TransportDown: None can be had.
        """
        await self._take_turn()
        try:
            while True:
                if self._closed:
                    raise TransportDown(f"{self._server.name}: closed")
                if not fresh and (connection := self._pop_idle()) is not None:
                    return connection, True
                try:
                    return await self._open_one(), False
                except TooManyConnections:
                    if not self._open:
                        raise
                    # The others work: be content with as many as there are.
                    self._limit(len(self._open))
                    fresh = False
                    self._give_turn()
                    await self._take_turn()
        except BaseException:
            self._give_turn()
            raise

    def put(self, connection: SmtpConnection) -> None:
        """Give a connection back, in whatever state it is."""
        is_worn = connection.mails >= self._mails_max or len(self._open) > self._capacity
        if self._closed or not connection.usable or is_worn:
            self._drop(connection)
        else:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
            self._plan_sweep()
            self._grow()
        self._give_turn()

    def shrink(self) -> None:
        """The server says that these are too many connections: keep half of them."""
        now = asyncio.get_running_loop().time()
        if self._limited_at is not None and now < self._limited_at + SHRINK_AGAIN_S:
            return  # the others in flight say the same
        self._limit(len(self._open) // 2)
        while self._idle and len(self._open) > self._capacity:
            self._drop(self._idle.pop(0))

    def stop_chunking(self) -> None:
        """The server has offered CHUNKING and does not know it: from now on nobody uses it."""
        self._server = replace(self._server, chunking=False)
        while self._idle:
            self._drop(self._idle.pop())

    def _limit(self, connections: int) -> None:
        self._capacity = min(self._capacity, max(connections, 1))
        self._limited_at = asyncio.get_running_loop().time()

    def _grow(self) -> None:
        if not self._waiting or self._capacity >= self._connections_max:
            return
        if self._limited_at is not None:
            now = asyncio.get_running_loop().time()
            if now < self._limited_at + GROW_AGAIN_S:
                return
            self._limited_at = now  # one, and see
        self._capacity += 1

    async def close(self) -> None:
        """Close all of them, those in use too; at most CLOSE_S."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in self._open.difference(self._idle):
            connection.abort()
        for connection in list(self._open):
            self._drop(connection)
        self._idle.clear()
        self._capacity = 2**31  # who still waits for a turn gets one, and finds the pool closed
        self._hand_turns()
        if self._ending:
            await asyncio.wait([connection.closed for connection in self._ending], timeout=CLOSE_S)
        for connection in self._ending:
            connection.abort()

    async def _take_turn(self) -> None:
        """Wait until one connection more may be in use; first come, first served."""
        if self._taken < self._capacity and not self._waiting:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._hand_turns()
        try:
            await turn
        except BaseException:
            # A cancelled one is passed over by _hand_turns; one that was handed over is passed on.
            if not turn.cancelled():
                self._give_turn()
            raise

    def _give_turn(self) -> None:
        self._taken -= 1
        self._hand_turns()

    def _hand_turns(self) -> None:
        while self._waiting and self._taken < self._capacity:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)

    def _pop_idle(self) -> SmtpConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            self._drop(connection)
        return None

    def _drop(self, connection: SmtpConnection) -> None:
        connection.quit() if connection.usable else connection.abort()
        self._open.discard(connection)
        self._ending.add(connection)
        connection.closed.add_done_callback(lambda _: self._ending.discard(connection))
        if not self._open and not self._closed:
            self._capacity = max(self._capacity, min(self._connections_max, AT_FIRST))
            self._limited_at = None
            self._hand_turns()

    async def _open_one(self) -> SmtpConnection:
        if not self._proven:
            before = self._last_failure
            async with self._probe:
                if self._last_failure is not None and self._last_failure is not before:
                    raise _again(self._last_failure)
                if not self._proven:
                    return await self._connect()
        return await self._connect()

    async def _connect(self) -> SmtpConnection:
        try:
            if self._context is None:
                self._context = await asyncio.to_thread(self._server.tls_context)
            connection = await connect(self._server, self._context)
        except OSError as error:
            where = self._server.ca_file or "the system's certificates"
            raise TransportDown(f"{self._server.name}: cannot read {where}: {error}") from None
        except TransportDown as error:
            if not self._open or not isinstance(error, TooManyConnections):
                self._proven, self._last_failure = False, _again(error)
            raise
        self._proven, self._last_failure = True, None
        if self._closed:
            connection.abort()
            raise TransportDown(f"{self._server.name}: closed")
        self._open.add(connection)
        return connection

    def _plan_sweep(self) -> None:
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._idle_s_max, self._close_idle)

    def _close_idle(self) -> None:
        """Close what has been idle for too long: a server would close it in the middle of our next mail."""
        self._sweep = None
        oldest = asyncio.get_running_loop().time() - self._idle_s_max
        kept: list[SmtpConnection] = []
        for connection in self._idle:
            if connection.usable and connection.idle_since > oldest:
                kept.append(connection)
            else:
                self._drop(connection)
        self._idle = kept
        if kept:
            self._plan_sweep()


def _again(error: TransportDown) -> TransportDown:
    """A copy that holds no traceback and with it no e-mail."""
    return TransportDown(error.text, code=error.code, retry_after_s=error.retry_after_s)
