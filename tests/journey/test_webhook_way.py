"""An event's whole way through programs as a user starts them: stripe's library, door, row, handlers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import psycopg
import stripe
from aiohttp import web

from tests.journey.programs import Programs
from tests.support.waiting import until

SECRET = "whsec_of_the_tests"
AWKWARD = [
    '{"id": "evt_0", "type": "a.b", "data": "Zoë 💐"}'.encode(),
    rb'{"id":"evt_1","url":"https:\/\/example.com\/\u00e9","type":"a.b"}',
    b'{\n  "id":\t"evt_2" ,\r\n  "type" : "a.b"\n}\n\n',
    rb'{"id":"evt_3","type":"a.b","half":"\ud800","zero":"\u0000"}',
    b'  {"id":"evt_4","type":"a.b","n":1e200000,"m":0.10000000000000000555}  ',
]
SETTINGS = """
[webhooks.stripe]
secrets = ["whsec_of_the_tests"]
[[webhooks.stripe.handlers]]
name = "sql"
sql = "public.on_event"
[[webhooks.stripe.handlers]]
name = "url"
url = "http://127.0.0.1:{port}/hooks"
"""
# No unique key: what happens twice is there twice.
EFFECTS = """
CREATE TABLE effects (event_id text);
CREATE FUNCTION on_event(payload jsonb, event_id text) RETURNS void LANGUAGE sql AS
$$ INSERT INTO public.effects VALUES (event_id) $$;
"""


class Shop:
    """A URL handler that checks what it gets by stripe's own library, with the provider's secret."""

    def __init__(self) -> None:
        self.port = 0
        self.bodies: list[bytes] = []

    async def take(self, request: web.Request) -> web.Response:
        """400 where the signature does not hold."""
        body = await request.read()
        signature = request.headers["Stripe-Signature"]
        stripe.WebhookSignature.verify_header(body.decode(), signature, SECRET, tolerance=300)
        self.bodies.append(body)
        return web.Response()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """On a free port, while the block runs."""
        app = web.Application()
        app.router.add_post("/hooks", self.take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = listening.getsockname()[1]
            await web.SockSite(runner, listening).start()
            try:
                yield
            finally:
                await runner.cleanup()


def signed_by_stripe(body: bytes) -> dict[str, str]:
    """The header as the library makes it."""
    at = int(time.time())
    signature = stripe.WebhookSignature._compute_signature(f"{at}.{body.decode()}", SECRET)
    return {"Stripe-Signature": f"t={at},v1={signature}", "Content-Type": "application/json"}


async def test_what_stripe_signs_is_stored_handled_and_handed_on_to_the_byte(
    programs: Programs, database_url: str
) -> None:
    """Awkward bytes; a URL handler's own check by the provider's secret holds; 20 at once are one effect."""
    shop = Shop()
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(EFFECTS)
        async with shop.serving():
            (programs.folder / "postroom.toml").write_text(SETTINGS.format(port=shop.port))
            with programs.running("serve") as serve, programs.running("worker", "--queues", "webhooks"):
                address = await asyncio.to_thread(serve.ready)
                async with aiohttp.ClientSession() as session:

                    async def post(body: bytes) -> bool:
                        """Whether it is new."""
                        async with session.post(
                            f"{address}/webhooks/stripe", data=body, headers=signed_by_stripe(body)
                        ) as answer:
                            assert answer.status == 200, await answer.text()
                            return not (await answer.json()).get("duplicate", False)

                    assert all([await post(body) for body in AWKWARD])
                    twenty = await asyncio.gather(*(post(b'{"id":"evt_20","type":"a.b"}') for _ in range(20)))
                    assert twenty.count(True) == 1

                    def count(what: str) -> int:
                        row = db.execute(f"SELECT count(*) FROM {what}").fetchone()
                        assert row is not None
                        return int(row[0])

                    await until(lambda: count("webhook_retry_queue WHERE status = 'processed'") == 6)
        kept = db.execute("SELECT body FROM postroom.webhook_requests").fetchall()
        effects = db.execute("SELECT event_id FROM effects").fetchall()
    assert sorted(bytes(row[0]) for row in kept) == sorted(shop.bodies)
    assert set(AWKWARD) < set(shop.bodies)
    assert sorted(row[0] for row in effects) == ["evt_0", "evt_1", "evt_2", "evt_20", "evt_3", "evt_4"]
