"""Who leads: one, by the database's clock, and never two that begin the same run."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from postroom.database.connect import Database
from tests.schedule.conftest import NOON, Clockwork, add_job, set_last_minute

MINUTE = NOON + timedelta(minutes=1)


async def test_one_leads_and_another_takes_over_when_its_lease_has_ended(clockwork: Clockwork) -> None:
    """Within 6 s of the leader's death; the minute that was due meanwhile is done once."""
    first, second = clockwork.scheduler(), clockwork.scheduler()
    assert await clockwork.tick(first)
    assert not await clockwork.tick(second)
    assert await clockwork.tick(first, seconds=57)
    await clockwork.kill(first)
    assert not await clockwork.tick(second, seconds=5.9)
    assert await clockwork.tick(second, seconds=0.2)
    await second.settled()
    assert await clockwork.history() == [("process-email-queue", "succeeded", MINUTE)]


async def test_a_leader_that_ends_leaves_its_place_at_once(clockwork: Clockwork) -> None:
    """Nobody waits for its lease."""
    first, second = clockwork.scheduler(), clockwork.scheduler()
    await clockwork.tick(first)
    await first._end()
    assert await clockwork.tick(second)


async def test_a_leader_that_wakes_up_late_begins_nothing(clockwork: Clockwork) -> None:
    """Stopped between two statements, it still believes that it leads; the database does not."""
    first, second = clockwork.scheduler(), clockwork.scheduler()
    await clockwork.tick(first)
    clockwork.now = MINUTE
    assert await clockwork.tick(second, seconds=0.1)
    await second.settled()
    late = clockwork.now + timedelta(minutes=1)
    begun = await first._store.begin(first.id, 19, MINUTE + timedelta(minutes=1), 1, late)
    assert begun is None
    assert not await clockwork.tick(first, seconds=0.1)
    assert clockwork.ran == [("process-email-queue", MINUTE + timedelta(seconds=0.1))]


@pytest.mark.parametrize("jump", [timedelta(days=-3650), timedelta(minutes=-2), timedelta(days=3650)])
async def test_a_clock_that_jumps_stops_nothing(clockwork: Clockwork, jump: timedelta) -> None:
    """Neither the leader's lease nor what was done in a time that never was is waited for."""
    first, second = clockwork.scheduler(), clockwork.scheduler()
    await clockwork.tick(first, minutes=5)
    await first.settled()
    await clockwork.kill(first)
    clockwork.now += jump
    for _ in range(20):
        await clockwork.tick(second, seconds=1)
    await second.settled()
    assert [name for name, _ in clockwork.ran] == ["process-email-queue"] * 2
    history = await clockwork.history()
    assert [status for _, status, _ in history] == ["succeeded"] * 2
    assert history[0][2] != history[1][2]


async def test_a_run_goes_on_while_the_clock_is_set_back(clockwork: Clockwork) -> None:
    """Its scheduler says that it goes on, in the new time; its end is never before its start."""
    clockwork.hold.set()
    scheduler = clockwork.scheduler()
    await clockwork.tick(scheduler, minutes=2)
    await clockwork.tick(scheduler, hours=-1)
    (status,) = [status for _, status, _ in await clockwork.history()]
    assert status == "running"


@pytest.mark.parametrize("leads", [True, False])
async def test_of_many_who_begin_the_same_minute_at_once_one_does(
    clockwork: Clockwork, database: Database, leads: bool
) -> None:
    """Twenty at once, whatever they believe: the unique key decides; who asks twenty times has one run."""
    schedulers = [clockwork.scheduler() for _ in range(20)]
    leader = schedulers[0]
    await leader._store.lead(leader.id, "host", 1, "", ["another job"] if not leads else [], MINUTE)
    asked = [each._store.begin(leader.id if leads else each.id, 19, MINUTE, 1, MINUTE) for each in schedulers]
    begun = [runid for runid in await asyncio.gather(*asked) if runid is not None]
    assert len(begun) == (20 if leads else 1)
    assert len(set(begun)) == 1
    assert len(await clockwork.history()) == 1


async def test_many_who_come_at_once_have_one_leader(clockwork: Clockwork) -> None:
    """On an empty table, and when a lease ends."""
    schedulers = [clockwork.scheduler() for _ in range(10)]
    for _ in range(3):
        standings = await asyncio.gather(*(each.tick(clockwork.now) for each in schedulers))
        assert sum(standing.leads for standing in standings) == 1
        clockwork.now += timedelta(seconds=7)


async def test_a_job_that_the_leader_cannot_run_is_run_by_who_can(clockwork: Clockwork) -> None:
    """Such as one that needs a key which only one machine has."""
    leader = clockwork.scheduler()
    other = clockwork.scheduler(["process-email-queue", "reconcile"])
    await clockwork.database.execute("UPDATE postroom.jobs SET active = true WHERE jobid = 1002")
    await set_last_minute(clockwork.database)
    assert await clockwork.tick(leader, minutes=7)
    assert not await clockwork.tick(other)
    await other.settled()
    await leader.settled()
    assert [name for name, _ in clockwork.ran] == ["process-email-queue", "reconcile"]


async def test_a_job_that_nobody_can_run_is_a_failed_run(clockwork: Clockwork, database: Database) -> None:
    """Not a silent gap: its history says what is missing."""
    await database.execute("UPDATE postroom.jobs SET active = jobid = 1002")
    await set_last_minute(database)
    leader = clockwork.scheduler([])
    await clockwork.tick(leader, minutes=7)
    await clockwork.tick(leader, seconds=9)
    assert await clockwork.history() == []
    for _ in range(3):
        await clockwork.tick(leader, seconds=2)
    await leader.settled()
    said = await database.fetch("SELECT status, return_message FROM cron.job_run_details")
    assert [tuple(row) for row in said] == [
        ("failed", "no scheduler that runs has what this job needs: see `postroom cron list`")
    ]


async def test_a_persons_job_runs_with_no_others_rights(clockwork: Clockwork, database: Database) -> None:
    """Whoever writes the command is whom it runs as; where no scheduler is that user, the run fails."""
    await add_job(database, "theirs", command="SELECT 'mine'")
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL ROLE service_role")
        await connection.execute(
            "UPDATE postroom.jobs SET command = 'theirs', username = 'postgres' WHERE NOT builtin"
        )
    assert await database.fetchval("SELECT username FROM cron.job WHERE jobname = 'theirs'") == "service_role"
    leader = clockwork.scheduler()
    await clockwork.tick(leader, minutes=1)
    for _ in range(8):
        await clockwork.tick(leader, seconds=2)
    await leader.settled()
    assert "theirs" not in [name for name, _ in clockwork.ran]
    said = await database.fetchval("SELECT return_message FROM cron.job_run_details WHERE command = 'theirs'")
    assert said == "no scheduler runs as service_role, who has scheduled this job"
