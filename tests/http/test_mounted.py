"""The application below a path of another one: doors, dashboard, redirects and cookies."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Scope

import postroom.http
from postroom import Room
from postroom.http.cors import path_of
from postroom.testing import signed

KEY = "service key of the tests"
SECRET = "whsec_of_the_tests"
SHOP = "http://shop.example"


@pytest.fixture
async def browser(database_url: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application of FastAPI's that has postroom at /postroom."""
    room = Room(
        database_url=database_url,
        service_key=KEY,
        webhooks={"stripe": {"secrets": [SECRET]}},
        public_url=f"{SHOP}/postroom",
        data_dir=tmp_path,
    )
    house = postroom.http.app(room)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with house.router.lifespan_context(house):
            yield

    shop = FastAPI(lifespan=lifespan)
    shop.mount("/postroom", house)
    async with (
        shop.router.lifespan_context(shop),
        httpx.AsyncClient(transport=httpx.ASGITransport(shop), base_url=SHOP) as client,
    ):
        yield client


async def test_doors_are_below_the_path(browser: httpx.AsyncClient) -> None:
    """A provider's event, a call and the probes; and nothing of ours is at the root."""
    request = signed("stripe", {"id": "evt_1", "type": "x"}, SECRET)
    answer = await browser.post("/postroom/webhooks/stripe", content=request.body, headers=request.headers)
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    queued = await browser.post(
        "/postroom/functions/v1/send-email",
        json={"to": "ada@example.com", "subject": "Hi", "html": "<p>Hi</p>", "use_queue": True},
        headers={"Authorization": f"Bearer {KEY}"},
    )
    assert queued.json()["queued"] is True
    assert queued.headers["access-control-allow-origin"] == "*"
    assert (await browser.get("/postroom/readyz")).status_code == 200
    assert (await browser.get("/readyz")).status_code == 404
    assert (await browser.get("/postroom/nowhere")).status_code == 404
    assert (await browser.get("/postroom/")).headers["location"] == "/postroom/dashboard"


async def test_a_source_that_signs_its_address_is_asked_for_the_public_one(database_url: str) -> None:
    """POSTROOM_PUBLIC_URL has the path in it: what the provider called is what is checked."""
    token = "12345678901234567890123456789012"
    room = Room(
        database_url=database_url,
        webhooks={"twilio": {"secrets": [token]}},
        public_url=f"{SHOP}/postroom",
    )
    shop = FastAPI()
    shop.mount("/postroom", postroom.http.app(room))
    request = signed("twilio", {"MessageSid": "SM1"}, token, url=f"{SHOP}/postroom/webhooks/twilio")
    async with room, httpx.AsyncClient(transport=httpx.ASGITransport(shop), base_url=SHOP) as client:
        answer = await client.post("/postroom/webhooks/twilio", content=request.body, headers=request.headers)
    assert answer.status_code in (200, 204), answer.text


async def test_the_dashboard_leads_nowhere_else(browser: httpx.AsyncClient) -> None:
    """Login, cookie, and each link of each page stay below the path, and are there."""
    asked = await browser.get("/postroom/dashboard/cron?x=1")
    assert asked.status_code == 303
    assert asked.headers["location"] == "/postroom/dashboard/login?to=%2Fdashboard%2Fcron%3Fx%3D1"
    form = (await browser.get(asked.headers["location"])).text
    token = re.search(r'name="token" value="([^"]*)"', form)
    fields = {"key": KEY, "to": "/dashboard/cron?x=1", **({"token": token[1]} if token else {})}
    entered = await browser.post("/postroom/dashboard/login", data=fields)
    assert entered.headers["location"] == "/postroom/dashboard/cron?x=1"
    assert "Path=/postroom/dashboard;" in entered.headers["set-cookie"]
    seen, to_see = set(), {"/postroom/dashboard"}
    while to_see:
        address = to_see.pop()
        seen.add(address)
        page = await browser.get(address)
        assert page.status_code == 200, address
        if not page.headers["content-type"].startswith("text/html"):
            continue
        assert int(page.headers["content-length"]) == len(page.content)
        links = set(re.findall(r'(?:href|src|action|hx-get)="(/[^"?#]*)', page.text))
        assert all(link.startswith("/postroom/dashboard") for link in links), (address, links)
        posts = set(re.findall(r'<form[^>]*method="post"[^>]*action="([^"?]*)"', page.text))
        to_see |= links - seen - posts - {"/postroom/dashboard/logout"}
    assert len(seen) > 8


@pytest.mark.parametrize(
    ("path", "root", "inside"),
    [
        ("/webhooks/x", "", "/webhooks/x"),
        ("/postroom/webhooks/x", "/postroom", "/webhooks/x"),
        ("/postroom", "/postroom", ""),
        ("/webhooks/x", "/proxied", "/webhooks/x"),
    ],
)
def test_the_path_inside_is_what_follows_the_root(path: str, root: str, inside: str) -> None:
    """Servers that give a root path that is not in the path are understood as well."""
    scope: Scope = {"type": "http", "path": path, "root_path": root}
    assert path_of(scope) == inside
