"""postroom's own jobs, and the scheduler that runs them: what each needs of the house, and what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from postroom import log
from postroom.database.audit import Actor
from postroom.database.connect import DEADLINE_S
from postroom.errors import PostroomError
from postroom.queue.engine import Engine, Pass
from postroom.queue.status import read_workers
from postroom.schedule.by_hand import run_by_hand
from postroom.schedule.cleanup import Step, cleanup
from postroom.schedule.job import Job, Run
from postroom.schedule.pg_cron import adopt
from postroom.schedule.scheduler import Scheduler, run_of
from postroom.schedule.sql_job import run_sql
from postroom.schedule.status import JobStatus, read_cron
from postroom.schedule.store import CronStore
from postroom.version import VERSION
from postroom.wording import count_of

if TYPE_CHECKING:
    from postroom.room import Room
    from postroom.webhooks.source import Source

CLEANUP = (
    Step("e-mails", "public.email_queue", "postroom.cleanup_emails"),
    Step("webhook events", "public.webhook_retry_queue", "postroom.cleanup_webhooks"),
    Step("known event ids", "postroom.seen_webhooks", "postroom.cleanup_seen_webhooks"),
    Step("limits", "public.rate_limit_counters", "postroom.cleanup_limits"),
    Step("runs of jobs", "postroom.job_runs", "postroom.cleanup_job_runs"),
    Step("minutes of figures", "postroom.processing_minutes", "postroom.cleanup_times"),
    Step("entries of the audit trail", "postroom.audit", "postroom.cleanup_audit"),
    Step("runs of pg_cron", "cron.job_run_details", "postroom.cleanup_pg_cron_runs"),
)
"""What cleanup goes through, in this order."""

PASS_S_MAX = 50.0
"""A pass claims no more after this time: the next minute's finds it done."""

RECONCILE_OVERLAP = timedelta(minutes=10)
"""How far behind its last success a reconciliation looks again: clocks differ, and lists fill late."""


SCHEDULER_CONNECTIONS = 3

_log = log.get_logger()


async def scheduler_of(room: Room) -> Scheduler:
    """
    What runs the jobs at their times, on connections of its own: a busy house does not hold it up.

    Raises:
        ConfigError: A source of postroom.toml is wrong.
    """
    for line in await adopt(room.database, room.settings.public_url):
        _log.info("cron.adopted", did=line)
    database = await room.further_connections(max_size=SCHEDULER_CONNECTIONS, command_timeout_s=DEADLINE_S)
    url = await room.database_url()
    return Scheduler(
        CronStore(database), jobs_of(room), lambda command: run_sql(url, command), version=VERSION
    )


def jobs_of(room: Room) -> list[Job]:
    """
    The jobs that this process can run.

    Raises:
        ConfigError: A source of postroom.toml is wrong.
    """
    jobs = [
        Job("process-email-queue", partial(_process_emails, room)),
        Job("process-webhook-retries", partial(_process_webhooks, room)),
        Job("cleanup", partial(_cleanup, room)),
        Job("alerts", partial(_alerts, room)),
    ]
    if (source := source_to_reconcile(room)) is not None:
        jobs.append(Job("reconcile", partial(_reconcile, room, source)))
    return jobs


def not_configured(room: Room) -> dict[str, str]:
    """The jobs that this process cannot run, each with what is missing."""
    if source_to_reconcile(room) is not None:
        return {}
    if room.settings.stripe_api_key is None:
        return {"reconcile": "set STRIPE_API_KEY to a key that may read events: sk_… or rk_…"}
    return {"reconcile": "it needs one source of scheme stripe, or one that is named stripe"}


class JobRefused(PostroomError):
    """This process does not run such a job: the text says why, and what to do."""


async def run_by_name(room: Room, name: str, *, by: Actor | None = None) -> str:
    """
    Run a job now, in this process: one of postroom's own, or a person's SQL; returns its message.

    Args:
        name: The job's name, or its number.
        by: The person who asks for it, for the audit trail; None where a program does.

    Raises:
        JobRefused: There is no such job, or it is not for this process.
        PostroomError: It runs already, or it failed.
        ConfigError: A source, or the table [alerts], of postroom.toml is wrong.
    """
    store = CronStore(room.database)
    own = {job.name: job for job in jobs_of(room)}
    await store.offer(own)
    row = await store.job(name)
    listed = (await read_cron(room.database)).jobs
    if row is None and any(name in (each.name, str(each.jobid)) for each in listed):
        raise JobRefused(f"{name!r} is pg_cron's: run its command by `postroom psql`")
    if row is None or (row.builtin and row.name not in own):
        missing = not_configured(room).get(row.name or "" if row else name)
        jobs = ", ".join(each.name or str(each.jobid) for each in listed)
        raise JobRefused(missing or f"there is no job {name!r}; jobs: {jobs}")
    if row.builtin:
        assert row.name is not None
        job, told = own[row.name], run_of(row, await store.now(), asyncio.Event())
        return await run_by_hand(store, row, lambda: job.run(told), by=by)
    user = await store.user()
    if row.runs_as != f"sql:{user}":
        raise JobRefused(
            f"{row.called} runs with the rights of {row.runs_as.removeprefix('sql:')}, who has scheduled it, "
            f"and this process works as {user}: run it as that user"
        )
    url = await room.database_url()
    return await run_by_hand(store, row, lambda: run_sql(url, row.command), by=by)


