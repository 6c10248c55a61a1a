"""When a schedule is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from postroom.schedule.times import latest_due, next_due

THURSDAY = datetime(2026, 1, 1, 12, 34, 56, tzinfo=UTC)

DUE = {
    "* * * * *": ("2026-01-01 12:34:00", "2026-01-01 12:35:00"),
    "*/5 * * * *": ("2026-01-01 12:30:00", "2026-01-01 12:35:00"),
    "34 12 * * *": ("2026-01-01 12:34:00", "2026-01-02 12:34:00"),
    "35 12 * * *": ("2025-12-31 12:35:00", "2026-01-01 12:35:00"),
    "15 3 * * sun": ("2025-12-28 03:15:00", "2026-01-04 03:15:00"),
    "0 0 $ * *": ("2025-12-31 00:00:00", "2026-01-31 00:00:00"),
    "0 0 29 2 *": ("2024-02-29 00:00:00", "2028-02-29 00:00:00"),
    "0 0 1,15 * 1": ("2026-01-01 00:00:00", "2026-01-05 00:00:00"),
    "@hourly": ("2026-01-01 12:00:00", "2026-01-01 13:00:00"),
    "@Daily": ("2026-01-01 00:00:00", "2026-01-02 00:00:00"),
    "@yearly": ("2026-01-01 00:00:00", "2027-01-01 00:00:00"),
    "10 seconds": ("2026-01-01 12:34:50", "2026-01-01 12:35:00"),
    "1 second": ("2026-01-01 12:34:56", "2026-01-01 12:34:57"),
}


@pytest.mark.parametrize("schedule", DUE)
def test_the_latest_moment_until_now_and_the_next(schedule: str) -> None:
    """In UTC, whichever zone the time is given in; a minute is due from its first second on."""
    latest, following = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in DUE[schedule])
    elsewhere = THURSDAY.astimezone()
    assert (latest_due(schedule, THURSDAY), next_due(schedule, THURSDAY)) == (latest, following)
    assert latest_due(schedule, elsewhere) == latest
    assert latest_due(schedule, latest) == latest
    assert latest_due(schedule, latest - timedelta(microseconds=1)) != latest


WRONG = ["", "* * * *", "* * * * * *", "61 * * * *", "5-1 * * * *", "a * * * *", "*/0 * * * *", "60 seconds"]
WRONG += ["0 seconds", "@reboot", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *", "0 0 * * 8", "; DROP TABLE x"]


@pytest.mark.parametrize("schedule", WRONG)
def test_what_is_no_schedule_is_refused(schedule: str) -> None:
    """With an error, not with a job that never runs."""
    with pytest.raises(ValueError, match="is no schedule"):
        latest_due(schedule, THURSDAY)


def test_the_database_and_the_program_agree_on_what_a_schedule_is(database_url: str) -> None:
    """What may be written down can be read, and what cannot be read may not be written down."""
    more_wrong = ["5/2 * * * *", "0 0 L * *", "0 0 * janx *", "0 0 * * mon#1", "*,x * * * *"]
    with psycopg.connect(database_url) as connection:
        for schedule in (*DUE, "0-59/7,3 1-2 * jan-mar,12 mon-fri", *WRONG, *more_wrong):
            (taken,) = connection.execute("SELECT postroom.is_schedule(%s)", (schedule,)).fetchone() or ()
            assert taken is (schedule in DUE or schedule.startswith("0-59")), schedule
    assert latest_due("0-59/7,3 1-2 * jan-mar,12 mon-fri", THURSDAY)


def test_a_day_that_never_comes_has_no_moment() -> None:
    """The thirtieth of February."""
    with pytest.raises(ValueError, match="is no schedule"):
        next_due("0 0 30 2 *", THURSDAY)
