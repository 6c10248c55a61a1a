"""The list of log events: what the code logs, what the list says and what the page shows are the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from postroom.log_events import EVENTS

ROOT = Path(__file__).parents[1]
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def test_every_event_of_the_code_is_in_the_list() -> None:
    """An event that is logged has a name and a meaning in log_events.py; none is left over there."""
    logged = {name for path in sorted((ROOT / "src").rglob("*.py")) for name in _events_in(path)}
    assert logged == set(EVENTS)


def test_page_shows_the_list() -> None:
    """docs/log-events.md has a row for each event, with its meaning, in the same order."""
    page = (ROOT / "docs/log-events.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+) \|$", page, flags=re.MULTILINE)
    assert rows == sorted(EVENTS.items())


def test_names_are_a_thing_and_what_befell_it() -> None:
    """A name is `thing.what_happened`."""
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", name) for name in EVENTS)


def _events_in(path: Path) -> set[str]:
    """The names in calls such as _log.info("thing.happened", ...), in either arm of a condition too."""
    names = set()
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and _is_log_call(call):
            names |= {
                node.value
                for node in ast.walk(call.args[0])
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value
            }
    return names


def _is_log_call(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id == "say" and bool(call.args)
    return (
        isinstance(function, ast.Attribute)
        and function.attr in LEVELS
        and isinstance(function.value, ast.Name)
        and function.value.id.endswith("log")
        and bool(call.args)
    )
