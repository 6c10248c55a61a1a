"""Finding one message among many, as a browser has it: by keyboard, on a phone, without scripts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import PHONE, Furnished

pytestmark = pytest.mark.asyncio(loop_scope="session")

TABS_MAX = 80


async def test_a_lost_message_is_found_by_keyboard_alone(furnished: Furnished) -> None:
    """Open the filters, fill in two of them, take one out again, open what is there."""
    async with furnished.visiting() as visit:
        page = visit.page
        await visit.see("/emails")
        await _tab_to(page, "More filters")
        await page.keyboard.press("Enter")
        await _tab_to(page, "To")
        await page.keyboard.type("grace@")
        await _tab_to(page, "Subject")
        await page.keyboard.type("invoice")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**subject=invoice**")
        assert _asked(page) == {"to": ["grace@"], "subject": ["invoice"]}
        await expect(page.get_by_role("row")).to_have_count(2)
        await expect(page.locator("tbody")).to_contain_text("Your invoice")
        await _tab_to(page, "Take out the filter Subject: invoice")
        await page.keyboard.press("Enter")
        await page.wait_for_url(lambda url: "subject" not in url)
        assert _asked(page) == {"to": ["grace@"]}
        await _tab_to(page, "grace@example.com")
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_contain_text("Greylisted")
        assert visit.errors == []


async def test_filters_work_on_a_phone(furnished: Furnished) -> None:
    """Quick choices, chips and an error lie within its width, and what is wrong is said at its field."""
    async with furnished.visiting(viewport=PHONE) as visit:
        page = visit.page
        await visit.see("/emails?state=done")
        await page.get_by_role("link", name="24 hours").click()
        await page.wait_for_url("**since=24h**")
        await expect(page.get_by_role("list", name="Filters that are on")).to_contain_text("Since: 24h ago")
        await page.get_by_text("More filters").click()
        await page.get_by_label("Until").fill("tomorrow")
        await page.get_by_role("button", name="Filter", exact=True).click()
        wrong = page.locator("#by-until")
        await expect(wrong).to_have_attribute("aria-invalid", "true")
        await expect(wrong).to_have_accessible_description(
            "Until: 'tomorrow' is no time: "
            "write 2026-11-25, 2026-11-25 10:30, or a span ago such as 2h or 3d."
        )
        assert not await _is_moved_sideways(page)


async def test_a_list_is_gone_through_and_back_without_scripts(furnished: Furnished) -> None:
    """By plain links; the filters stay."""
    async with furnished.visiting(java_script_enabled=False) as visit:
        page = visit.page
        yesterday = datetime.now(UTC) - timedelta(days=1)
        await visit.see(f"/webhooks?source=stripe&since={yesterday:%Y-%m-%d}&state=done")
        first = await page.locator("tbody tr").all_inner_texts()
        await page.get_by_role("link", name="Next page").click()
        second = await page.locator("tbody tr").all_inner_texts()
        assert second
        assert not set(first) & set(second)
        assert _asked(page)["source"] == ["stripe"]
        await page.get_by_role("link", name="Previous page").click()
        assert await page.locator("tbody tr").all_inner_texts() == first
        await expect(page.get_by_role("link", name="Previous page")).to_have_count(0)


def _asked(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


async def _is_moved_sideways(page: Page) -> bool:
    wide: bool = await page.evaluate(
        "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
    return wide


async def _tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this name, or begins with it, is in focus."""
    for _ in range(TABS_MAX):
        await page.keyboard.press("Tab")
        said = await page.evaluate(
            "() => (document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim()"
        )
        if " ".join(said.split()).startswith(name):
            return
    raise AssertionError(f"{name!r} was not reached by {TABS_MAX} tabs")
