"""A server that speaks Resend's API, with its idempotency, and fails as it is told."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import web

KEY = "re_test_Secret1"
Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error(status: int, name: str, message: str = "because", **headers: str) -> Fault:
    """Answer as Resend does when it refuses."""
    body = {"statusCode": status, "name": name, "message": message}

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers=headers)

    return answer


async def drop(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hang(_request: web.Request) -> web.StreamResponse:
    """Answer nothing."""
    await asyncio.Event().wait()
    return web.Response()


@dataclass
class ResendApi:
    """
    A server on 127.0.0.1.

    Attributes:
        requests: Headers and JSON body of each request, whatever was answered.
        sent: The bodies that were taken, one for each idempotency key.
        faults: What to do with the next requests instead of serving them.
    """

    requests: list[tuple[dict[str, str], Any]] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    connections: int = 0
    port: int = 0
    _answers: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    _runner: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application(client_max_size=2**25)
        app.router.add_post("/emails", self._emails)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def open_now(self) -> int:
        """Connections that stand."""
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        return len(server.connections)

    async def _emails(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((dict(request.headers), json.loads(body)))
        if self.faults:
            return await self.faults.popleft()(request)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return await error(403, "invalid_api_key", "API key is invalid")(request)
        if (key := request.headers.get("Idempotency-Key")) and key in self._answers:
            first_body, first_id = self._answers[key]
            if first_body != body:
                return await error(409, "invalid_idempotent_request")(request)
            return web.json_response({"id": first_id})
        sent_id = str(uuid4())
        if key:
            self._answers[key] = (body, sent_id)
        self.sent.append(json.loads(body))
        return web.json_response({"id": sent_id})
