"""What /metrics says: what the database knows of all processes, and what this one knows by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from postroom import log
from postroom.errors import DatabaseUnavailable
from postroom.metric_names import METRICS
from postroom.queue.depths import Depths, read_depths
from postroom.queue.pauses import no_way_out
from postroom.queue.times import BOUNDS_MS, HANDLER, MEASURES, WAITS, Histogram, Total, read_totals
from postroom.queues import EMAILS, QUEUES
from postroom.schedule.health import JobHealth, read_job_health

if TYPE_CHECKING:
    from postroom.room import Room

GOOD_S = 1.0
"""Who asks more often than this gets the same answer: anybody may ask."""

GOOD_S_MAX = 30.0
"""
An answer that took long is good for twenty times as long: while somebody holds an old snapshot, one reads all
that was settled since (1.3 s behind 500,000 e-mails).
"""

DEADLINE_S = 5.0
"""Prometheus waits for ten."""

SHOWN_BOUNDS_MS = tuple(bound for bound in BOUNDS_MS if bound in {2**place for place in range(28)})
"""The buckets that are exposed: every second one, up to a day and a half."""

Values = Mapping[tuple[str, ...], float]
"""The samples of a metric, by the values of its labels."""

_log = log.get_logger()


class Exposition:
    """
    What this process exposes.

    Attributes:
        intake: Providers' requests by source and result, as the webhook door counts them.
    """

    def __init__(self, room: Room) -> None:
        self.intake: Counter[tuple[str, str]] = Counter()
        self._room = room
        self._looking = asyncio.Lock()
        self._good_until = 0.0
        self._good_s = GOOD_S
        self._text = b""

    async def text(self) -> bytes:
        """The metrics in Prometheus' text format; where the database is away, those of the process alone."""
        async with self._looking:
            if monotonic() > self._good_until:
                self._text = await self._look()
                self._good_until = monotonic() + self._good_s
            return self._text

    async def _look(self) -> bytes:
        totals: list[Total] = []
        found: dict[str, Values] = {
            "postroom_webhook_intake_total": {(source, to): n for (source, to), n in self.intake.items()}
        }
        self._good_s = GOOD_S
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._room.open()
                began = monotonic()
                found |= _of_depths(
                    await read_depths(self._room.database, QUEUES), self._room.transport_names
                )
                found |= _of_jobs(await read_job_health(self._room.database))
                totals = await read_totals(self._room.database)
                self._good_s = min(max(GOOD_S, 20 * (monotonic() - began)), GOOD_S_MAX)
            found |= _counters_of(totals)
            found["postroom_database_up"] = {(): 1}
        except Exception as error:
            # A scrape that fails would hide what the process knows by itself, and that the database is away.
            away = isinstance(error, DatabaseUnavailable | TimeoutError)
            said = "the database does not answer" if away else f"{type(error).__name__}: {error}"
            _log.warning("metrics.incomplete", error=said)
            found["postroom_database_up"] = {(): 0}
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Found(found, totals))
        return generate_latest(registry)


class _Found(Collector):
    """What was found, as prometheus-client takes it."""

    def __init__(self, found: Mapping[str, Values], totals: Sequence[Total]) -> None:
        self._found = found
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        for name, values in sorted(self._found.items()):
            metric = METRICS[name]
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(name, metric.meaning, labels=metric.labels)
            for labels, value in sorted(values.items()):
                family.add_metric(labels, value)
            yield family
        yield from _histograms_of(self._totals)
        yield _handlers_of(self._totals)


def _counters_of(totals: Sequence[Total]) -> dict[str, Values]:
    waits: Counter[tuple[str, ...]] = Counter()
    for one in totals:
        if one.outcome == WAITS:
            waits[(one.status.removeprefix("limit_"),)] += one.attempts
    return {
        "postroom_attempts_total": {
            (one.queue, one.kind, one.transport, one.outcome, one.status): one.attempts
            for one in totals
            if one.outcome != WAITS and one.queue != HANDLER
        },
        "postroom_limit_waits_total": waits,
    }


