"""`postroom cron`: the scheduled jobs, their history, and a run by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.house import actor, opened_room, run
from postroom.cli.screen import note, print_json, print_line, print_table, progress
from postroom.wording import away, duration

if TYPE_CHECKING:
    from postroom.schedule.status import CronStatus, JobStatus, RunStatus

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(help="Scheduled jobs.")


@app.callback()
def cron() -> None:
    """Scheduled jobs."""


@app.command("list")
def list_jobs(json: Json = False) -> None:
    """Show the jobs: their schedule (UTC), their last run and their next."""
    found, not_here = run(_list())
    if json:
        print_json({"leader": found.leader, "jobs": found.jobs, "not_configured": not_here})
        return
    print_table(
        ["JOBID", "NAME", "SCHEDULE", "BY", "LAST", "STATUS", "NEXT", "MESSAGE"],
        [_row(job, found) for job in found.jobs],
        flexible=["MESSAGE"],
    )
    for name, missing in not_here.items():
        print_line(f"{name} is not configured here: {missing}")
    if found.leader is None:
        note("no scheduler runs: start `postroom up` or `postroom scheduler`")


@app.command("history")
def history(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One job, by name or number.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many.")] = 20,
    json: Json = False,
) -> None:
    """Show the last runs, newest first."""
    runs = run(_history(name, limit))
    if json:
        print_json(runs)
        return
    print_table(
        ["RUN", "JOB", "STARTED", "TOOK", "STATUS", "MESSAGE"],
        [
            (
                each.runid,
                each.job or each.jobid,
                each.start_time,
                duration((each.end_time - each.start_time).total_seconds())
                if each.start_time and each.end_time
                else "",
                each.status,
                each.return_message,
            )
            for each in runs
        ],
        flexible=["MESSAGE"],
    )


@app.command("run")
def run_job(name: Annotated[str, typer.Argument(metavar="NAME", help="A job, by name or number.")]) -> None:
    """Run a job now, in this process, and say what it did."""
    print_line(run(_run(name)))


@app.command("use-pg-cron")
def use_pg_cron() -> None:
    """Let pg_cron run the jobs that it can: schema cron becomes its own."""
    for line in run(_use_pg_cron()):
        print_line(line)


@app.command("use-own")
def use_own() -> None:
    """Make schema cron over postroom's own jobs, also where pg_cron could be installed."""
    print_line(run(_use_own()))


async def _use_pg_cron() -> list[str]:
    from postroom.database.audit import record_alone
    from postroom.schedule.pg_cron import use_pg_cron

    async with opened_room() as room:
        await record_alone(room.database, actor(), "cron.use", {"scheduler": "pg_cron"})
        return await use_pg_cron(room.database, room.settings.public_url)


async def _use_own() -> str:
    from postroom.database.audit import record_alone
    from postroom.schedule.pg_cron import use_own

    async with opened_room() as room:
        await record_alone(room.database, actor(), "cron.use", {"scheduler": "postroom"})
        return await use_own(room.database)


async def _list() -> tuple[CronStatus, dict[str, str]]:
    from postroom.jobs import not_configured
    from postroom.schedule.status import read_cron

    async with opened_room() as room:
        return await read_cron(room.database), not_configured(room)


async def _history(name: str | None, limit: int) -> list[RunStatus]:
    from postroom.schedule.status import read_cron, read_runs

    async with opened_room() as room:
        runs = await read_runs(room.database, name, limit)
        if name is not None and not runs:  # one that is gone may have a history
            jobs = (await read_cron(room.database)).jobs
            if not any(name in (job.name, str(job.jobid)) for job in jobs):
                known = ", ".join(job.name or str(job.jobid) for job in jobs)
                raise WrongUsage(f"there is no job {name!r}, and no run of it; jobs: {known}")
        return runs


async def _run(name: str) -> str:
    from postroom import log
    from postroom.jobs import JobRefused, run_by_name

    async with opened_room() as room:
        log.configure(room.settings.log_format, room.settings.log_level)
        with progress(f"running {name}"):
            try:
                return await run_by_name(room, name, by=actor())
            except JobRefused as error:
                raise WrongUsage(str(error)) from error


def _row(job: JobStatus, found: CronStatus) -> tuple[object, ...]:
    return (
        job.jobid,
        job.name,
        job.schedule,
        job.run_by,
        away(job.last_start, found.now) if job.last_start else "never",
        job.last_status,
        away(job.next_at, found.now) if job.next_at else "off" if not job.active else "never",
        job.last_message,
    )
