"""A person in front of `postroom up`: sees mail flow, finds what failed, mends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.conftest import Visit, visiting
from tests.email.transports.servers.scripted_smtp import ScriptedSmtp
from tests.http.conftest import KEY
from tests.journey.programs import Programs
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

NO_SUCH_USER = "550 5.1.1 no such user here"
LIVE_MS = 30_000
"""The overview looks again every 5 s."""

TABS_MAX = 60


@dataclass
class Open:
    """A house that works, with the SMTP server that it hands its mails to."""

    database_url: str
    smtp: ScriptedSmtp
    visit: Visit

    async def queue(self, subject: str) -> None:
        """As an application does: a plain INSERT."""
        async with await psycopg.AsyncConnection.connect(self.database_url, autocommit=True) as db:
            await db.execute(
                "INSERT INTO email_queue (to_email, subject, html) VALUES (%s, %s, %s)",
                ["ada@example.com", subject, "<p>Thank you</p>"],
            )

    async def arrived(self, subject: str) -> None:
        """Wait until the server has taken a mail of this subject."""
        await until(lambda: any(f"Subject: {subject}".encode() in mail for mail in self.smtp.mails))


@pytest_asyncio.fixture(loop_scope="session")
async def house(browser: Browser, database_url: str, tmp_path: Path) -> AsyncIterator[Open]:
    """Postroom as a user starts it, in a process of its own."""
    smtp = ScriptedSmtp()
    await smtp.open()
    settings = {
        "POSTROOM_DATABASE_URL": database_url,
        "POSTROOM_FROM": "Shop <orders@shop.example>",
        "POSTROOM_SERVICE_KEY": KEY,
        "POSTROOM_PORT": "0",
        "POSTROOM_LOG": "json",
        "POSTROOM_TRANSPORT": f"smtp://127.0.0.1:{smtp.port}",
    }
    up = Programs(tmp_path, settings).start("up")
    try:
        url = await asyncio.to_thread(up.ready)
        await asyncio.to_thread(up.working)
        async with visiting(browser, url) as visit:
            yield Open(database_url, smtp, visit)
        assert await asyncio.to_thread(up.end) == 0, up.log[-3000:]
    finally:
        up.kill()
        await smtp.close()


async def test_a_failure_turns_up_and_is_mended_by_a_person_who_watches(house: Open) -> None:
    """Log in; mail flows; a 550 turns up without a reload; it is opened, retried, and leaves."""
    visit, page = house.visit, house.visit.page
    await visit.see()
    await visit.log_in()
    await expect(_figure(page, "Dead letters")).to_have_text("0")
    await house.queue("Order 1")
    await house.arrived("Order 1")
    minutes = page.get_by_role("region", name="E-mail by minute").locator("details td.num").first

    async def is_counted() -> bool:
        await visit.see()
        return await minutes.count() == 1 and await minutes.text_content() == "1"

    await until(is_counted, look_s=0.2)

    house.smtp.on("RCPT", NO_SUCH_USER)
    await house.queue("Order 2")
    await expect(_figure(page, "Dead letters")).to_have_text("1", timeout=LIVE_MS)
    await _figure(page, "Dead letters").locator("a").click()
    await page.get_by_role("link", name="Order 2").click()
    await expect(page.locator("main")).to_contain_text(NO_SUCH_USER.partition(" ")[2])
    await page.get_by_role("button", name="Retry").click()
    await expect(page.get_by_role("status")).to_contain_text("1 dead letter will be tried again.")
    await house.arrived("Order 2")
    await visit.see()
    await expect(_figure(page, "Dead letters")).to_have_text("0", timeout=LIVE_MS)
    assert visit.errors == []


async def test_a_queue_is_paused_and_resumed_by_a_person_who_watches(house: Open) -> None:
    """Mail waits meanwhile, the overview says by whom and why, and what waited leaves after the resume."""
    page = house.visit.page
    await house.visit.see("/queues")
    await house.visit.log_in()
    await page.get_by_text("Pause the e-mail queue").click()
    await page.get_by_label("Reason, for whoever asks").first.fill("The template is wrong")
    await page.get_by_role("button", name="Pause the e-mail queue").click()
    await expect(page.get_by_role("status")).to_contain_text("E-mail is paused")
    await house.queue("While it is paused")
    await house.visit.see()
    verdict = page.locator("#verdict")
    await expect(verdict).to_contain_text("No e-mails leave: the queue is paused by service key")
    await expect(verdict).to_contain_text("because: The template is wrong")
    assert house.smtp.mails == []
    await page.get_by_role("link", name="Resume it").click()
    await page.get_by_role("button", name="Resume the e-mail queue").click()
    await expect(page.get_by_role("status")).to_contain_text("E-mail is resumed")
    await house.arrived("While it is paused")


async def test_a_mail_to_a_wrong_address_is_mended_and_goes_out(house: Open) -> None:
    """Edit and resend: another mail arrives at the right address, and no dead letter is left."""
    visit, page = house.visit, house.visit.page
    house.smtp.on("RCPT", NO_SUCH_USER)
    await house.queue("Order 5")
    await visit.see("/emails?state=dead_letter")
    await visit.log_in()
    await expect(page.locator("h1")).to_have_text("E-mails")

    async def is_there() -> bool:
        await page.reload()
        return "Order 5" in await page.locator("main").inner_text()

    await until(is_there, look_s=0.1)
    await page.locator("tbody a").first.click()
    await page.get_by_role("link", name="Edit and resend").click()
    await page.get_by_label("To", exact=True).fill("grace@example.com")
    await page.get_by_label("Subject", exact=True).fill("Order 5, once more")
    await page.get_by_role("button", name="Send it").click()
    await house.arrived("Order 5, once more")
    assert any("RCPT TO:<grace@example.com>" in said for session in house.smtp.sessions for said in session)
    await visit.see("/dead-letters")
    await expect(page.locator("main")).to_contain_text("Nothing needs you.")
    assert visit.errors == []


async def test_a_whole_retry_needs_no_mouse(house: Open) -> None:
    """Tab, space and return, from the login to the notice."""
    house.smtp.on("RCPT", NO_SUCH_USER)
    await house.queue("Order 3")
    page = house.visit.page
    await house.visit.see("/dead-letters")
    await page.keyboard.type(KEY)
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/dashboard/dead-letters")

    async def is_there() -> bool:
        await page.reload()
        return "Order 3" in await page.locator("main").inner_text()

    await until(is_there, look_s=0.1)
    await _tab_to(page, "Choose ")
    await page.keyboard.press("Space")
    await _tab_to(page, "Retry the chosen ones")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("1 dead letter will be tried again.")
    await house.arrived("Order 3")


async def test_a_retry_needs_no_scripts(browser: Browser, house: Open) -> None:
    """Reading, login and retry are plain links and forms."""
    house.smtp.on("RCPT", NO_SUCH_USER)
    await house.queue("Order 4")
    async with visiting(browser, house.visit.url, java_script_enabled=False) as visit:
        await visit.see("/dead-letters")
        await visit.log_in()
        await expect(visit.page.locator("h1")).to_have_text("Dead letters")

        async def is_there() -> bool:
            await visit.page.reload()
            return "Order 4" in await visit.page.locator("main").inner_text()

        await until(is_there, look_s=0.1)
        await visit.page.get_by_role("link", name="Order 4").click()
        await visit.page.get_by_role("button", name="Retry").click()
        await expect(visit.page.get_by_role("status")).to_contain_text("1 dead letter will be tried again.")
        await house.arrived("Order 4")


def _figure(page: Page, name: str) -> Locator:
    return page.locator("#live section", has=page.locator("#email-title")).locator(
        f"dt:text-is('{name}') + dd"
    )


async def _tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this name, or begins with it, is in focus."""
    for _ in range(TABS_MAX):
        await page.keyboard.press("Tab")
        focused = page.locator(":focus")
        said = await focused.get_attribute("aria-label") or await focused.inner_text()
        if said.startswith(name):
            return
    raise AssertionError(f"{name!r} was not reached by {TABS_MAX} tabs")
