"""One scheduler that is broken at one point: no minute has two runs, and the schedule goes on."""

from __future__ import annotations

import signal

from tests.failpoints.hatchery import Program
from tests.failpoints.lanes import Bench, Lane, open_lane, until
from tests.failpoints.table import SCHEDULER, Case

SCHEDULE = ("scheduler",)
BEAT = "INSERT INTO public.beats DEFAULT VALUES"
SLOW_BEAT = f"{BEAT}; SELECT pg_sleep(1.5)"
"""Longer than a look at the clock, so that its run is extended."""

GOES_ON_RUNS = 2


async def break_scheduler(bench: Bench, case: Case) -> None:
    """Break the scheduler that leads, let another take over where it must, and check."""
    point = SCHEDULER[case.point]
    async with open_lane(bench, case) as lane:
        await lane.db.execute("CREATE TABLE public.beats (at timestamptz DEFAULT clock_timestamp())")
        command = SLOW_BEAT if point.around == "slow" else BEAT
        await lane.db.fetchval("SELECT cron.schedule('beat', '1 second', $1)", command)
        victim = lane.start(SCHEDULE, {}, victim=True)
        if point.at_end:
            await _goes_on(lane)
            victim.signal(signal.SIGTERM)
        await lane.struck(victim)
        await _taken_over(lane, victim, at_end=point.at_end)
        await _check(lane)
        lane.check_logs()


async def _taken_over(lane: Lane, victim: Program, *, at_end: bool) -> None:
    """Somebody keeps the schedule; then all are told to end, and do so well."""
    fault, last = lane.case.fault, victim
    if fault == "kill":
        await lane.quiet(gone=True)
        await lane.db.execute("UPDATE postroom.cron_leader SET leads_until = clock_timestamp()")
        await lane.db.execute("UPDATE postroom.job_runs SET leased_until = clock_timestamp()")
    elif at_end and fault != "hang":
        assert await lane.ended(victim) == 0, victim.log[-2000:]
    if fault in ("kill", "hang") or at_end:
        last = lane.start(SCHEDULE, {}, victim=False)
    await _goes_on(lane)
    if fault == "hang":
        victim.signal(signal.SIGCONT)
        await _goes_on(lane)
    for program in {victim, last}:
        if program.code is None:
            await until(lambda program=program: "scheduler.started" in program.log)  # type: ignore[misc]
            program.signal(signal.SIGTERM)
        assert await lane.ended(program) == (-9 if program is victim and fault == "kill" else 0), program.log


async def _goes_on(lane: Lane) -> None:
    """Wait for some more runs that succeed."""
    count = """
        SELECT count(*)
        FROM postroom.job_runs AS run
        JOIN postroom.jobs AS job USING (jobid)
        WHERE job.jobname = 'beat' AND run.status = 'succeeded'
    """
    before = await lane.db.fetchval(count)

    async def are_more() -> bool:
        return bool(await lane.db.fetchval(count) >= before + GOES_ON_RUNS)

    await until(are_more)


async def _check(lane: Lane) -> None:
    """A run has one effect or none; of those that succeeded, each has its own, and none is still running."""
    row = await lane.db.fetchrow(
        """
        SELECT
            count(*) AS runs,
            count(DISTINCT (run.jobid, run.minute)) AS minutes,
            count(*) FILTER (WHERE run.status = 'succeeded') AS succeeded,
            count(*) FILTER (WHERE run.status NOT IN ('succeeded', 'failed')) AS open,
            (SELECT count(*) FROM public.beats) AS beats
        FROM postroom.job_runs AS run
        JOIN postroom.jobs AS job ON job.jobid = run.jobid
        WHERE job.jobname = 'beat'
        """
    )
    assert row is not None
    assert row["runs"] == row["minutes"], "a minute has two runs"
    assert row["open"] == 0, "a run of somebody who is gone goes on"
    assert row["succeeded"] <= row["beats"] <= row["runs"], dict(row)
