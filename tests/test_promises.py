"""The tests and guards that docs/promises.md names are there, and what other pages name, too."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from tests.chaos.sabotage import ALL, Sabotage

ROOT = Path(__file__).parents[1]
PROMISES = ROOT / "docs" / "promises.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

_PATH = re.compile(r"(?<![\w/.-])(?:tests|bench|examples|src/postroom)/[\w./-]*\w")
_RED = re.compile(r"`([^`]+): red`|^(.+): red \(", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    """A test that was moved or taken out stands behind nothing."""
    named = {path for path in _PATH.findall(page.read_text()) if "/." not in path}  # what is made, not kept
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_each_promise_has_tests_behind_it() -> None:
    """Five promises, what breaks each by nature, and at least one test of its own."""
    promises = re.split(
        r"^## (?=\d)", PROMISES.read_text().split("## The last figures")[0], flags=re.MULTILINE
    )[1:]
    assert [promise[0] for promise in promises] == ["1", "2", "3", "4", "5"]
    for promise in promises:
        assert "**Breaks by nature.**" in promise
        behind = promise.split("**Stands behind it:**")[1]
        assert any((ROOT / path).is_file() for path in _PATH.findall(behind)), promise[:60]


def test_every_guard_that_is_taken_out_is_named_and_no_other() -> None:
    """The page's guards are those of `make chaos SABOTAGE=1`, each with what it came to."""
    page = PROMISES.read_text()
    guards = [sabotage.guard for sabotage in ALL]
    assert re.findall(r"^(.+): red \(", page, re.MULTILINE) == guards
    assert {name or line for name, line in _RED.findall(page)} == set(guards)


@pytest.mark.parametrize("sabotage", ALL, ids=lambda sabotage: sabotage.guard)
def test_each_guard_stands_once_where_it_is_taken_out(database_url: str, sabotage: Sabotage) -> None:
    """A function that is written anew takes its sabotage along, which nobody runs each day."""
    with psycopg.connect(database_url) as connection:
        for name, guard, instead in sabotage.scenario.edits:
            row = connection.execute("SELECT pg_get_functiondef(%s::regproc)", (name,)).fetchone()
            assert row is not None
            assert row[0].count(guard) == 1, f"{name} has not one {guard!r}"
            connection.execute(row[0].replace(guard, instead).encode())
