"""
Pictures of every page, for docs/screenshots and for whoever changes how a page looks: `make screenshots`.

With Debian's libfaketime the clocks stand still while they are taken, and ids are drawn from a seed: the same
pages give the same pictures, so that a change of one is seen in `git status`.

    make screenshots                          what docs/ shows, as WebP
    make screenshots LOOK=/tmp/look           every page in light, dark and on a phone, whole, as PNG
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Self
from unittest.mock import patch

import psycopg
from playwright.async_api import Browser, Page, async_playwright

from postroom import Room, log
from postroom.dashboard import overview, site
from postroom.database.migrate import migrate
from tests.browser.conftest import CHROMIUM, DESK, PHONE, Visit, visiting
from tests.browser.pages import address_of, addresses
from tests.browser.seed import CAUGHT, Seeded, catch, enlarge, seed
from tests.http.conftest import serving, settings_of
from tests.support.postgres import PostgresServer, running_server

SHOWN = Path("docs/screenshots")
FAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
)
MOMENT = datetime(2026, 11, 25, 12, tzinfo=UTC)
HEIGHT_MAX = 1_600
"""Of a picture in docs/, in CSS pixels."""

LIST_HEIGHT_MAX = 800
"""Of a list: what is below is more of the same."""

QUALITY = 60


@dataclass(frozen=True, slots=True)
class Picture:
    """
    One of docs/.

    Attributes:
        house: `full`, `empty` or `large`.
        press: The button that leads from the address to what is shown.
    """

    name: str
    address: str
    house: str = "full"
    dark: bool = False
    phone: bool = False
    press: str | None = None


PICTURES = (
    Picture("overview", ""),
    Picture("overview-dark", "", dark=True),
    Picture("overview-phone", "", phone=True),
    Picture("overview-empty", "", house="empty"),
    Picture("overview-million", "", house="large"),
    Picture("emails", "/emails"),
    Picture("emails-search", "/emails?q=invoice&state=waiting"),
    Picture("emails-phone", "/emails", phone=True),
    Picture("email", "/emails/{sent}"),
    Picture("email-dead", "/emails/{dead}"),
    Picture("email-dead-dark", "/emails/{dead}", dark=True),
    Picture("email-dead-phone", "/emails/{dead}", phone=True),
    Picture("edit", "/emails/{dead}/edit"),
    Picture("webhooks", "/webhooks"),
    Picture("event", "/webhooks/{dead_event}"),
    Picture("dead-letters", "/dead-letters"),
    Picture("dead-letters-phone", "/dead-letters", phone=True),
    Picture("confirm", "/dead-letters", press="Retry all"),
    Picture("bulk-action", "/dead-letters/actions/{action}"),
    Picture("mailbox", "/mailbox"),
    Picture("caught", f"/mailbox/{CAUGHT}"),
    Picture("queues", "/queues"),
    Picture("cron", "/cron"),
    Picture("settings", "/settings"),
    Picture("audit", "/audit"),
    Picture("login", "/login"),
)


LISTS = {"/emails", "/webhooks", "/cron"}


@dataclass(frozen=True, slots=True)
class House:
    """A house that is served, and what is in it."""

    url: str
    seeded: Seeded | None
    database_url: str


async def main(look: Path | None, only: str) -> None:
    """Take them."""
    log.configure("text", "warning")
    with _server() as server:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM)
            try:
                if look is None:
                    await _for_docs(browser, server, only)
                else:
                    await _to_look_at(browser, server, look, only)
            finally:
                await browser.close()


async def _for_docs(browser: Browser, server: PostgresServer, only: str) -> None:
    SHOWN.mkdir(exist_ok=True)
    for name in ("full", "empty", "large"):
        pictures = [one for one in PICTURES if one.house == name and only in one.name]
        if not pictures:
            continue
        async with _house(server, name) as house:
            for one in pictures:
                async with _visit(browser, house, dark=one.dark, phone=one.phone) as visit:
                    await _see(visit, house, one.address)
                    if one.press is not None:
                        await visit.page.get_by_role("button", name=one.press).first.click()
                    height_max = LIST_HEIGHT_MAX if one.address in LISTS else HEIGHT_MAX
                    content = await _picture(visit.page, "webp", height_max)
                    (SHOWN / f"{one.name}.webp").write_bytes(content)
                    print(f"{one.name}: {len(content) / 1024:.0f} KB")


async def _to_look_at(browser: Browser, server: PostgresServer, folder: Path, only: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("full", "empty", "large"):
        if only.partition("-")[0] not in ("", name):
            continue
        async with _house(server, name) as house:
            for style in ("light", "dark", "phone"):
                async with _visit(browser, house, dark=style == "dark", phone=style == "phone") as visit:
                    for address in dict.fromkeys(addresses()):
                        file = f"{name}{address.translate(_IN_FILES) or '-overview'}-{style}.png"
                        if only not in file or (house.seeded is None and "{" in address):
                            continue
                        await _see(visit, house, address)
                        (folder / file).write_bytes(await _picture(visit.page, "png", 4_000))
    print(f"look into {folder}")


_IN_FILES = str.maketrans("/?=&+", "-----", "{}")


@asynccontextmanager
async def _house(server: PostgresServer, name: str) -> AsyncIterator[House]:
    """Serve one of the three while the block runs."""
    database = server.create_database()
    url = server.url_of(database)
    await migrate(url)
    seeded = None if name == "empty" else await asyncio.to_thread(seed, url)
    if name == "large":
        await asyncio.to_thread(enlarge, url)
    if name != "empty":
        await asyncio.to_thread(_led, url)
    folder = Path("/tmp/postroom-screenshots")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if name != "empty":
        catch(folder / "mail")
    try:
        transport = f"smtp://relay.example.com:587 resend://key maildir:{folder / 'mail'}"
        settings = settings_of(url, folder, transport=transport)
        async with Room(**settings) as room, serving(room, real_transport=True) as served:
            yield House(served.url, seeded, url)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        server.drop_database(database)


def _led(url: str) -> None:
    """A leader is one whose lease has some seconds to go: here they never pass."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE postroom.cron_leader SET leads_until = clock_timestamp() + interval '6 s'")