def _histograms_of(totals: Sequence[Total]) -> Iterator[Metric]:
    for measure in MEASURES:
        name = f"postroom_{measure}_seconds"
        family = HistogramMetricFamily(name, METRICS[name].meaning, labels=METRICS[name].labels)
        added: dict[tuple[str, str], tuple[Histogram, float]] = {}
        for one in totals:
            if one.queue == HANDLER:
                continue
            key = (one.queue, one.kind)
            histogram, sum_s = added.get(key, (Histogram(), 0.0))
            histogram.include(getattr(one, measure))
            added[key] = (histogram, sum_s + getattr(one, f"{measure}_ms") / 1000)
        for key, (histogram, sum_s) in sorted(added.items()):
            if histogram.count:
                family.add_metric(key, _buckets(histogram), sum_s)
        yield family


def _handlers_of(totals: Sequence[Total]) -> Metric:
    metric = METRICS["postroom_handler_seconds"]
    family = HistogramMetricFamily("postroom_handler_seconds", metric.meaning, labels=metric.labels)
    for one in sorted(totals, key=lambda one: (one.kind, one.outcome)):
        if one.queue == HANDLER:
            source, _, handler = one.kind.partition("/")  # without a handler: `other`, beyond fifty
            labels = (source, handler, one.outcome)
            family.add_metric(labels, _buckets(Histogram(one.attempt)), one.attempt_ms / 1000)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    buckets = [(f"{bound / 1000:g}", float(histogram.at_most(bound))) for bound in SHOWN_BOUNDS_MS]
    return [*buckets, ("+Inf", float(histogram.count))]


def _of_depths(found: Depths, ways: Sequence[str]) -> dict[str, Values]:
    queues = [queue.name for queue in QUEUES]
    live = _live(found, ways)
    workers = Counter((worker.queue, "asleep" if worker.asleep else "busy") for worker in found.workers)
    begun: Counter[str] = Counter()
    for worker in found.workers:
        begun[worker.queue] += worker.begun
    return {
        "postroom_queue_depth": {
            (queue, state): live.get((queue, state), 0)
            for queue, state in {*live, *((queue, "due") for queue in queues)}
        },
        "postroom_queue_oldest_due_seconds": {(queue,): found.oldest_due_s[queue] for queue in queues},
        "postroom_dead_letters": {(queue,): count for queue, count in found.dead_letters.items()},
        "postroom_workers": {
            (queue, state): workers[queue, state] for queue in queues for state in ("asleep", "busy")
        },
        "postroom_worker_attempts_in_flight": {(queue,): begun[queue] for queue in queues},
        "postroom_transport_paused": {(name,): float(paused) for name, paused in found.transports.items()},
        "postroom_paused_seconds": {("queue", queue): 0.0 for queue in queues} | found.paused_s,
        "postroom_limit_slots": {(limit.key,): limit.amount or 0 for limit in found.limits},
        "postroom_limit_slots_used": {(limit.key,): limit.used or 0 for limit in found.limits},
        "postroom_cron_leader": {(): float(found.cron_leads)},
        "postroom_oldest_snapshot_seconds": {(): found.oldest_snapshot_s},
    }


def _live(found: Depths, ways: Sequence[str]) -> dict[tuple[str, str], int]:
    """Live rows by state. Where persons have paused all our transports, what could go out waits for that."""
    live = dict(found.live)
    if no_way_out((pause for pause in found.paused if pause.by_hand), ways):
        kept = sum(live.pop((EMAILS.name, state), 0) for state in ("due", "transport", "paused"))
        live |= {(EMAILS.name, "paused"): kept} if kept else {}
    return live


def _of_jobs(jobs: Sequence[JobHealth]) -> dict[str, Values]:
    return {
        "postroom_cron_job_failing": {(job.name,): float(job.failing) for job in jobs},
        "postroom_cron_job_last_success_timestamp_seconds": {(job.name,): job.last_success_s for job in jobs},
        "postroom_cron_job_overdue_seconds": {(job.name,): job.overdue_s for job in jobs},
    }
