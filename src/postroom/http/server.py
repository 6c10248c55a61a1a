"""The server: uvicorn on a socket of ours, with an end to slow requests and to large heads."""

from __future__ import annotations

import asyncio
import errno
import socket
from asyncio import TimerHandle
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from postroom.errors import ConfigError
from postroom.http.doors import Doors

REQUEST_S = 60.0
"""A request, from its first byte to its last, must have come after this time."""

HEAD_BYTES_MAX = 64 * 1024
CONNECTIONS_MAX = 800
"""Beyond, the answer is 503: a process may open 1,024 files where nobody has said more."""

CONNECTIONS_CLOSED_BEYOND = 50
"""So many more are still answered; the next are closed as they come, since they need files too."""

PIPELINED_MAX = 16
"""Requests that one client sends before it has the answer to the first; no known client sends two."""

_HEAD, _CONTINUE = b"HTTP/1.1 ", b"HTTP/1.1 100 "

KEEP_ALIVE_S = 65
DRAIN_S = 90
"""A direct e-mail may take a minute; then what is left is cut off."""


async def serve(
    app: Starlette, host: str, port: int, *, ready: Callable[[str], None], stop: asyncio.Event
) -> None:
    """
    Serve until `stop` is set; then answer what has come, and end.

    Args:
        host: An address or a name of this machine.
        port: 0 takes a free one.
        ready: Called with the address, such as `http://127.0.0.1:8400`, when requests are answered.

    Raises:
        ConfigError: It cannot listen there; or the application does not start.
    """
    sockets = await _listen(host, port)
    try:
        server = _Server(app, lambda: ready(_address(host, sockets[0])))
        async with app.router.lifespan_context(app):
            stopper = asyncio.create_task(_stop(server, app, stop))
            try:
                await server.serve(sockets)
            finally:
                stopper.cancel()
    finally:
        for one in sockets:
            one.close()


async def require_address(host: str, port: int) -> None:
    """
    See that one can listen there, for who has something else to do first.

    Raises:
        ConfigError: It cannot; the line says why.
    """
    for one in await _listen(host, port):
        one.close()


class _Server(uvicorn.Server):
    def __init__(self, app: Starlette, started: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",  # around serve(), where its errors are seen
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
        super().__init__(config)
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn; says when it is done."""
        await super().startup(sockets)
        if self.started:
            self._say_started()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the program's, not ours."""
        yield


class _Protocol(HttpToolsProtocol):
    """
    uvicorn's, which waits for a slow request for ever, and keeps a head of any size and any number of
    requests.

    The clock runs from a connection's beginning, or a request's first piece, to the request's last byte;
    a request that comes in one piece starts none.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._too_slow: TimerHandle | None = None
        self._is_coming = False
        self._bodiless_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _HeadWithBody(transport)))
        if len(self.connections) > CONNECTIONS_MAX + CONNECTIONS_CLOSED_BEYOND:
            transport.abort()
            return
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        # The parser keeps a head, or what follows a body, until it is whole, and skips empty lines for ever.
        self._bodiless_bytes += len(data)
        super().data_received(data)
        if self._is_coming or self._bodiless_bytes:
            self._start_clock()
            if self._bodiless_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_coming = True

    def on_headers_complete(self) -> None:
        head_bytes = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
        if head_bytes > HEAD_BYTES_MAX:
            raise ValueError("the head of the request is too large")  # uvicorn answers 400 and closes
        if len(self.pipeline) >= PIPELINED_MAX:
            # uvicorn reads on whenever one is answered: 14,000 requests fit into what it reads at once.
            raise ValueError("too many requests before the first answer")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bodiless_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_coming = False
        self._bodiless_bytes = 0
        self._stop_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        cast(_HeadWithBody, self.transport).flush()  # one without a body
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer and close; where an answer is owed to an earlier request, close without one."""
        if self.pipeline or (self.cycle is not None and not self.cycle.response_complete):
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def _start_clock(self) -> None:
        if self._too_slow is None:
            self._too_slow = self.loop.call_later(REQUEST_S, self._give_up)

    def _stop_clock(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None

    def _give_up(self) -> None:
        self._too_slow = None
        is_owed = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing() or (is_owed and not self._is_coming):
            return  # an empty line after a request is no reason to withhold its answer
        self.transport.close()


class _HeadWithBody:
    """
    A transport that keeps an answer's head until the first piece of its body, as ASGI demands.

    uvicorn writes them one after the other, and uvloop sends each at once: two calls to the system and two
    packets, 9 us of a request's 90 and 4 more of whoever reads them.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._head:
            data = self._head + data
            self._head = b""
        elif data.startswith(_HEAD) and not data.startswith(_CONTINUE):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write a head that no body follows."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def _stop(server: _Server, app: Starlette, stop: asyncio.Event) -> None:
    await stop.wait()
    doors: Doors = app.state.doors
    doors.stopping.set()
    server.should_exit = True


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of the host, such as both of localhost."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError):
        raise ConfigError(f"cannot listen on {host}: no such address; set POSTROOM_HOST") from None
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        one = socket.socket(family, kind, protocol)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            shared_port = sockets[0].getsockname()[1] if sockets else port
            one.bind((address[0], shared_port, *address[2:]))
            one.listen(1)  # now: another may have bound the port, and only this tells
            one.setblocking(False)
            sockets.append(one)
        except OSError as error:
            one.close()
            problem = problem or error
            if error.errno == errno.EADDRINUSE:
                break
    if not sockets or (problem is not None and problem.errno == errno.EADDRINUSE):
        for one in sockets:
            one.close()
        assert problem is not None
        raise ConfigError(_why_not(host, port, problem)) from None
    return sockets


def _why_not(host: str, port: int, error: OSError) -> str:
    what = f"cannot listen on {host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{what}: something else uses this port; end it, or set POSTROOM_PORT"
    if error.errno == errno.EACCES:
        return f"{what}: ports below 1024 are root's; set POSTROOM_PORT"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{what}: this machine has no such address; set POSTROOM_HOST"
    return f"{what}: {error.strerror}"


def _address(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
