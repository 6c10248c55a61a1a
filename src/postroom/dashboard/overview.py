"""The first page: whether mail and webhooks flow. What it reads does not grow with history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from postroom.alerts.store import AlertStore
from postroom.dashboard.site import page, render, site_of
from postroom.database.snapshots import read_snapshot_holders
from postroom.queue.depths import read_depths
from postroom.queue.status import read_paused_transports, read_workers
from postroom.queue.times import Histogram, Minute, Stats, read_minutes, read_stats
from postroom.queues import EMAILS, QUEUES, WEBHOOKS
from postroom.schedule.status import read_cron

MINUTES = 60


@page
async def overview(request: Request) -> Response:
    """Both queues at a glance."""
    room = site_of(request).room
    database = room.database
    depths = await read_depths(database, QUEUES)
    minutes = await read_minutes(database, MINUTES)
    stats = await read_stats(database, timedelta(minutes=MINUTES), None)
    workers = await read_workers(database)
    return render(
        request,
        "overview.html",
        queues=[
            {
                "name": queue.name,
                "title": title,
                "path": path,
                "in_flight": depths.live.get((queue.name, "leased"), 0),
                "waiting": sum(
                    count
                    for (name, state), count in depths.live.items()
                    if name == queue.name and state != "leased"
                ),
                "waits": [
                    (state, count)
                    for (name, state), count in sorted(depths.live.items())
                    if name == queue.name and state != "leased" and count
                ],
                "uncounted": (queue.name, "uncounted") in depths.live,
                "dead": depths.dead_letters.get(queue.name, 0),
                "oldest_due_s": depths.oldest_due_s[queue.name],
                "workers": sum(worker.queue == queue.name for worker in depths.workers),
                "per_minute": _last_whole_minute(minutes, queue.name),
                "times": _times(stats, queue.name),
                "series": _series(minutes, queue.name),
            }
            for queue, title, path in ((EMAILS, "E-mail", "/emails"), (WEBHOOKS, "Webhooks", "/webhooks"))
        ],
        workers=[worker for worker in workers if worker.alive],
        limits=depths.limits,
        transports=await read_paused_transports(database),
        cron=await read_cron(database),
        alerts=[alert for alert in await AlertStore(database).read() if alert.fired_at and not alert.over_at],
        snapshot=next(iter(await read_snapshot_holders(database, count_max=1)), None),
    )


def _last_whole_minute(minutes: list[Minute], queue: str) -> int:
    before = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=1)
    return sum(minute.done for minute in minutes if minute.queue == queue and minute.at == before)


def _times(stats: Stats, queue: str) -> dict[str, float | None]:
    whole = Histogram()
    for line in stats.lines:
        if line.queue == queue:
            whole.include(line.times["total"].counts)
    return {f"p{share:g}": whole.percentile_ms(share / 100) for share in (50, 95, 99)}


def _series(minutes: list[Minute], queue: str) -> dict[str, Any]:
    """The last hour by minute: for the chart, and as a table for who cannot see it."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    by_minute = {minute.at: minute for minute in minutes if minute.queue == queue}
    ticks = [now - timedelta(minutes=back) for back in range(MINUTES - 1, -1, -1)]
    done = [by_minute[at].done if at in by_minute else 0 for at in ticks]
    failed = [by_minute[at].failed if at in by_minute else 0 for at in ticks]
    return {
        "json": orjson.dumps([[int(at.timestamp()) for at in ticks], done, failed]).decode(),
        "rows": [row for row in zip(ticks, done, failed, strict=True) if row[1] or row[2]],
    }
