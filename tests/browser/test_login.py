"""Who is let in, and for how long, as a browser has it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import time

import psycopg
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, expect

from postroom import Room
from postroom.dashboard import sessions, throttle
from postroom.database.audit import Actor
from postroom.database.connect import Database
from postroom.database.keys import make_key
from tests.browser.conftest import Visit, visiting
from tests.browser.seed import seed
from tests.http.conftest import KEY, serving, settings_of
from tests.support.web import listening

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


async def test_a_session_that_ends_while_a_form_is_open_changes_nothing_and_leads_to_the_login(
    visit: Visit,
) -> None:
    """Also where the page asks by itself: the overview that stood open goes to the login."""
    await visit.see("/dead-letters")
    await visit.log_in()
    before = await visit.page.locator("tbody tr").count()
    await visit.page.locator("tbody input[type=checkbox]").first.check()
    await visit.context.clear_cookies()
    await visit.page.get_by_role("button", name="Retry the chosen ones").click()
    await expect(visit.page.locator("#key")).to_be_visible()
    await visit.log_in()
    await visit.see("/dead-letters")
    assert await visit.page.locator("tbody tr").count() == before

    await visit.see()
    await visit.context.clear_cookies()
    await visit.page.evaluate("() => htmx.trigger('#live', 'look')")
    await visit.page.wait_for_url("**/dashboard/login*")


async def test_the_whole_overview_is_live_and_the_keyboard_stays_where_it_is(
    visit: Visit, database_url: str
) -> None:
    """What stands below the charts, too: an alert turns up there, while a link of that part is in focus."""
    await visit.see()
    await visit.log_in()
    await visit.page.wait_for_url("**/dashboard")
    house = visit.page.locator("#house")
    await expect(house).to_contain_text("6 dead letters of e-mail")
    await house.get_by_role("link", name="Cron").focus()
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as db:
        await db.execute("UPDATE postroom.alerts SET summary = 'The oldest e-mail waits for 20 min'")
    await visit.page.evaluate("() => htmx.trigger('#live', 'look')")
    await expect(house).to_contain_text("The oldest e-mail waits for 20 min")
    await expect(house).to_have_count(1)
    await expect(house.get_by_role("link", name="Cron")).to_be_focused()
    assert visit.errors == []


async def test_a_viewer_sees_every_page_and_can_change_nothing(visit: Visit, database_url: str) -> None:
    """No button but the one that logs out, and a form that he makes himself is refused."""
    database = await Database.open(database_url)
    key = await make_key(database, "viewer", "auditor", by=Actor("ada@house", "cli"))
    await database.close()
    await visit.see("/login")
    await visit.log_in(key)
    await visit.page.wait_for_url("**/dashboard")
    async with await psycopg.AsyncConnection.connect(database_url) as db:
        found = await (await db.execute("SELECT id FROM email_queue WHERE status = 'dead_letter'")).fetchone()
    assert found is not None
    for path in (
        "",
        "/emails",
        "/dead-letters",
        f"/emails/{found[0]}",
        "/mailbox",
        "/cron",
        "/settings",
        "/audit",
    ):
        await visit.see(path)
        buttons = [name.strip() for name in await visit.page.get_by_role("button").all_inner_texts()]
        assert {*buttons} <= {"Log out", "Search", "Filter"}, path
    await visit.see(f"/emails/{found[0]}/edit")
    await expect(visit.page.locator("main")).to_contain_text("only an operator may change this")

    await visit.see("/dead-letters")
    token = await visit.page.locator("[name=csrf_token]").first.get_attribute("value")
    async with visit.page.expect_navigation() as went:
        await visit.page.evaluate(
            """([root, token, id]) => {
                const form = document.createElement('form')
                form.method = 'post'
                form.action = root + '/dashboard/dead-letters/decide'
                for (const [name, value] of [['csrf_token', token], ['what', 'discard'], ['id', id]]) {
                    const field = document.createElement('input')
                    field.name = name
                    field.value = value
                    form.append(field)
                }
                document.body.append(form)
                form.submit()
            }""",
            [visit.url, token, str(found[0])],
        )
    answer = await went.value
    assert answer is not None
    assert answer.status == 403
    await expect(visit.page.locator("main")).to_contain_text("only an operator may change this")
    async with await psycopg.AsyncConnection.connect(database_url) as db:
        row = await (await db.execute("SELECT status FROM email_queue WHERE id = %s", [found[0]])).fetchone()
    assert row == ("dead_letter",)


async def test_an_action_on_a_letter_that_somebody_else_was_faster_with_says_so(
    visit: Visit, database_url: str
) -> None:
    """Retried meanwhile: it is left as it is, from the list and from its page, and an edit sends nothing."""
    await visit.see("/dead-letters")
    await visit.log_in()
    page = visit.page
    await page.locator("tbody a", has_text="Your order #3000").click()
    address = page.url.partition("/dashboard")[2]
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as db:
        await db.execute(
            "UPDATE email_queue SET status = 'pending', dead_reason = NULL, failed_at = NULL WHERE id = %s",
            [address.rpartition("/")[2]],
        )
        mails = await (await db.execute("SELECT count(*) FROM email_queue")).fetchone()
        await page.get_by_role("button", name="Discard").click()
        await expect(page.get_by_role("status")).to_contain_text("1 left as they are")
        await visit.see(address)
        await expect(page.locator(".status").first).to_have_text("waiting")
        await visit.see(f"{address}/edit")
        await expect(page.locator("main")).to_contain_text("no dead letter")
        assert await (await db.execute("SELECT count(*) FROM email_queue")).fetchone() == mails


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
    async with listening(app) as port:
        yield f"http://localhost:{port}/"
