"""examples/supabase: a checkout of Stripe's becomes one receipt, through functions, postroom and the shop."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from aiohttp import ClientSession, web

from postroom import Room
from postroom.supabase.functions import export_functions
from tests.http.conftest import KEY, serving, settings_of
from tests.supabase.conftest import STRIPE_SECRET, Edge
from tests.support.node import Driver, NodeTools
from tests.support.postgres import free_port
from tests.support.waiting import until
from tests.support.web import listening

EXAMPLE = Path(__file__).parents[2] / "examples" / "supabase"
HOOK_SECRET = "whsec_" + base64.b64encode(b"a secret of the shop").decode()


@asynccontextmanager
async def gateway(edge: Edge) -> AsyncIterator[str]:
    """As the project's own address: /functions/v1/NAME is led to the function."""

    async def lead(request: web.Request) -> web.Response:
        async with (
            ClientSession() as session,
            session.post(
                edge.url(request.match_info["name"]), data=await request.read(), headers=request.headers
            ) as answer,
        ):
            body = await answer.read()
            return web.Response(body=body, status=answer.status, content_type=answer.content_type)

    application = web.Application()
    application.router.add_post("/functions/v1/{name}", lead)
    async with listening(application) as port:
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def shop(tools: NodeTools, folder: Path, project_url: str, port: int) -> AsyncIterator[None]:
    """The example as it stands, under node."""
    folder.mkdir()
    (folder / "shop.mjs").write_bytes((EXAMPLE / "shop.mjs").read_bytes())
    (folder / "node_modules").symlink_to(tools.modules)
    settings = {
        "SUPABASE_URL": project_url,
        "SUPABASE_SECRET_KEY": KEY,
        "SHOP_HOOK_SECRET": HOOK_SECRET,
        "PORT": str(port),
    }
    process = subprocess.Popen(
        [str(tools.node), str(folder / "shop.mjs")],
        env=tools.environment | settings,
        stdout=subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(trust_env=False) as client:

            async def answers() -> bool:
                try:
                    return (await client.post(f"http://127.0.0.1:{port}/", content=b"{}")).status_code == 401
                except httpx.TransportError:
                    return False

            await until(answers)
        yield
    finally:
        process.kill()
        process.wait()


def checkout(event_id: str, kind: str = "completed", payment_status: str = "paid") -> str:
    """An event as Stripe sends it, of one and the same checkout."""
    session = {
        "id": "cs_test_a1",
        "object": "checkout.session",
        "amount_total": 1990,
        "currency": "eur",
        "customer_details": {"email": "ada@example.com"},
        "payment_status": payment_status,
    }
    return json.dumps(
        {"id": event_id, "object": "event", "type": f"checkout.session.{kind}", "data": {"object": session}}
    )


async def test_a_checkout_becomes_one_receipt(
    database_url: str, tmp_path: Path, tools: NodeTools, js: Driver
) -> None:
    """While the shop is away the event waits; told twice, the customer gets one mail, once it is paid."""
    port = free_port()
    handler = {
        "name": "shop",
        "events": ["checkout.session.completed", "checkout.session.async_payment_succeeded"],
        "url": f"http://127.0.0.1:{port}/",
        "secret": HOOK_SECRET,
    }
    settings = settings_of(
        database_url, tmp_path, webhooks={"stripe": {"secrets": [STRIPE_SECRET], "handlers": [handler]}}
    )
    export_functions(tmp_path / "functions")
    async with Room(**settings) as room, serving(room) as house:
        edge = Edge(tools, tmp_path / "functions", house.url)
        with edge.serving("send-email", "stripe-webhook"):

            async def pay(event_id: str, *kind: str) -> None:
                url, payload = edge.url("stripe-webhook"), checkout(event_id, *kind)
                said = await asyncio.to_thread(js, "stripe", url=url, secret=STRIPE_SECRET, payload=payload)
                assert said == {"status": 200, "body": {"received": True}}

            async def passed(door: str) -> dict[str, Any]:
                found: dict[str, Any] = (await house.client.post(f"/functions/v1/{door}")).json()
                return found

            await pay("evt_1")
            assert (await passed("process-webhook-retries"))["failed"] == 1
            async with gateway(edge) as project_url, shop(tools, tmp_path / "shop", project_url, port):
                await pay("evt_0", "completed", "unpaid")
                assert (await passed("process-webhook-retries"))["processed"] == 1
                assert await house.rows() == []
                await pay("evt_2", "async_payment_succeeded")
                await room.database.execute("UPDATE webhook_retry_queue SET next_retry_at = now()")
                done = await passed("process-webhook-retries")
            assert (done["processed"], done["failed"]) == (2, 0), done
            assert (await passed("process-email-queue"))["processed"] == 1
            (receipt,) = await house.rows()
    assert (receipt["to_email"], receipt["status"]) == ("ada@example.com", "sent")
    assert receipt["subject"] == "Your receipt for 19.90 EUR"


def test_the_example_needs_what_the_tests_have() -> None:
    """The same versions of its packages; and its settings are those that postroom reads."""
    ours = json.loads((Path(__file__).parent / "package.json").read_text())["dependencies"]
    theirs = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]
    assert theirs.items() <= ours.items()
    settings = {"STRIPE_WEBHOOK_SECRET": STRIPE_SECRET, "SHOP_HOOK_SECRET": HOOK_SECRET}
    done = subprocess.run(
        [sys.executable, "-m", "postroom", "doctor", "--json"],
        env=os.environ | settings | {"POSTROOM_DATABASE_URL": "postgresql://127.0.0.1:1/none"},
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=False,
    )
    sources = [found for found in json.loads(done.stdout) if found["check"].startswith(("source", "webhook"))]
    assert sources
    assert all(found["level"] == "ok" for found in sources), sources
