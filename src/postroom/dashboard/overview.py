"""
The first page: whether mail and webhooks flow. What it reads does not grow with history.

It comes in two parts that a browser asks for again while its tab is seen: `live`, what is there at the
moment, every few seconds, and `flow`, what went through by the minute, a tenth as often.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from postroom.alerts.store import AlertStore
from postroom.dashboard.site import TITLES, page, render, site_of
from postroom.dashboard.verdict import House, judge
from postroom.database.connect import Database
from postroom.database.snapshots import read_snapshot_holders
from postroom.queue.bulk import read_interrupted
from postroom.queue.depths import Depths, read_depths
from postroom.queue.status import read_limit_waits, read_limits
from postroom.queue.times import MEASURES, Flow, QueueFlow, read_flow, read_last_minute
from postroom.queue.transports import read_transports
from postroom.queues import EMAILS, QUEUES
from postroom.room import Room
from postroom.schedule.status import CronStatus, read_cron

WAITED_FOR_MAX = 8
"""Recipients, domains, … whose limit e-mails wait for: those with the longest lines."""


@dataclass(frozen=True, slots=True)
class Span:
    """How far back the charts go, and how often a browser asks for them."""

    title: str
    steps: int
    step: timedelta
    every_s: int


SPANS = {
    "1h": Span("hour", 60, timedelta(minutes=1), 30),
    "6h": Span("6 hours", 72, timedelta(minutes=5), 60),
    "24h": Span("24 hours", 96, timedelta(minutes=15), 120),
}


@page
async def overview(request: Request) -> Response:
    """Both queues at a glance."""
    room = site_of(request).room
    flow = await _flow(request, room.database)
    return render(request, "overview.html", **flow, **await _live(room))


@page
async def live(request: Request) -> Response:
    """The part of the moment."""
    return render(request, "overview_live.html", **await _live(site_of(request).room))


@page
async def flow(request: Request) -> Response:
    """The part that is counted by minutes."""
    return render(request, "overview_flow.html", **await _flow(request, site_of(request).room.database))


async def _live(room: Room) -> dict[str, Any]:
    database = room.database
    depths = await read_depths(database, QUEUES)
    paused = depths.paused
    cron = await read_cron(database)
    alerts = [alert for alert in await AlertStore(database).read() if alert.fired_at and not alert.over_at]
    snapshot = next(iter(await read_snapshot_holders(database, count_max=1)), None)
    last_minute = await read_last_minute(database)
    verdict = judge(
        House(
            now=datetime.now(UTC),
            depths=depths,
            paused=paused,
            ways=room.transport_names,
            limit=next(iter(depths.limits), None),
            scheduler_missing=cron.leader is None and _needs_scheduler(cron),
            alerts=len(alerts),
            snapshot=None if snapshot is None else str(snapshot),
            last_minute=last_minute,
            interrupted=await read_interrupted(database),
        )
    )
    return {
        "verdict": verdict,
        "queues": [_queue(depths, last_minute, queue.name) for queue in QUEUES],
        "workers": [*depths.workers, *depths.helpers],
        "limits": await _limits(database, depths),
        "paused": {pause.name: pause for pause in paused if pause.kind == "transport"},
        "transports": await read_transports(database, room.transport_names, paused),
        "cron": cron,
        "alerts": alerts,
        "snapshot": snapshot,
    }


async def _flow(request: Request, database: Database) -> dict[str, Any]:
    name = request.query_params.get("span", "1h")
    name = name if name in SPANS else "1h"
    span = SPANS[name]
    found = await read_flow(database, span.steps, span.step)
    return {
        "span_name": name,
        "span": span,
        "spans": SPANS,
        "flows": [_flow_of(found, queue.name, span) for queue in QUEUES],
        "sent_by": found.transports,
    }


def _queue(depths: Depths, last_minute: dict[str, int], name: str) -> dict[str, Any]:
    title, path = TITLES[name]
    waits = {
        state: count
        for (queue, state), count in sorted(depths.live.items())
        if queue == name and state != "leased" and count
    }
    return {
        "name": name,
        "title": title,
        "path": path,
        "in_flight": depths.live.get((name, "leased"), 0),
        "waiting": depths.waiting(name),
        "waits": waits,
        "about_waiting": depths.waiting_is_estimate(name),
        "dead": depths.dead_letters.get(name, 0),
        "about_dead": depths.dead_is_estimate(name),
        "oldest_due_s": depths.oldest_due_s[name],
        "per_minute": last_minute.get(name, 0),
    }


async def _limits(database: Database, depths: Depths) -> list[dict[str, Any]]:
    """Those that are on, and how many e-mails wait for each, as far as depths are counted."""
    waits = await read_limit_waits(database, WAITED_FOR_MAX)
    waits[EMAILS.limit_key or ""] = depths.live.get((EMAILS.name, "limit_global"), 0)
    limits = await read_limits(database, QUEUES, waited_for=list(waits))
    return [{"status": one, "waiting": waits.get(one.key, 0)} for one in limits if one.amount is not None]


def _needs_scheduler(cron: CronStatus) -> bool:
    return any(job.active and job.run_by == "postroom" for job in cron.jobs)


def _flow_of(flow: Flow, name: str, span: Span) -> dict[str, Any]:
    """For the chart, in words, and as tables for who cannot see it."""
    found = flow.queues[name]
    title, _ = TITLES[name]
    series = [[round(step.at.timestamp()), step.done, step.failed] for step in found.steps]
    return {
        "name": name,
        "title": title,
        "json": orjson.dumps(list(zip(*series, strict=True))).decode(),
        "in_words": _in_words(found, span),
        "rows": [step for step in found.steps if step.done or step.failed],
        "times": {measure: _percentiles(found, measure) for measure in MEASURES},
        "step_min": round(span.step.total_seconds() / 60),
    }


def _in_words(found: QueueFlow, span: Span) -> str:
    done, failed = (sum(getattr(step, name) for step in found.steps) for name in ("done", "failed"))
    attempts = "1 failed attempt" if failed == 1 else f"{failed:,} failed attempts"
    return f"In the last {span.title}: {done:,} done, {attempts}."


def _percentiles(found: QueueFlow, measure: Any) -> dict[str, float | None]:
    histogram = found.times[measure]
    return {f"p{share:g}": histogram.percentile_ms(share / 100) for share in (50, 95, 99)}
