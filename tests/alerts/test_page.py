"""docs/operations.md: each rule has its row, with its default and its meaning."""

from __future__ import annotations

import re
from pathlib import Path

from postroom.alerts.rules import RULES
from postroom.cli.alerts import _threshold

PAGE = Path(__file__).parents[2] / "docs/operations.md"


def test_the_page_shows_every_rule() -> None:
    """In the same order, and says what to do; the sections that it names are there."""
    page = PAGE.read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+%?)` \| (.+?) \| (.+) \|$", page, flags=re.MULTILINE)
    assert [row[:3] for row in rows] == [
        (rule.name, _threshold(rule, rule.threshold), rule.meaning) for rule in RULES.values()
    ]
    sections = {heading.lower() for heading in re.findall(r"^## (\w+)$", page, flags=re.MULTILINE)}
    assert set(re.findall(r"\(#(\w+)\)", page)) <= sections