async def runnable_jobs(room: Room, jobs: Sequence[JobStatus]) -> set[int]:
    """Which of some jobs run_by_name() runs here, by their numbers."""
    own = {job.name for job in jobs_of(room)}
    user = await CronStore(room.database).user()
    return {
        job.jobid
        for job in jobs
        if job.run_by == "postroom" and (job.name in own if job.builtin else job.username == user)
    }


def source_to_reconcile(room: Room) -> Source | None:
    """
    The source whose events the job `reconcile` lists; None without a key of Stripe's API, or a source of it.

    A key belongs to one account: of several sources it is the one named stripe.
    """
    if room.settings.stripe_api_key is None:
        return None
    of_stripe = {name: source for name, source in room.sources.items() if source.scheme.name == "stripe"}
    return next(iter(of_stripe.values())) if len(of_stripe) == 1 else of_stripe.get("stripe")


async def _process_emails(room: Room, run: Run) -> str:
    """What is due goes out, where no worker does it."""
    if left := await _left_to_workers(room, "email"):
        return left
    ended = await _pass(room.email_engine(), run)
    paused = f"; {ended.paused}" if ended.paused else ""
    return f"{ended.done:,} sent, {ended.failed:,} failed, {ended.put_back:,} put back to wait{paused}"


async def _process_webhooks(room: Room, run: Run) -> str:
    """The same for events."""
    if left := await _left_to_workers(room, "webhook"):
        return left
    await room.prepare_handlers()
    ended = await _pass(room.webhook_engine(), run)
    paused = f"; {ended.paused}" if ended.paused else ""
    return f"{ended.done:,} processed, {ended.failed:,} failed{paused}"


async def _left_to_workers(room: Room, queue: str) -> str | None:
    alive = [
        worker
        for worker in await read_workers(room.database)
        if worker.queue == queue and worker.alive and worker.claims
    ]
    return f"left to {count_of(len(alive), 'worker')}" if alive else None


async def _pass(engine: Engine[Any], run: Run) -> Pass:
    return await engine.run_pass(limit_s=PASS_S_MAX, stop=run.stop)


async def _reconcile(room: Room, source: Source, run: Run) -> str:
    """
    Store what Stripe has made since the last success and what never arrived.

    Its first run looks at nothing of before: what another program has handled by then would come again.
    """
    from postroom.webhooks.reconcile import SINCE_MAX, reconcile_stripe
    from postroom.webhooks.stripe_api import StripeApi

    key = room.settings.stripe_api_key
    assert key is not None
    since = max(run.first_began_at or run.began_at, run.began_at - SINCE_MAX)
    if run.last_succeeded_at is not None:
        since = max(since, run.last_succeeded_at - RECONCILE_OVERLAP)
    async with StripeApi(room.settings.stripe_api_url, key.get_secret_value()) as api:
        work = reconcile_stripe(room.database, source, api, since, events=await _wanted_types(room, source))
        found = await _unless_stopped(work, run.stop)
    if found.refused:
        raise PostroomError(f"the database refused {count_of(found.refused, 'event')}: see its triggers")
    return f"{found.missing:,} of {count_of(found.listed, 'event')} had not arrived: stored now"


async def _wanted_types(room: Room, source: Source) -> tuple[str, ...]:
    """The patterns of types that handlers want; all where there is no handler yet."""
    rows = await room.database.fetch(
        "SELECT DISTINCT unnest(events) AS pattern FROM postroom.handlers WHERE source = $1", source.name
    )
    patterns = {row["pattern"] for row in rows}
    patterns.update(pattern for handler in source.handlers for pattern in handler.events)
    return tuple(sorted(patterns)) or ("*",)


async def _cleanup(room: Room, run: Run) -> str:
    """What the retention settings say is old is forgotten."""
    found = await cleanup(room.database, CLEANUP, stop=run.stop)
    said = [
        f"{count:,} {cleaned.step.name} ({rule})"
        for cleaned in found
        for rule, count in cleaned.counts.items()
    ]
    said += [
        f"{count_of(cleaned.refused, 'row')} of {cleaned.step.name} refused: {cleaned.why}"
        for cleaned in found
        if cleaned.refused
    ]
    if run.stop.is_set():
        said.append("stopped before the end")
    return ", ".join(said) or "nothing was old enough"


async def _alerts(room: Room, _run: Run) -> str:
    """Each rule looks, and who is to be told is told."""
    from postroom.alerts.run import run_alerts

    return await run_alerts(room)


async def _unless_stopped(work: Coroutine[Any, Any, Any], stop: asyncio.Event) -> Any:
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise PostroomError("broken off: the process was told to end")
        return task.result()
    finally:
        task.cancel()
        stopped.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