def _named(url: str) -> None:
    """What takes the pictures is a process of another number on another machine each time."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            "UPDATE postroom.workers SET host = 'mail-1.shop.example', pid = 4004 WHERE host = %s",
            [socket.gethostname()],
        )


@asynccontextmanager
async def _visit(browser: Browser, house: House, *, dark: bool, phone: bool) -> AsyncIterator[Visit]:
    """As who has logged in."""
    async with visiting(
        browser,
        house.url,
        viewport=PHONE if phone else DESK,
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        timezone_id="UTC",
        locale="en-GB",
    ) as visit:
        await visit.see("/login")
        await visit.log_in()
        await visit.page.wait_for_url("**/dashboard")
        await asyncio.to_thread(_named, house.database_url)
        yield visit


async def _see(visit: Visit, house: House, address: str) -> None:
    await visit.see(address if house.seeded is None else address_of(address, house.seeded))
    await visit.page.wait_for_load_state("networkidle")


async def _picture(page: Page, form: str, height_max: int) -> bytes:
    """The whole page, as far down as `height_max`. Playwright writes no WebP, the browser does."""
    size = await page.evaluate("() => [document.documentElement.clientWidth, document.body.scrollHeight]")
    session = await page.context.new_cdp_session(page)
    asked = {
        "format": form,
        "captureBeyondViewport": True,
        "clip": {"x": 0, "y": 0, "width": size[0], "height": min(size[1], height_max), "scale": 1},
    }
    answer = await session.send(
        "Page.captureScreenshot", asked | ({"quality": QUALITY} if form == "webp" else {})
    )
    await session.detach()
    return base64.b64decode(answer["data"])


@contextmanager
def _server() -> Iterator[PostgresServer]:
    """A server whose clock stands still, and so does the pages': a picture says the same ages each time."""
    library = next((one for one in FAKETIME if Path(one).exists()), None)
    if library is None:
        print("without Debian's package libfaketime every picture will differ", file=sys.stderr)
        with running_server() as server:
            yield server
        return
    clocks = {"LD_PRELOAD": library, "FAKETIME": f"{MOMENT:%Y-%m-%d %H:%M:%S}", "TZ": "UTC"}
    with patch.dict(os.environ, clocks):
        started = running_server()
        server = started.__enter__()
    try:
        with patch.object(site, "datetime", _Standing), patch.object(overview, "datetime", _Standing):
            yield server
    finally:
        started.__exit__(None, None, None)


class _Standing(datetime):
    """The class, at the moment of the pictures."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        at = MOMENT.astimezone(tz)
        return cls.fromtimestamp(at.timestamp(), at.tzinfo)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take pictures of the dashboard's pages.")
    parser.add_argument("--look", type=Path, help="Every page into this folder, as PNG.")
    parser.add_argument("--only", default="", help="Those whose name has this in it, such as full-email.")
    given = parser.parse_args()
    asyncio.run(main(given.look, given.only))
