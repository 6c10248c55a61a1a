"""Moments as they are written on the command line."""

from __future__ import annotations

from datetime import datetime

from postroom.cli.errors import WrongUsage
from postroom.spans import parse_moment


def moment_of(option: str, text: str, now: datetime, *, ends: bool = False) -> datetime:
    """What an option says; see parse_moment()."""
    try:
        return parse_moment(text, now, ends=ends)
    except ValueError as error:
        raise WrongUsage(f"{option}: {error}") from None
