"""Spans of time as people write them: 500ms, 3s, 5m, 2h, 30d; and moments: a span ago, or ISO 8601."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
ALLOWED = "a whole number and a unit: 500ms, 3s, 5m, 2h or 30d"

_DIGITS_MAX = 9


def parse_span(text: str) -> float:
    """
    The seconds of a span.

    Raises:
        ValueError: It is none; the text says what is allowed.
    """
    match = re.fullmatch(rf"([0-9]{{1,{_DIGITS_MAX}}})(ms|s|m|h|d)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no span of time: write {ALLOWED}")
    return int(match[1]) * UNITS_S[match[2]]


def parse_moment(text: str, now: datetime, *, ends: bool = False) -> datetime:
    """
    A moment: a span before `now`, or a day or a time in ISO 8601, of this machine's zone where it names none.

    Args:
        ends: A day stands for its end, not for its beginning: what is asked for goes on until it is over.

    Raises:
        ValueError: It is none; the text says what is allowed.
    """
    text = text.strip()
    try:
        return now - timedelta(seconds=parse_span(text))
    except ValueError:
        pass
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
    try:
        try:
            return datetime.combine(date.fromisoformat(text) + timedelta(days=ends), time()).astimezone()
        except ValueError:
            return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text[:40]!r} is no time: write 2026-11-25, 2026-11-25 10:30, or a span ago such as 2h or 3d"
        ) from None


def format_span(seconds: float) -> str:
    """A span as parse_span() reads it, in the largest unit that says it exactly, to the millisecond."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    for unit, unit_s in reversed(UNITS_S.items()):
        count, rest = divmod(milliseconds, round(unit_s * 1000))
        if not rest:
            return f"{count}{unit}"
    raise AssertionError("every whole number of milliseconds has a unit")
