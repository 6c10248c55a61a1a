"""The points: what the code has, what postroom.failpoints names and what the tables break are the same."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from postroom import failpoints
from postroom.failpoints import POINTS, FailpointReached, arm, reach
from tests.failpoints.table import (
    BULK,
    CLEANUP,
    EMAIL,
    MIGRATION,
    QUEUE_DOOR,
    SCHEDULER,
    SEND_DOOR,
    WEBHOOK,
    WEBHOOK_DOOR,
)

TABLES = (EMAIL, WEBHOOK, WEBHOOK_DOOR, QUEUE_DOOR, SEND_DOOR, SCHEDULER, CLEANUP, BULK, MIGRATION)
SOURCE = Path(__file__).parents[2] / "src" / "postroom"


@pytest.fixture(autouse=True)
def _nothing_armed() -> None:
    assert not failpoints._armed


def test_every_point_of_the_code_is_named_and_stands_once() -> None:
    """reach("…") with a name that is in POINTS, in one place each."""
    found = Counter(name for path in sorted(SOURCE.rglob("*.py")) for name in _points_in(path))
    assert dict(found) == dict.fromkeys(POINTS, 1)


def test_every_point_is_broken_by_a_test() -> None:
    """A new point has a row in one of the tables, and no row is left over."""
    assert {name for rows in TABLES for name in rows} == set(POINTS)


def test_a_point_does_nothing_until_it_is_armed_and_then_strikes_once() -> None:
    """The third to come meets it; then it is over."""
    reach("settle.before")
    try:
        arm("settle.before=raise@3,claim.before=raise")
        reach("settle.before")
        reach("settle.after")
        reach("settle.before")
        with pytest.raises(FailpointReached, match=r"settle\.before"):
            reach("settle.before")
        reach("settle.before")
        with pytest.raises(FailpointReached):
            reach("claim.before")
    finally:
        arm("")
    reach("claim.before")


@pytest.mark.parametrize("wrong", ["settle.befor=kill", "settle.before=burn", "settle.before", "kill"])
def test_a_point_or_fault_that_is_none_is_refused(wrong: str) -> None:
    """A test that breaks nothing would prove nothing."""
    with pytest.raises(ValueError, match="is no point with a fault"):
        arm(wrong)


def _points_in(path: Path) -> list[str]:
    """The names in calls of reach(); each must be written out."""
    names = []
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "reach":
            (argument,) = call.args
            assert isinstance(argument, ast.Constant), f"{path}:{call.lineno}: write the name out"
            names.append(str(argument.value))
    return names
