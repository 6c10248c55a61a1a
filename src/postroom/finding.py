"""What a check of the set-up has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that was looked at.

    Attributes:
        level: A problem loses or holds up e-mails; a warning may, one day.
        check: What was looked at, a word or two.
        found: What there is.
        advice: What to do; None where all is well.
    """

    level: Level
    check: str
    found: str
    advice: str | None = None


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding("ok", check, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """It works, and may not for ever."""
    return Finding("warning", check, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """It loses e-mails, or holds them up."""
    return Finding("problem", check, found, advice)
