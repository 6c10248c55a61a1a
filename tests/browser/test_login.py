"""Who is let in, and for how long, as a browser has it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import time

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, expect

from postroom import Room
from postroom.dashboard import sessions, throttle
from tests.browser.conftest import Visit, visiting
from tests.browser.seed import seed
from tests.http.conftest import KEY, serving, settings_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY_HASH = hashlib.sha256(KEY.encode()).digest()


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser, database_url: str, tmp_path: Path) -> AsyncIterator[Visit]:
    """Who has not logged in, before a house of his own."""
    await asyncio.to_thread(seed, database_url)
    async with (
        Room(**settings_of(database_url, tmp_path)) as room,
        serving(room) as served,
        visiting(browser, served.url) as visit,
    ):
        yield visit


async def test_a_wrong_key_opens_nothing_and_who_goes_on_has_to_wait(visit: Visit) -> None:
    """The page says so both times; the right key waits too."""
    await visit.see("/emails")
    for _ in range(throttle.FAILURES_MAX):
        await visit.log_in("wrong")
        await expect(visit.page.get_by_role("alert")).to_have_text("That key is not valid.")
    await visit.log_in()
    await expect(visit.page.get_by_role("alert")).to_contain_text("Too many tries: wait")
    await visit.see("/emails")
    await expect(visit.page.locator("#key")).to_be_visible()


async def test_a_session_that_is_over_leads_to_the_login_and_back_to_the_page(visit: Visit) -> None:
    """With its query: the list that was open."""
    await visit.see()
    await visit.log_in()
    await visit.page.wait_for_url("**/dashboard")
    now = int(time())
    over = replace(sessions.begin(KEY_HASH, now), used_at=now - sessions.IDLE_S)
    value = sessions.write(over, KEY_HASH)
    await visit.context.clear_cookies()
    await visit.context.add_cookies(
        [{"name": sessions.COOKIE, "value": value, "domain": "127.0.0.1", "path": "/dashboard"}]
    )
    await visit.see("/emails?state=dead_letter")
    await visit.log_in()
    await expect(visit.page).to_have_url(f"{visit.url}/dashboard/emails?state=dead_letter")
    await expect(visit.page.locator("h1")).to_have_text("E-mails")


async def test_a_form_without_its_token_changes_nothing(visit: Visit) -> None:
    """403, and the page says what to do."""
    await visit.see("/dead-letters")
    await visit.log_in()
    before = await visit.page.locator("tbody tr").count()
    await visit.page.evaluate(
        "() => document.querySelectorAll('[name=csrf_token]').forEach((each) => each.remove())"
    )
    await visit.page.locator("tbody input[type=checkbox]").first.check()
    async with visit.page.expect_navigation() as went:
        await visit.page.get_by_role("button", name="Retry the chosen ones").click()
    answer = await went.value
    assert answer is not None
    assert answer.status == 403
    await expect(visit.page.locator("h1")).to_have_text("Not from here")
    await visit.see("/dead-letters")
    assert await visit.page.locator("tbody tr").count() == before


async def test_a_form_of_another_site_changes_nothing_whatever_it_knows(
    browser: Browser, visit: Visit
) -> None:
    """The browser sends it without the session: even with the right token it ends at the login."""
    await visit.see("/settings")
    await visit.log_in()
    token = await visit.page.locator("[name=csrf_token]").first.get_attribute("value")
    form = f"""
        <form method="post" action="{visit.url}/dashboard/settings">
        <input name="csrf_token" value="{token}">
        <input name="key" value="lease"><input name="value" value="5s">
        <button>Win a prize</button></form>
    """
    async with _another_site(form) as site:
        await visit.page.goto(site)
        visit.strangers.clear()
        await visit.page.get_by_role("button", name="Win a prize").click()
        await expect(visit.page.locator("#key")).to_be_visible()
    await visit.see("/settings")
    assert await visit.page.locator("input[aria-label=lease]").input_value() == "60s"


@asynccontextmanager
async def _another_site(page: str) -> AsyncIterator[str]:
    """A page under another host's name, while the block runs; its address."""

    async def shown(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", shown)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://localhost:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()
