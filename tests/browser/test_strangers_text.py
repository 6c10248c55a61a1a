"""What strangers wrote is shown, and nothing of it runs or loads anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import psycopg
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Dialog, Route
from psycopg import sql
from psycopg.types.json import Jsonb

from postroom import Room
from postroom.dashboard.site import POLICY
from tests.browser.conftest import Visit, visiting
from tests.browser.pages import address_of, addresses
from tests.browser.seed import Seeded, seed
from tests.http.conftest import serving, settings_of
from tests.support.web import listening

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAYLOAD = (
    "\"'></textarea></title></script><script>window.ran = 1; alert(1)</script>"
    "<img src=/dashboard/static/none.png onerror=\"window.ran = 1; alert(2)\"><svg onload='window.ran = 1'>"
    "${alert(3)}{{7*7}}"
)
"""Breaks out of a text, an attribute in either quotes, a text area, a title and a script."""

HELD_TO_VALUES = {
    "status",
    "queue",
    "role",
    "outcome",
    "dead_reason",
    "verdict",
    "rule",
    "waits_for",
    "schedule",
}
"""Columns whose values have a meaning: strangers do not write them."""

TABLES = (
    "public.email_queue",
    "public.webhook_retry_queue",
    "postroom.workers",
    "postroom.transports",
    "postroom.alerts",
    "postroom.jobs",
    "postroom.job_runs",
    "postroom.cron_leader",
    "postroom.processing_minutes",
    "postroom.audit",
    "postroom.bulk_actions",
)


OF_A_FORM = {
    ("postroom.workers", "settled"),
    ("postroom.bulk_actions", "action"),
    ("postroom.bulk_actions", "place_queue"),
    ("postroom.bulk_actions", "stopped_by"),
}
"""What only our own functions write, and whose form they rely on."""


@dataclass
class Watched:
    """
    A visit that notices when something runs.

    Attributes:
        dialogs: What alert() has said.
    """

    visit: Visit
    seeded: Seeded
    dialogs: list[str] = field(default_factory=list)

    async def ran(self) -> bool:
        """Whether any of a payload has run on the page that is open."""
        marks = [await frame.evaluate("() => window.ran") for frame in self.visit.page.frames]
        return bool(self.dialogs) or any(marks)


@asynccontextmanager
async def _watched(browser: Browser, url: str, seeded: Seeded, *, csp: bool) -> AsyncIterator[Watched]:
    async with visiting(browser, url, bypass_csp=not csp) as visit:
        watched = Watched(visit, seeded)

        async def heard(dialog: Dialog) -> None:
            watched.dialogs.append(dialog.message)
            await dialog.dismiss()

        visit.page.on("dialog", heard)
        await visit.see()
        await visit.log_in()
        await visit.page.wait_for_url("**/dashboard")
        yield watched


@pytest_asyncio.fixture(loop_scope="session")
async def hostile(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[str, Seeded]]:
    """A house in which every text that anybody may write is the payload: its address, its ids."""
    seeded = await asyncio.to_thread(seed, database_url)
    await asyncio.to_thread(_poison, database_url)
    async with Room(**settings_of(database_url, tmp_path)) as room, serving(room) as served:
        yield served.url, seeded


async def test_no_text_in_the_database_runs_on_any_page(
    browser: Browser, hostile: tuple[str, Seeded]
) -> None:
    """By its escaping alone: the policy, which would stop it too, is switched off in this browser."""
    url, seeded = hostile
    async with _watched(browser, url, seeded, csp=False) as watched:
        shown = 0
        for address in dict.fromkeys(addresses()):
            await watched.visit.see(address_of(address, seeded))
            shown += "window.ran = 1" in await watched.visit.page.locator("body").inner_text()
            assert not await watched.ran(), address
        assert shown >= 8, "the payload is shown on few pages: is the house still poisoned?"


async def test_what_a_person_asks_for_does_not_run_either(
    browser: Browser, hostile: tuple[str, Seeded]
) -> None:
    """In a search, a reason, a notice, a list that there is not, a setting."""
    url, seeded = hostile
    async with _watched(browser, url, seeded, csp=False) as watched:
        page = watched.visit.page
        for path, name in (
            ("/emails", "q"),
            ("/emails", "state"),
            ("/webhooks", "after"),
            ("/dead-letters", "reason"),
            ("/dead-letters", "notice"),
            ("/login", "to"),
        ):
            await page.goto(f"{url}/dashboard{path}?{urlencode({name: PAYLOAD})}")
            assert not await watched.ran(), path
        await watched.visit.see("/settings")
        await page.locator("input[name=value]").first.fill(PAYLOAD)
        await page.locator("input[name=value]").first.press("Enter")
        await page.get_by_role("alert").wait_for()
        assert not await watched.ran()


@pytest.mark.parametrize("csp", [False, True])
async def test_the_same_text_unescaped_runs_unless_the_policy_stops_it(
    browser: Browser, hostile: tuple[str, Seeded], csp: bool
) -> None:
    """So the tests above can fail, and there is a second wall behind the escaping."""
    url, seeded = hostile
    async with _watched(browser, url, seeded, csp=csp) as watched:

        async def unescaped(route: Route) -> None:
            headers = {"content-security-policy": POLICY, "content-type": "text/html"}
            await route.fulfill(body=f"<title>x</title><p title='{PAYLOAD}'>", headers=headers)

        await watched.visit.context.route("**/dashboard/emails", unescaped)
        await watched.visit.see("/emails")
        assert await watched.ran() is not csp


async def test_a_mail_runs_nothing_loads_nothing_and_sends_no_form(
    browser: Browser, database_url: str, tmp_path: Path
) -> None:
    """Its sender does not learn that it was looked at; the same HTML outside of its frame would tell him."""
    seeded = await asyncio.to_thread(seed, database_url)
    async with _tracker() as (tracker, told):
        mail = f"""
            <p>Hello</p><script>window.ran = 1; alert(1)</script><img src="{tracker}/pixel.png">
            <link rel="stylesheet" href="{tracker}/style.css"><iframe src="{tracker}/frame"></iframe>
            <div style="width:9px;height:9px;background:url({tracker}/background.png)"></div>
            <form action="{tracker}/form" method="post"><button>Confirm</button></form>
            <a href="{tracker}/link" target="_top">Read more</a>
        """
        refresh = f'<meta http-equiv="refresh" content="0; url={tracker}/refresh">'
        await asyncio.to_thread(_set_html, database_url, mail + refresh)
        async with (
            Room(**settings_of(database_url, tmp_path)) as room,
            serving(room) as served,
            _watched(browser, served.url, seeded, csp=True) as watched,
        ):
            await watched.visit.see(f"/emails/{seeded.sent}")
            frame = watched.visit.page.frame_locator("iframe.mail")
            await frame.get_by_text("Hello").wait_for()
            await frame.get_by_role("button", name="Confirm").click()
            await frame.get_by_role("link", name="Read more").click()
            await watched.visit.page.evaluate("() => new Promise((done) => setTimeout(done, 300))")
            assert (told, watched.dialogs) == ([], [])
            assert watched.visit.page.url.startswith(served.url)
            assert all(
                "Content Security Policy" in said or "sandbox" in said for said in watched.visit.errors
            )

            watched.visit.strangers.clear()
            await watched.visit.page.goto(f"{tracker}/plain?{urlencode({'html': mail})}")
            assert {"/pixel.png", "/style.css", "/background.png"} <= set(told)
            assert watched.dialogs == ["1"]
            watched.visit.strangers.clear()


@asynccontextmanager
async def _tracker() -> AsyncIterator[tuple[str, list[str]]]:
    """Another host, which shows HTML as it is told to: its address, and the paths that it was asked for."""
    told: list[str] = []

    async def asked(request: web.Request) -> web.Response:
        told.append(request.path)
        return web.Response(text=request.query.get("html", ""), content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", asked)
    async with listening(app) as port:
        yield f"http://localhost:{port}", told


def _set_html(url: str, html: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE email_queue SET html = %s", [html])


def _poison(url: str) -> None:
    """Put the payload into every text, list of texts and JSON of the tables that pages show."""
    attempt = {"at": "2026-01-01T00:00:00Z", "outcome": PAYLOAD, "reply": PAYLOAD, "worker": PAYLOAD, "ms": 7}
    with psycopg.connect(url, autocommit=True) as db:
        for table in TABLES:
            db.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(_name(table)))
            columns = db.execute(
                """
                SELECT attname, atttypid::regtype::text FROM pg_attribute AS one
                WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
                    AND NOT EXISTS (
                        SELECT FROM pg_index
                        WHERE indrelid = attrelid AND indisunique AND attnum = ANY (indkey::smallint[])
                    )
                """,
                [table],
            ).fetchall()
            for name, kind in columns:
                if name in HELD_TO_VALUES:
                    continue
                value = {
                    "text": PAYLOAD,
                    "text[]": [PAYLOAD],
                    "jsonb": Jsonb([attempt] if name == "attempt_log" else {PAYLOAD: PAYLOAD}),
                }.get(kind)
                if value is None or (table, name) in OF_A_FORM:
                    continue
                statement = sql.SQL("UPDATE {} SET {} = %s").format(_name(table), sql.Identifier(name))
                db.execute(statement, [value])


def _name(table: str) -> sql.Composed:
    return sql.SQL(".").join(sql.Identifier(part) for part in table.split("."))
