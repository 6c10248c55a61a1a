"""A server that speaks Stripe's list of events, and can be told to fail."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp import web

KEY = "rk_test_of_the_tests"


class StripeServer:
    """
    Attributes:
        events: What the account has, oldest first.
        answers: Given before any page, one a request.
        asked: The queries of the requests.
    """

    def __init__(self) -> None:
        self.url = ""
        self.events: list[dict[str, Any]] = []
        self.answers: list[web.Response] = []
        self.asked: list[dict[str, str]] = []

    def add(self, event_id: str, created_s: int, kind: str = "checkout.paid", **more: Any) -> dict[str, Any]:
        """An event of the account."""
        event = {"id": event_id, "object": "event", "created": created_s, "type": kind, **more}
        self.events.append(event)
        return event

    async def handle(self, request: web.Request) -> web.Response:
        """GET /v1/events, as https://docs.stripe.com/api/events/list has it."""
        self.asked.append(dict(request.query))
        if self.answers:
            return self.answers.pop(0)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "Invalid API Key provided: rk_****"}}, status=401)
        limit, since_s = int(request.query["limit"]), int(request.query["created[gte]"])
        assert limit <= 100
        found = [event for event in reversed(self.events) if event["created"] >= since_s]
        if after := request.query.get("starting_after"):
            found = found[[event["id"] for event in found].index(after) + 1 :]
        return web.json_response(
            {
                "object": "list",
                "url": "/v1/events",
                "has_more": len(found) > limit,
                "data": found[:limit],
            }
        )


@asynccontextmanager
async def stripe_server() -> AsyncIterator[StripeServer]:
    """One that runs in this loop."""
    server = StripeServer()
    app = web.Application()
    app.router.add_get("/v1/events", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        await web.SockSite(runner, listening).start()
        try:
            yield server
        finally:
            await runner.cleanup()


@contextmanager
def stripe_server_beside() -> Iterator[StripeServer]:
    """One in a thread of its own, for commands that have a loop of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    running = stripe_server()
    try:
        yield asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result(30)
        asyncio.run_coroutine_threadsafe(running.__aexit__(None, None, None), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
