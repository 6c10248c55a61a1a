"""Spans of time, as they are written in every setting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postroom.spans import format_span, parse_span


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("3s", 3), ("5m", 300), ("2h", 7200), ("30d", 2_592_000), ("0s", 0), (" 1s ", 1)],
)
def test_span_is_read(text: str, seconds: float) -> None:
    """Each unit of the contract is understood."""
    assert parse_span(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "5 m", "-1s", "1.5s", "1w", "5M", "1e3s", "9" * 10 + "d", "٣s"]
)
def test_anything_else_is_refused(text: str) -> None:
    """What is no span is refused with a line that says what is allowed."""
    with pytest.raises(ValueError, match="500ms, 3s, 5m, 2h or 30d"):
        parse_span(text)


@given(st.integers(min_value=0, max_value=10**12))
def test_span_survives_being_written_and_read(milliseconds: int) -> None:
    """What format_span() writes, parse_span() reads as the same, where it has no more than nine digits."""
    text = format_span(milliseconds / 1000)
    if len(text.rstrip("mshd")) <= 9:
        assert parse_span(text) == pytest.approx(milliseconds / 1000)


def test_span_is_written_in_its_largest_unit() -> None:
    """A span reads as a person would write it."""
    assert [format_span(s) for s in (0, 0.25, 1, 90, 300, 7200, 86400 * 30)] == [
        "0s", "250ms", "1s", "90s", "5m", "2h", "30d",
    ]  # fmt: skip
