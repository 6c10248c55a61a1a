"""The pictures of docs/: those that the command takes, small, and each page of the guide has its own."""

from __future__ import annotations

import re
from pathlib import Path

from tests.browser.pages import addresses
from tests.browser.screenshots import PICTURES, SHOWN

ROOT = Path(__file__).parents[2]
BYTES_MAX = 100 * 1024


def test_the_pictures_are_those_that_the_command_takes_and_none_is_large() -> None:
    """A page that is renamed leaves no picture behind."""
    files = {path.name: path.stat().st_size for path in (ROOT / SHOWN).iterdir()}
    assert set(files) == {f"{one.name}.webp" for one in PICTURES}
    assert {name: size for name, size in files.items() if size > BYTES_MAX} == {}


def test_each_picture_is_of_a_page_that_the_tests_look_at() -> None:
    """By its address, but for what is searched for."""
    known = {address.partition("?")[0] for address in addresses()}
    assert {one.address.partition("?")[0] for one in PICTURES} <= known


def test_each_picture_that_a_text_shows_is_there() -> None:
    """In the README and in docs/dashboard.md, which shows one of each kind of page."""
    shown = set()
    for path in (ROOT / "README.md", ROOT / "docs" / "dashboard.md"):
        shown |= set(re.findall(r"screenshots/([a-z-]+)[.]webp", path.read_text()))
    assert {"overview", "emails", "email-dead", "event", "dead-letters", "caught"} <= shown
    assert shown <= {one.name for one in PICTURES}
