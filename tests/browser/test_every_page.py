"""Each page of the dashboard as people have it: read aloud, in the dark, on a phone, without scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
import pytest_asyncio

from tests.browser.conftest import PHONE, Furnished, Visit
from tests.browser.pages import address_of, addresses

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
NEXT_FRAME = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""By then a page has been told of its new size."""

REFUSED = (
    "Failed to load resource: the server responded with a status of 404",
    "Failed to load resource: the server responded with a status of 400",
)
"""What the browser says by itself of the pages that say so, too."""

PAGES = list(dict.fromkeys(addresses()))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def full(furnished: Furnished) -> AsyncIterator[Visit]:
    """axe comes in as a script of the browser's, before the page's own: the pages' policy stays as it is."""
    async with furnished.visiting() as visit:
        await visit.context.add_init_script(path=AXE)
        yield visit


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def plain(furnished: Furnished) -> AsyncIterator[Visit]:
    """Who has scripts switched off."""
    async with furnished.visiting(java_script_enabled=False) as visit:
        yield visit


@pytest.mark.parametrize("address", PAGES)
async def test_every_page_can_be_read_by_everybody(
    furnished: Furnished, full: Visit, plain: Visit, address: str
) -> None:
    """
    Axe finds nothing serious, in light and dark and at phone width, where no page scrolls sideways.

    Nothing fails in the console; and without scripts the page says the same words.
    """
    path = address_of(address, furnished.seeded)
    async with full.another() as visit:
        await visit.see(path)
        words = await _words(visit)
        await _is_readable(visit)
        assert [said for said in visit.errors if not said.startswith(REFUSED)] == []
    async with plain.another() as visit:
        await visit.see(path)
        assert await visit.page.locator("h1").count() == 1
        assert words - await _words(visit) == set()


@pytest.mark.parametrize("press", ["Retry all", "Discard all"])
async def test_the_question_before_many_are_changed_can_be_read_by_everybody(
    furnished: Furnished, full: Visit, press: str
) -> None:
    """It has no address of its own: a button leads to it, and the keyboard to its note and out of it."""
    async with full.another() as visit:
        await visit.see("/dead-letters")
        button = visit.page.get_by_role("button", name=press).first
        await button.focus()
        await visit.page.keyboard.press("Enter")
        await visit.page.wait_for_url("**/dead-letters/decide")
        await _is_readable(visit)
        await visit.page.get_by_label("Note").focus()
        await visit.page.keyboard.press("Tab")
        assert await visit.page.locator(":focus").inner_text() in ("Retry 2", "Discard 2")
        await visit.page.keyboard.press("Tab")
        await visit.page.keyboard.press("Enter")
        await visit.page.wait_for_url("**/dashboard/dead-letters")
        assert visit.errors == []


async def test_axe_is_no_dummy(furnished: Furnished) -> None:
    """On a page that is broken by hand it finds what is broken."""
    async with furnished.visiting() as visit:
        await visit.context.add_init_script(path=AXE)
        await visit.see("/emails")
        await visit.page.evaluate("() => document.querySelector('label[for=q]').remove()")
        await visit.page.evaluate("() => document.querySelector('#q').removeAttribute('placeholder')")
        await visit.page.evaluate("() => { document.querySelector('h1').style.color = '#eee' }")
        assert {"label", "color-contrast"} <= {rule for rule, _ in await _serious(visit)}


async def _is_readable(visit: Visit) -> None:
    """In light, in dark and at a phone's width, where it stays."""
    found = {"light": await _serious(visit)}
    await visit.page.emulate_media(color_scheme="dark")
    found["dark"] = await _serious(visit, "color-contrast")
    await visit.page.set_viewport_size(PHONE)
    await visit.page.evaluate(NEXT_FRAME)
    found["phone"] = await _serious(visit)
    assert found == {"light": [], "dark": [], "phone": []}
    assert await _too_wide(visit) == []


async def _serious(visit: Visit, *rules: str) -> list[tuple[str, list[str]]]:
    """What axe finds that is serious or critical: the rule, and where."""
    options: dict[str, Any] = {"resultTypes": ["violations"], "iframes": False}
    if rules:
        options["runOnly"] = list(rules)
    result = await visit.page.evaluate("(options) => axe.run(document, options)", options)
    return [
        (violation["id"], [node["html"][:200] for node in violation["nodes"][:4]])
        for violation in result["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


async def _words(visit: Visit) -> set[str]:
    """What a page says, but for figures, which move on, and charts: their tables have it all."""
    text = await visit.page.locator("main").inner_text()
    in_charts = " ".join(await visit.page.locator(".chart").all_inner_texts()).split()
    return {word for word in text.split() if not any(char.isdigit() for char in word)} - set(in_charts)


async def _too_wide(visit: Visit) -> list[str]:
    """The elements that reach beyond the page's right edge, where the page can be moved sideways."""
    found: list[str] = await visit.page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth
            if (document.documentElement.scrollWidth <= width) return []
            return [...document.querySelectorAll('body *')]
                .filter((each) => each.getBoundingClientRect().right > width + 1)
                .slice(0, 5)
                .map((each) => each.outerHTML.slice(0, 160))
        }"""
    )
    return found
