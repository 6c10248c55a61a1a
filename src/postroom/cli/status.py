"""`postroom status`: the house at a glance."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from postroom.cli.house import opened_room, run
from postroom.cli.screen import heading, print_json, print_table, print_text, progress
from postroom.wording import away, clock, count_of, duration

if TYPE_CHECKING:
    from postroom.queue.status import QueueStatus, Status, WorkerStatus
    from postroom.schedule.status import CronStatus

_WAITS = {
    "due": "for a worker",
    "lease": "for its attempt to end",
    "limit:email:global": "for the limit of all e-mails",
    "limit:email:recipient": "for the limit of its recipient",
    "backoff": "for its next try",
    "send_at": "for the time it is to go out at",
    "next_retry_at": "for its next_retry_at",
    "transport": "for its transport",
    "paused": "for their queue to be resumed",
    "refused": "for a trigger or constraint to be changed (`postroom explain ID`)",
}


def status(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show counts and ages of both queues, what waits and why, workers, transports, limits and cron."""
    found, cron = run(_read())
    if json:
        # Field by field: asdict() would go down to the last one, which the encoder does by itself.
        print_json({**{each.name: getattr(found, each.name) for each in fields(found)}, "cron": cron})
    else:
        _print(found)
        _print_cron(cron)


async def _read() -> tuple[Status, CronStatus]:
    from postroom.queue.status import read_status
    from postroom.queues import QUEUES
    from postroom.schedule.status import read_cron

    async with opened_room() as room:
        with progress("counting"):
            found = await read_status(room.database, QUEUES, ways=room.transport_names)
            return found, await read_cron(room.database)


def _print(found: Status) -> None:
    print_table(
        ["QUEUE", "STATUS", "COUNT", "OLDEST"],
        [
            (name, state, count, _age(queue.oldest_s.get(state)))
            for name, queue in found.queues.items()
            for state, count in (queue.counts or {"empty": 0}).items()
        ],
    )
    for name, queue in found.queues.items():
        _print_waiting(name, queue)
    _print_workers(found)
    if found.limits:
        heading("Limits")
    for limit in found.limits:
        if limit.amount is None:
            print_text(f"{limit.key}: {limit.setting}")
        else:
            free = f", the next slot is free in {duration(limit.next_free_s)}" if limit.next_free_s else ""
            print_text(f"{limit.key}: {limit.used:,} of {limit.amount:,} used ({limit.setting}){free}")


def _print_waiting(name: str, queue: QueueStatus) -> None:
    if not queue.waiting:
        return
    heading(f"Waiting ({name})")
    for reason, count in queue.waiting.items():
        due = reason == "due" and queue.oldest_due_s is not None
        since = f", the oldest for {duration(queue.oldest_due_s or 0)}" if due else ""
        print_text(f"{count:,} {_waits(reason)}{since}")


def _waits(reason: str) -> str:
    if reason.startswith("limit:") and reason not in _WAITS:
        return f"for the limit {reason.removeprefix('limit:')}"
    return _WAITS.get(reason, reason)


def _print_workers(found: Status) -> None:
    heading("Workers")
    alive = [worker for worker in found.workers if worker.alive]
    if not any(worker.claims for worker in alive):
        print_text("none: start `postroom up` or `postroom worker`")
    for worker in alive:
        ended = "".join(f", {count:,} {verdict}" for verdict, count in worker.settled.items())
        started = f"started {away(worker.started_at, found.now)}{ended}"
        print_text(f"{worker.queue}: {worker.host} process {worker.pid}, {_state(worker)}, {started}")
    lost = len(found.workers) - len(alive)
    if lost:
        print_text(
            f"{count_of(lost, 'worker')} not seen any more, the last {duration(_last_seen(found))} ago"
        )
    if found.transports:
        heading("Transports")
    for transport in found.transports:
        print_text(f"{transport.name}: {transport.state}")
    if found.oldest_snapshot is not None:
        heading("Old snapshot")
        print_text(f"{found.oldest_snapshot}: the queue slows down; `postroom doctor` says what to do")
    if found.paused:
        heading("Paused")
    for pause in found.paused:
        print_text(f"{pause.what} is {pause.said(found.now)}")
        if pause.by_hand:
            print_text(f"it goes on by: {pause.resume_command}", "  ")


def _print_cron(found: CronStatus) -> None:
    heading("Cron")
    if found.leader is None:
        print_text("no scheduler runs: start `postroom up` or `postroom scheduler`")
    else:
        leader = f"{found.leader.host} process {found.leader.pid}"
        print_text(f"scheduler: {leader}, leads since {clock(found.leader.leads_since, found.now)}")
    for job in found.jobs:
        name = job.name or f"job {job.jobid}"
        if not job.active:
            print_text(f"{name}: off")
            continue
        last = "never run"
        if job.last_start is not None:
            message = f" ({job.last_message})" if job.last_message else ""
            last = f"{job.last_status} {away(job.last_start, found.now)}{message}"
        by = " by pg_cron" if job.run_by == "pg_cron" else ""
        print_text(f"{name} ({job.schedule}{by}): {last}")
        if job.run_by == "pg_cron" and "postroom.wake_for_job" in job.command:
            print_text(
                f"{name} only wakes workers, and where none runs nothing is delivered: it needs pg_net and "
                "POSTROOM_PUBLIC_URL, then `postroom cron use-pg-cron`",
                "  ",
            )


def _state(worker: WorkerStatus) -> str:
    if not worker.claims:
        return "for direct e-mails"
    return "asleep" if worker.asleep else f"{count_of(worker.begun, 'attempt')} in flight"


def _last_seen(found: Status) -> float:
    return min(worker.seen_s for worker in found.workers if not worker.alive)


def _age(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
