"""Handlers behind a URL: what reaches them, what their answers mean, and where postroom does not go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import standardwebhooks
from aiohttp import web

from postroom.webhooks import url as url_module
from postroom.webhooks.url import is_private
from tests.webhooks.workshop import Workshop, open_workshop

SIGNING_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Shop:
    """A real server that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, list[tuple[bytes, bytes]], bytes]] = []
        self.answers: list[Answer | web.Response | int] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks?a=%2F"

    def header(self, name: str, request: int = -1) -> list[bytes]:
        """The values of a header of one request."""
        return [value for own, value in self.requests[request][1] if own.lower() == name.encode()]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.raw_path, list(request.raw_headers), await request.read()))
        answer = self.answers.pop(0) if self.answers else 204
        if isinstance(answer, int):
            return web.Response(status=answer)
        return answer if isinstance(answer, web.Response) else await answer(request)


@asynccontextmanager
async def running_shop() -> AsyncIterator[Shop]:
    shop = Shop()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", shop.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        shop.port = listening.getsockname()[1]
        await web.SockSite(runner, listening).start()
        try:
            yield shop
        finally:
            await runner.cleanup()


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with running_shop() as one:
        yield one


def handler(shop: Shop, **more: Any) -> dict[str, Any]:
    return {"name": "shop", "url": shop.url, **more}


async def handled(workshop: Workshop) -> tuple[str, str | None]:
    """Run the only event; its status and last error."""
    await workshop.keep()
    await workshop.run()
    row = await workshop.row()
    return row["status"], row["last_error"]


async def test_bytes_and_headers_arrive_as_the_provider_sent_them(database_url: str, shop: Shop) -> None:
    """Whatever stands in them; only what belongs to the provider's own connection is left out."""
    body = b'{ "id":"evt_1",\t"name":"\\u00e9 \xc3\xa9 \xff \\/" }\r\n\x00'
    headers = (
        ("Stripe-Signature", "t=1,v1=abc"),
        ("Content-Type", "application/json; charset=utf-8"),
        ("User-Agent", "Stripe/1.0"),
        ("X-Name", b"\xc3\xa9t\xc3\xa9".decode("latin-1")),
        ("X-Two", "a"),
        ("X-Two", "b"),
        ("Host", "shop.example"),
        ("Content-Length", "999"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
    )
    async with open_workshop(database_url, handler(shop)) as workshop:
        await workshop.keep(body=body, headers=headers)
        await workshop.run()
        assert (await workshop.row())["handlers_done"] == ["shop"]
    path, _, came = shop.requests[0]
    assert (path, came) == ("/hooks?a=%2F", body)
    for name, value in headers[:4]:
        assert shop.header(name.lower()) == [value.encode("latin-1")]
    assert shop.header("x-two") == [b"a", b"b"]
    assert shop.header("host") == [f"127.0.0.1:{shop.port}".encode()]
    assert shop.header("content-length") == [str(len(body)).encode()]
    assert shop.header("x-hop") == shop.header("transfer-encoding") == []


async def test_a_secret_signs_by_standard_webhooks(database_url: str, shop: Shop) -> None:
    """The official library accepts it; webhook-id is the row's id, the same at every attempt."""
    shop.answers = [500]
    async with open_workshop(database_url, handler(shop, secret=SIGNING_SECRET)) as workshop:
        kept = await workshop.keep(headers=(("webhook-id", "theirs"), ("webhook-signature", "v1,theirs")))
        await workshop.run()
        await workshop.run_again()
        assert (await workshop.row())["status"] == "processed"
    assert len(shop.requests) == 2
    for number, (_, headers, body) in enumerate(shop.requests):
        assert shop.header("webhook-id", number) == [str(kept).encode()]
        found = {name.decode().lower(): value.decode() for name, value in headers}
        standardwebhooks.Webhook(SIGNING_SECRET).verify(body, found)


async def test_the_fields_of_an_event_by_get_are_in_the_handlers_address(
    database_url: str, shop: Shop
) -> None:
    """They are all there is of it: Twilio's body is empty then."""
    async with open_workshop(database_url, handler(shop)) as workshop:
        await workshop.keep(body=b"", method="GET", query="a=1&b=%20")
        await workshop.run()
    (path, _, body) = shop.requests[0]
    assert (path, body) == ("/hooks?a=%2F&a=1&b=%20", b"")


async def test_410_is_a_dead_letter_at_once(database_url: str, shop: Shop) -> None:
    """The handler wants it never again; what it says is told."""
    shop.answers = [web.Response(status=410, text="gone\nfor good")]
    async with open_workshop(database_url, handler(shop)) as workshop:
        assert await handled(workshop) == ("dead_letter", "shop: 410 gone")
        assert (await workshop.row())["handlers_stopped"] == ["shop"]


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 422, 429, 500, 503])
async def test_all_else_is_temporary_and_no_redirect_is_followed(
    database_url: str, shop: Shop, status: int
) -> None:
    """A 404 may be a deploy; a redirect could lead anywhere."""
    shop.answers = [web.Response(status=status, headers={"Location": "/elsewhere"}, text="no")]
    async with open_workshop(database_url, handler(shop)) as workshop:
        assert await handled(workshop) == ("pending", f"shop: {status} no")
    assert len(shop.requests) == 1


