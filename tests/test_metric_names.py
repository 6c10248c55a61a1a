"""The list of metrics: the table and the page are the same, and names are as Prometheus wants."""

from __future__ import annotations

import re
from pathlib import Path

from postroom.metric_names import METRICS

ROOT = Path(__file__).parents[1]


def test_page_shows_the_list() -> None:
    """docs/metrics.md has a row for each metric, in the same order."""
    page = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (.*) \| (.+) \|$", page, flags=re.MULTILINE)
    assert rows == [
        (name, metric.kind, metric.scope, ", ".join(f"`{label}`" for label in metric.labels), metric.meaning)
        for name, metric in sorted(METRICS.items())
    ]


def test_names_say_their_kind_and_unit() -> None:
    """A counter ends in _total, a histogram in _seconds, and nothing else does in _total."""
    for name, metric in METRICS.items():
        assert re.fullmatch(r"postroom(_[a-z]+)+", name)
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.kind != "histogram" or name.endswith("_seconds"), name
