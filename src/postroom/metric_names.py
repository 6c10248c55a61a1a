"""
The names of all metrics at /metrics: they are an interface, since people draw and alert by them.

docs/metrics.md shows the same list; a test compares both with what is exposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]
Scope = Literal["database", "process"]


@dataclass(frozen=True, slots=True)
class Metric:
    """
    One metric.

    Attributes:
        scope: `database`: the same number at every process that is scraped, about all of them together;
            `process`: of the one that answers.
        labels: Their values come from fixed sets, from the settings, or are bounded in number.
        meaning: One sentence, its unit where the name has none.
    """

    kind: Kind
    scope: Scope
    labels: tuple[str, ...]
    meaning: str


METRICS = {
    "postroom_attempt_seconds": Metric(
        "histogram", "database", ("queue", "kind"), "How long attempts took, by email_type or source."
    ),
    "postroom_attempts_total": Metric(
        "counter",
        "database",
        ("queue", "kind", "transport", "outcome", "status"),
        "Attempts that ended, by how, and by what their rows became: sent, processed, pending, dead_letter.",
    ),
    "postroom_cron_job_failing": Metric(
        "gauge", "database", ("job",), "1 where the last scheduled run of a job failed."
    ),
    "postroom_cron_job_last_success_timestamp_seconds": Metric(
        "gauge", "database", ("job",), "When the last run of a job that succeeded began; 0 before the first."
    ),
    "postroom_cron_job_overdue_seconds": Metric(
        "gauge",
        "database",
        ("job",),
        "For how long a job has been due and nobody has begun it, neither a scheduler nor pg_cron.",
    ),
    "postroom_cron_leader": Metric(
        "gauge", "database", (), "1 where a scheduler of postroom's leads; pg_cron's jobs run without one."
    ),
    "postroom_database_up": Metric(
        "gauge", "process", (), "1 where the database answered this scrape; else its metrics are not there."
    ),
    "postroom_dead_letters": Metric(
        "gauge", "database", ("queue",), "Dead letters that wait for a person; an estimate beyond 10,000."
    ),
    "postroom_handler_seconds": Metric(
        "histogram",
        "database",
        ("source", "handler", "outcome"),
        "How long the runs of each handler took, by how they ended: done, temporary, permanent.",
    ),
    "postroom_limit_slots": Metric(
        "gauge", "database", ("limit",), "Slots of a limit that all e-mails share in its window."
    ),
    "postroom_limit_slots_used": Metric("gauge", "database", ("limit",), "Those that are used at present."),
    "postroom_limit_waits_total": Metric(
        "counter",
        "database",
        ("limit",),
        "E-mails that a limit put back before their attempt began, by the kind of limit.",
    ),
    "postroom_oldest_snapshot_seconds": Metric(
        "gauge",
        "database",
        (),
        "Age of the oldest transaction that keeps vacuum from its work; 0 where there is none.",
    ),
    "postroom_paused_seconds": Metric(
        "gauge",
        "database",
        ("kind", "name"),
        "For how long a person has paused a queue or a transport; 0 or missing: it is not paused.",
    ),
    "postroom_queue_depth": Metric(
        "gauge",
        "database",
        ("queue", "state"),
        "Live rows: due, leased, refused, or what they wait for; uncounted: those beyond the first 10,000.",
    ),
    "postroom_queue_oldest_due_seconds": Metric(
        "gauge", "database", ("queue",), "For how long the oldest row that is due has been due; 0: none is."
    ),
    "postroom_total_seconds": Metric(
        "histogram",
        "database",
        ("queue", "kind"),
        "From when a row was to go out until it was sent, processed or a dead letter.",
    ),
    "postroom_transport_paused": Metric(
        "gauge",
        "database",
        ("transport",),
        "1 where a transport is down and rests, 0 where it is up again; missing: it was never down.",
    ),
    "postroom_wait_seconds": Metric(
        "histogram",
        "database",
        ("queue", "kind"),
        "From when a row was to go out until its first attempt began.",
    ),
    "postroom_webhook_intake_total": Metric(
        "counter",
        "process",
        ("source", "result"),
        "Requests of providers: stored, duplicate, refused (its signature), not_stored (503).",
    ),
    "postroom_worker_attempts_in_flight": Metric(
        "gauge", "database", ("queue",), "Attempts that have begun and are not settled."
    ),
    "postroom_workers": Metric(
        "gauge", "database", ("queue", "state"), "Workers that claim and are alive: busy, asleep."
    ),
}
