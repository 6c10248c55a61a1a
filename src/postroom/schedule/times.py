"""When a schedule is due: cron's five fields, @daily and its like, or `N seconds`; always in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cronsim import CronSim, CronSimError

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def latest_due(schedule: str, now: datetime) -> datetime | None:
    """
    The last moment until `now` for which the schedule has a run; None where it never had one.

    Args:
        schedule: As postroom.is_schedule() takes it.
        now: With a time zone.

    Raises:
        ValueError: It is no schedule.
    """
    if every := _seconds(schedule):
        return datetime.fromtimestamp(now.timestamp() // every * every, UTC)
    return _latest_minute(schedule, now.astimezone(UTC).replace(second=0, microsecond=0))


def next_due(schedule: str, after: datetime) -> datetime | None:
    """The first moment after `after` for which it has one; None where none comes. Raises as latest_due()."""
    if every := _seconds(schedule):
        return datetime.fromtimestamp(after.timestamp() // every * every + every, UTC)
    return next(_times(schedule, after.astimezone(UTC)), None)


@lru_cache(maxsize=256)
def _latest_minute(schedule: str, minute: datetime) -> datetime | None:
    return next(_times(schedule, minute + timedelta(minutes=1), reverse=True), None)


def _times(schedule: str, moment: datetime, *, reverse: bool = False) -> CronSim:
    fields = _MACROS.get(schedule.strip().lower(), schedule).split()
    if len(fields) != 5:  # it would take the first of six for seconds
        raise ValueError(f"{schedule!r} is no schedule")
    fields[2] = fields[2].replace("$", "L")
    try:
        return CronSim(" ".join(fields), moment, reverse=reverse)
    except CronSimError as error:
        raise ValueError(f"{schedule!r} is no schedule: {error}") from None


def _seconds(schedule: str) -> int | None:
    match = re.fullmatch(r"([1-9]|[1-5][0-9]) seconds?", schedule, re.IGNORECASE)
    return int(match[1]) if match else None
