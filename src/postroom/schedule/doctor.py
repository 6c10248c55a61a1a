"""Checks of the schedule: whether somebody keeps it, and whether its jobs succeed."""

from __future__ import annotations

from postroom.database.connect import Database
from postroom.finding import Finding, ok, warning
from postroom.schedule.status import read_cron


async def check_cron(database: Database) -> list[Finding]:
    """Look at the scheduler and at each job's last run; the schema must be there."""
    status = await read_cron(database)
    found = []
    if status.leader is not None:
        found.append(ok("scheduler", f"{status.leader.host} process {status.leader.pid} leads"))
    elif any(job.run_by == "postroom" and job.active for job in status.jobs):
        found.append(
            warning(
                "scheduler",
                "none runs: no cleanup, and nothing is delivered where no worker runs",
                "start `postroom up` or `postroom scheduler`",
            )
        )
    for job in status.jobs:
        name = job.name or f"job {job.jobid}"
        if job.active and job.last_status == "failed":
            found.append(
                warning(
                    "cron",
                    f"{name}'s last run failed: {job.last_message}",
                    f"see `postroom cron history {name}`",
                )
            )
        if job.run_by == "pg_cron" and job.active and "postroom.wake_for_job" in job.command:
            found.append(
                warning(
                    "cron",
                    f"pg_cron's {name} only wakes workers: where none runs nothing is delivered",
                    "install pg_net, set POSTROOM_PUBLIC_URL, then `postroom cron use-pg-cron`",
                )
            )
    return found
