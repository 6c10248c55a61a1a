"""Checks of the queues: whether somebody works on them, and whether rows refuse to be worked on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from postroom.database.connect import Database
from postroom.finding import Finding, ok, problem, warning
from postroom.queue.pauses import Pause
from postroom.queue.status import read_status
from postroom.queue.table import QueueTable
from postroom.wording import count_of, duration

OVERDUE_S = 60.0
"""What has been due for longer than this, with slots free and no transport paused, is held up."""


async def check_queues(
    database: Database, queues: Sequence[QueueTable], worked: Sequence[str]
) -> list[Finding]:
    """
    Look at workers and queues; the schema must be there.

    Args:
        worked: The names of the queues that this version has workers for.
    """
    status = await read_status(database, queues)
    alive = [worker for worker in status.workers if worker.alive]
    held = {pause.name for pause in status.paused if pause.kind == "queue"}
    found: list[Finding] = []
    for name in worked:
        workers = [worker for worker in alive if worker.queue == name and worker.claims]
        overdue_s = status.queues[name].oldest_due_s or 0
        if workers:
            found.append(ok("workers", f"{count_of(len(workers), 'worker')} of queue {name}"))
        elif overdue_s > OVERDUE_S and name not in held:
            waiting = f"queue {name} has been due for {duration(overdue_s)}"
            found.append(
                problem("workers", f"none runs, and {waiting}", "start `postroom up` or `postroom worker`")
            )
        else:
            found.append(
                warning("workers", f"none of queue {name} runs", "start `postroom up` or `postroom worker`")
            )
        if refused := status.queues[name].waiting.get("refused"):
            found.append(
                warning(
                    "refused rows",
                    f"{count_of(refused, 'row')} of queue {name} refuse our updates",
                    "change the trigger or constraint that postroom.refused_rows names",
                )
            )
    versions = sorted({worker.version for worker in alive})
    if len(versions) > 1:
        found.append(warning("versions", f"workers of {', '.join(versions)} run", "upgrade the older ones"))
    found += [_of_pause(pause, status.now) for pause in status.paused]
    return found


def _of_pause(pause: Pause, now: datetime) -> Finding:
    if pause.by_hand:
        return warning("paused", f"{pause.what} is {pause.said(now)}", f"`{pause.resume_command}`")
    return warning(
        "transport", f"workers have paused {pause.name}: {pause.reason}", "see the transport's check"
    )
