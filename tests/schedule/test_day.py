"""A whole day of minutes, in which the leader is killed again and again."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random

from postroom.database.connect import Database
from postroom.schedule.scheduler import Scheduler
from tests.schedule.conftest import NOON, Clockwork, add_job

DAY = timedelta(days=1)
LOOK_S = 30


async def test_a_day_of_minutes_loses_no_run_and_doubles_none(
    clockwork: Clockwork, database: Database
) -> None:
    """
    Two schedulers look each half minute, for 24 hours; now and then one is killed, often amid a run.

    Each (job, minute) has at most one run; no job waits for longer than its interval and the 10 s that the
    promise has; whatever began has ended, in the history too.
    """
    random = Random(7)
    await add_job(database, "five", "*/5 * * * *", "five")
    await add_job(database, "nightly", "15 3 * * *", "nightly")
    living = [clockwork.scheduler(), clockwork.scheduler()]
    kills = 0
    while clockwork.now < NOON + DAY:
        clockwork.now += timedelta(seconds=LOOK_S)
        if clockwork.now.second < LOOK_S and random.random() < 0.05:
            kills += 1
            clockwork.hold.set()  # what begins now will not end
            await _look(living[0], clockwork)
            await clockwork.kill(living.pop(0))
            clockwork.hold.clear()
            living.append(clockwork.scheduler())
            for _ in range(7):  # the others look once a second, as they do
                clockwork.now += timedelta(seconds=1)
                await _look(living[0], clockwork)
        for scheduler in living:
            await _look(scheduler, clockwork)
    assert kills > 30

    rows = await database.fetch("SELECT * FROM postroom.job_runs ORDER BY runid")
    assert max(Counter((row["jobid"], row["minute"]) for row in rows).values()) == 1
    assert {row["status"] for row in rows} == {"succeeded", "failed"}
    began: dict[str, list[datetime]] = defaultdict(lambda: [NOON])
    for row in rows:
        began[row["command"]].append(row["start_time"])
    assert len(began["nightly"]) == 2
    for command, interval_s in (("postroom cron run process-email-queue", 60), ("five", 300)):
        gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(began[command])]
        # The look itself comes up to half a minute late here, where in life it comes each second.
        assert max(gaps) <= interval_s + 10 + LOOK_S
        assert len(gaps) >= DAY.total_seconds() / interval_s * 0.98


async def _look(scheduler: Scheduler, clockwork: Clockwork) -> None:
    await scheduler.tick(clockwork.now)
    if not clockwork.hold.is_set():
        await scheduler.settled()
