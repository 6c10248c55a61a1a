"""Times, spans and numbers as people read them, on every screen the same."""

from __future__ import annotations

from datetime import datetime

_UNITS = (((86400, "d"), (3600, "h")), ((3600, "h"), (60, "min")), ((60, "min"), (1, "s")))


def moment(at: datetime, now: datetime) -> str:
    """A time and what it is from now: `10:31:07 (in 12 s)`; with its day where that is another one."""
    return f"{clock(at, now)} ({away(at, now)})"


def clock(at: datetime, now: datetime) -> str:
    """A time in this machine's zone; with its day where that is not the day of `now`."""
    if not 1970 <= at.year < 9999:
        return "ever"  # PostgreSQL's infinity
    here = at.astimezone()
    return here.strftime("%H:%M:%S" if here.date() == now.astimezone().date() else "%Y-%m-%d %H:%M:%S")


def stamp(at: datetime) -> str:
    """A time in this machine's zone, with its day."""
    if not 1970 <= at.year < 9999:
        return "ever"  # PostgreSQL's infinity
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def zone(now: datetime) -> str:
    """The zone in which times are said: `UTC`, `CET (UTC+01:00)`."""
    here = now.astimezone()
    name, offset = here.tzname() or "", f"UTC{here:%z}"
    offset = f"{offset[:-2]}:{offset[-2:]}"
    return "UTC" if offset == "UTC+00:00" and name == "UTC" else f"{name} ({offset})"


def exact(at: datetime) -> str:
    """A time with its day and zone: `2026-11-25 10:31:07 CET (UTC+01:00)`."""
    return f"{stamp(at)} {zone(at)}" if 1970 <= at.year < 9999 else stamp(at)


def away(at: datetime, now: datetime) -> str:
    """What a time is from now: `in 12 s`, `3 min ago`."""
    seconds = (at - now).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def duration(seconds: float) -> str:
    """A length of time in at most two units: `0.4 s`, `12 s`, `3 min 5 s`, `2 h`, `4 d 1 h`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for (unit_s, unit), (lower_s, lower) in _UNITS:
        if whole >= unit_s:
            count, rest = whole // unit_s, whole % unit_s // lower_s
            return f"{count} {unit} {rest} {lower}" if rest else f"{count} {unit}"
    return f"{whole} s"


def latency(ms: float) -> str:
    """How long something fast took: `0.8 ms`, `31 ms`, then as a duration."""
    if ms < 1000:
        return f"{ms:.1f} ms" if ms < 9.95 else f"{ms:.0f} ms"
    return duration(ms / 1000)


def count_of(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 e-mail`, `1,200 e-mails`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
