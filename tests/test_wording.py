"""Times and numbers as screens write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from postroom.wording import away, duration

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def test_what_is_now_is_no_negative_time_ago() -> None:
    """Two clocks that are the same give a negative zero; clocks that differ a little a time below it."""
    assert away(NOW, NOW) == "0.0 s ago"
    assert duration(-0.0) == duration(-3.0) == "0.0 s"


def test_a_time_is_told_from_now() -> None:
    """In at most two units."""
    assert away(NOW + timedelta(seconds=12), NOW) == "in 12 s"
    assert away(NOW - timedelta(days=4, hours=1, minutes=9), NOW) == "4 d 1 h ago"