async def test_retry_after_is_honoured(database_url: str, shop: Shop) -> None:
    """Never earlier than the handler asks."""
    shop.answers = [web.Response(status=503, headers={"Retry-After": "7200"})]
    async with open_workshop(database_url, handler(shop)) as workshop:
        await handled(workshop)
        wait_s = await workshop.room.database.fetchval(
            "SELECT extract(EPOCH FROM next_retry_at - now())::float FROM webhook_retry_queue"
        )
    assert 7_100 < wait_s <= 7_200


async def test_a_handler_that_is_away_is_temporary(database_url: str, shop: Shop) -> None:
    """A refused connection, and one that is cut off."""

    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    shop.answers = [cut]
    async with open_workshop(database_url, handler(shop)) as workshop:
        status, error = await handled(workshop)
        assert (status, (error or "").startswith("shop: ")) == ("pending", True)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        shop.port = closed.getsockname()[1]
    await _away(database_url, shop)


async def _away(database_url: str, shop: Shop) -> None:
    from postroom import Room

    source = {"secrets": ["whsec_x"], "handlers": [handler(shop)]}
    async with Room(database_url=database_url, webhooks={"stripe": source}) as room:
        workshop = Workshop(room)
        await workshop.run_again()
        row = await workshop.row()
        assert (row["status"], row["attempts"]) == ("pending", 2)
        assert "Cannot connect" in row["last_error"]


async def test_a_slow_handler_is_given_up(
    database_url: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its deadline; the next attempt is a new request."""
    monkeypatch.setattr(url_module, "DEADLINE_S", 0.2)
    held = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await held.wait()
        return web.Response()

    shop.answers = [wait]
    async with open_workshop(database_url, handler(shop)) as workshop:
        assert await handled(workshop) == ("pending", "shop: no answer within 0.2 s")
        held.set()


async def test_no_more_of_an_answer_is_read_than_is_kept(database_url: str, shop: Shop) -> None:
    """A handler that never stops talking holds nobody up."""

    async def talk(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65_536)
        except ConnectionError:
            return response

    shop.answers = [talk]
    async with open_workshop(database_url, handler(shop)) as workshop:
        assert await handled(workshop) == ("pending", f"shop: 500 {'x' * 200}")


async def test_a_name_that_leads_to_a_private_address_is_refused(
    database_url: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked up once; with allow_private it is allowed, and so is what is written out."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    public = f"http://shop.example:{shop.port}/hooks"
    handlers = (
        {"name": "refused", "url": public},
        {"name": "allowed", "url": public, "allow_private": True},
        {"name": "local", "url": f"http://localhost:{shop.port}/hooks"},
    )
    async with open_workshop(database_url, *handlers) as workshop:
        asked.clear()
        status, error = await handled(workshop)
        assert (await workshop.row())["handlers_done"] == ["allowed", "local"]
    assert (status, (error or "").partition(" leads to ")[0]) == ("pending", "refused: shop.example")
    assert "allow_private = true" in (error or "")
    assert (len(shop.requests), asked) == (2, ["shop.example", "shop.example", "localhost"])


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.1.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("::1", True),
        ("::ffff:10.0.0.1", True),
        ("64:ff9b::a00:1", True),
        ("2002:0a00:0001::1", True),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("8.8.8.8", False),
        ("2606:4700:4700::1111", False),
        ("::ffff:8.8.8.8", False),
    ],
)
def test_what_a_private_address_is(address: str, private: bool) -> None:
    """Also one that is wrapped into another."""
    assert is_private(address) is private
