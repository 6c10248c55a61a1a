"""Spans of time as people write them: 500ms, 3s, 5m, 2h, 30d."""

from __future__ import annotations

import re

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
