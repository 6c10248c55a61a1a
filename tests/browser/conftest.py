"""A browser of the whole run, and what the pages are looked at in: a seeded house that nobody works in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    ViewportSize,
    WebError,
    async_playwright,
)

from postroom import Room
from tests.browser.seed import Seeded, catch, seed
from tests.http.conftest import KEY, serving, settings_of
from tests.support.postgres import PostgresServer

CHROMIUM = Path("/usr/bin/chromium")
PHONE = ViewportSize(width=360, height=740)
DESK = ViewportSize(width=1280, height=900)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One process of Chromium; a test opens contexts in it, which share nothing."""
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's package chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Visit:
    """
    A page in a context of its own, and what was wrong there.

    Attributes:
        errors: What the console and uncaught exceptions said.
        strangers: Requests that went to another host than the dashboard's.
    """

    url: str
    context: BrowserContext
    page: Page
    errors: list[str]
    strangers: list[str]

    async def see(self, path: str = "") -> None:
        """Open a page of the dashboard."""
        answer = await self.page.goto(f"{self.url}/dashboard{path}")
        assert answer is not None
        assert answer.status < 500, await answer.text()

    @asynccontextmanager
    async def another(self) -> AsyncIterator[Visit]:
        """Another page of the same context, while the block runs; it knows its own errors alone."""
        self.errors.clear()
        page = await self.context.new_page()
        try:
            yield replace(self, page=page)
        finally:
            await page.close()

    async def log_in(self, key: str = KEY) -> None:
        """Fill in the form that is shown."""
        await self.page.fill("#key", key)
        await self.page.click("text=Log in")


@asynccontextmanager
async def visiting(browser: Browser, url: str, **options: Any) -> AsyncIterator[Visit]:
    """A visit; with no request to another host, whatever a page holds."""
    context = await browser.new_context(**({"viewport": DESK} | options))
    errors: list[str] = []
    strangers: list[str] = []
    context.set_default_timeout(20_000)

    def asked(request: Request) -> None:
        if not request.url.startswith((url, "data:")):
            strangers.append(request.url)

    def failed(error: WebError) -> None:
        errors.append(str(error.error))

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    context.on("request", asked)
    context.on("weberror", failed)
    context.on("console", said)
    try:
        yield Visit(url, context, await context.new_page(), errors, strangers)
        assert strangers == []
    finally:
        await context.close()


Visiting = Callable[..., AbstractAsyncContextManager[Visit]]


@dataclass
class Furnished:
    """A house with a shop's day in it, served, and a way to look at it as who has logged in."""

    url: str
    seeded: Seeded
    visiting: Visiting


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def furnished(
    browser: Browser, postgres_server: PostgresServer, _migrated_template: str, tmp_path_factory: Any
) -> AsyncIterator[Furnished]:
    """For tests that only look."""
    name = postgres_server.create_database(template=_migrated_template)
    database_url = postgres_server.url_of(name)
    seeded = seed(database_url)
    folder = tmp_path_factory.mktemp("furnished")
    catch(folder / "mail")
    async with (
        Room(**settings_of(database_url, folder)) as room,
        serving(room) as served,
    ):
        async with visiting(browser, served.url) as visit:
            await visit.see("/login")
            await visit.log_in()
            state = await visit.context.storage_state()
        yield Furnished(served.url, seeded, partial(visiting, browser, served.url, storage_state=state))
    postgres_server.drop_database(name)
