"""
The rules: what is worth telling, each as one look at the house.

A rule finds nothing, or one alert for each thing that it speaks of, such as a queue or a transport. How long
it must hold, when it was told and when it is over is not the rule's: postroom.track_alerts decides that.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from postroom.database.connect import Database
from postroom.database.snapshots import read_snapshot_holders
from postroom.queue.pauses import Pause, no_way_out, read_pauses
from postroom.queue.status import read_limits, read_workers
from postroom.queue.times import merge_tallies
from postroom.queues import EMAILS, QUEUES
from postroom.schedule.health import read_job_health
from postroom.settings import Settings
from postroom.wording import count_of, duration

FAILURE_MINUTES = 10
FAILURE_ATTEMPTS_MIN = 20
"""Of fewer attempts no rate is told: one of three is no news."""

TRANSPORTS_MAX = 50
_STILL_DOWN = "interval '5 minutes'"
"""A transport that is down is tried again each minute; between two tries it is no better."""

Unit = Literal["count", "span", "share"]


class House(Protocol):
    """What a rule may look at; a Room is one."""

    settings: Settings

    @property
    def database(self) -> Database: ...

    @property
    def transport_names(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Found:
    """
    Something that is wrong.

    Attributes:
        subject: What the rule speaks of: one alert each.
        summary: What there is, with its numbers; no secret, no address of a person.
        hold_s: For how long it must be found before anybody is told.
    """

    subject: str
    summary: str
    hold_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One rule.

    Attributes:
        name: As in [alerts.rules]; docs/operations.md has a section for each.
        meaning: One sentence.
        unit: Of its threshold: a count, a span of seconds, a share of 1.
        threshold: The default.
        look: Finds what is wrong, at a threshold.
        advice: What to do, for a subject.
        command: Which command helps, for a subject.
    """

    name: str
    meaning: str
    unit: Unit
    threshold: float
    look: Callable[[House, float], Awaitable[list[Found]]]
    advice: str
    command: Callable[[str], str]


async def dead_letters(house: House, threshold: float) -> list[Found]:
    """Those of the last day, grouped by queue and reason."""
    rows = await house.database.fetch("SELECT * FROM postroom.arrived_dead_letters()")
    return [
        Found(
            f"{row['queue']}/{row['reason']}",
            f"{count_of(row['count'], 'dead letter')} in queue {row['queue']} in the last day, "
            f"reason {row['reason']}; the newest: {_without_addresses(row['last_error'])}",
        )
        for row in rows
        if row["count"] >= threshold
    ]


async def oldest_due(house: House, threshold: float) -> list[Found]:
    """What could be attempted and is not; a line behind the global limit or a pause is no fault."""
    row = await house.database.fetchrow(
        "SELECT postroom.email_due_s() AS email, postroom.webhook_due_s() AS webhook"
    )
    assert row is not None
    held = {limit.key for limit in await read_limits(house.database, QUEUES) if limit.used == limit.amount}
    pauses = await read_pauses(house.database)
    paused = _paused_queues(pauses, house.transport_names)
    why = _why_mail_stands(pauses, house.transport_names)
    return [
        Found(
            queue.name,
            f"the oldest due {queue.noun} has been due for {duration(row[queue.name])}"
            f"{why if queue is EMAILS else ''}",
        )
        for queue in QUEUES
        if (row[queue.name] or 0.0) > threshold and queue.limit_key not in held and queue.name not in paused
    ]


def _paused_queues(pauses: Sequence[Pause], ways: Sequence[str]) -> set[str]:
    """The queues of which nothing is attempted by a person's word: the rule `paused` speaks of them."""
    by_hand = [pause for pause in pauses if pause.by_hand]
    queues = {pause.name for pause in by_hand if pause.kind == "queue"}
    return queues | ({EMAILS.name} if no_way_out(by_hand, ways) else set())


def _why_mail_stands(pauses: Sequence[Pause], ways: Sequence[str]) -> str:
    """Where no transport takes mail, not all by a person's word: what keeps each."""
    if not no_way_out(pauses, ways):
        return ""
    kept = [
        _fit_for_a_chat_room(pause) for pause in pauses if pause.what in {f"transport {way}" for way in ways}
    ]
    return f"; no transport takes mail: {'; '.join(f'{pause.name} is {pause.in_short}' for pause in kept)}"


async def failure_rate(house: House, threshold: float) -> list[Found]:
    """Of the attempts that ended in the last minutes."""
    await merge_tallies(house.database)
    rows = await house.database.fetch(
        """
        SELECT
            one.queue,
            sum(one.attempts)::bigint AS attempts,
            COALESCE(
                sum(one.attempts) FILTER (WHERE one.outcome NOT IN ('done', 'unhandled')), 0
            )::bigint AS failed
        FROM postroom.processing_minutes AS one
        WHERE one.minute > (SELECT clock_timestamp()) - make_interval(mins => $1)
            AND one.minute <= (SELECT clock_timestamp()) -- one-sided it is planned as a third of all
            AND one.outcome <> 'waits'
            AND one.queue IN ('email', 'webhook')
        GROUP BY one.queue
        ORDER BY one.queue
        """,
        FAILURE_MINUTES,
    )
    return [
        Found(
            row["queue"],
            f"{row['failed']:,} of {count_of(row['attempts'], 'attempt')} of queue {row['queue']} failed "
            f"in the last {FAILURE_MINUTES} min",
        )
        for row in rows
        if row["attempts"] >= FAILURE_ATTEMPTS_MIN and row["failed"] > threshold * row["attempts"]
    ]


async def transport_paused(house: House, threshold: float) -> list[Found]:
    """As workers last said; between two tries it is still down."""
    rows = await house.database.fetch(
        f"""
        SELECT transport.name, transport.reason, transport.failures
        FROM postroom.transports AS transport
        WHERE transport.failures > 0 AND transport.paused_until > clock_timestamp() - {_STILL_DOWN}
        ORDER BY transport.updated_at DESC
        LIMIT $1
        """,  # noqa: S608 - a constant of ours
        TRANSPORTS_MAX,
    )
    return [
        Found(
            row["name"],
            f"transport {row['name']} is down, after {count_of(row['failures'], 'failure')} in a row: "
            f"{_without_addresses(row['reason'])}",
            threshold,
        )
        for row in rows
    ]


async def paused(house: House, threshold: float) -> list[Found]:
    """Also with an end: whoever is told of what does not flow is to know why."""
    now = await house.database.fetchval("SELECT clock_timestamp()")
    return [
        Found(pause.words, f"{pause.what} is {_fit_for_a_chat_room(pause).said(now)}")
        for pause in await read_pauses(house.database)
        if pause.since is not None and (now - pause.since).total_seconds() > threshold
    ]


async def no_worker(house: House, threshold: float) -> list[Found]:
    """Of a queue that has ever held a row."""
    workers = {
        worker.queue for worker in await read_workers(house.database) if worker.alive and worker.claims
    }
    used = await house.database.fetchrow(
        """
        SELECT
            EXISTS (SELECT FROM public.email_queue) AS email,
            EXISTS (SELECT FROM public.webhook_retry_queue) AS webhook
        """
    )
    assert used is not None
    return [
        Found(queue.name, f"no worker of queue {queue.name} is alive", threshold)
        for queue in QUEUES
        if used[queue.name] and queue.name not in workers
    ]


async def cron_silent(house: House, threshold: float) -> list[Found]:
    """A job that is due and that nobody begins: neither our scheduler nor pg_cron."""
    overdue = [job for job in await read_job_health(house.database) if job.overdue_s > threshold]
    if not overdue:
        return []
    worst = max(overdue, key=lambda job: job.overdue_s)
    return [
        Found(
            "",
            f"no scheduler begins what is due: {worst.name} has been due for {duration(worst.overdue_s)}",
        )
    ]


async def snapshot_held(house: House, threshold: float) -> list[Found]:
    """The oldest holder alone: the others follow when it is gone."""
    holders = await read_snapshot_holders(house.database, older_than_s=threshold, count_max=1)
    return [
        Found("", f"an old snapshot keeps dead rows from being removed: {holder}; {holder.advice}")
        for holder in holders
    ]


async def disk(house: House, threshold: float) -> list[Found]:
    """Of the embedded database alone: other servers have their own watch."""
    if house.settings.database_url is not None:
        return []
    usage = shutil.disk_usage(house.settings.data_dir)
    if usage.free >= threshold * usage.total:
        return []
    free = f"{usage.free / 2**30:,.1f} GiB of {usage.total / 2**30:,.1f}"
    return [Found("", f"the disk of the embedded database has {free} left")]


def _fit_for_a_chat_room(pause: Pause) -> Pause:
    return replace(pause, reason=_without_addresses(pause.reason) if pause.reason else None)


def _retry(subject: str) -> str:
    reason = subject.partition("/")[2]
    return (
        "postroom dead-letters list"
        if reason == "other"
        else f"postroom dead-letters retry --all --reason {reason}"
    )


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "dead_letter",
            "E-mails or events that need a person have arrived within a day.",
            "count",
            1,
            dead_letters,
            "mend the cause, then retry or discard them",
            _retry,
        ),
        Rule(
            "oldest_due",
            "Something has been due for longer than this, and neither a limit nor a pause holds it.",
            "span",
            300,
            oldest_due,
            "see which rows wait, and whether workers keep up",
            lambda _subject: "postroom status",
        ),
        Rule(
            "failure_rate",
            f"More than this share of the attempts of {FAILURE_MINUTES} minutes failed.",
            "share",
            0.2,
            failure_rate,
            "see which kind fails, and by which way",
            lambda subject: f"postroom stats --since 1h{' --by transport' if subject == 'email' else ''}",
        ),
        Rule(
            "transport_paused",
            "A transport has been down for this long; its e-mails wait.",
            "span",
            120,
            transport_paused,
            "check its host, port and password, and the provider's own status page",
            lambda _subject: "postroom status",
        ),
        Rule(
            "paused",
            "A person has paused a queue or a transport for longer than this.",
            "span",
            3600,
            paused,
            "resume it where its reason is gone",
            lambda subject: f"postroom resume {subject}",
        ),
        Rule(
            "no_worker",
            "No worker of a queue has been alive for this long.",
            "span",
            120,
            no_worker,
            "start one; where it ends again, its last line on stderr says why",
            lambda subject: f"postroom worker --queues {'webhooks' if subject == 'webhook' else subject}",
        ),
        Rule(
            "cron_silent",
            "A job has been due for longer than this, and no scheduler begins it.",
            "span",
            180,
            cron_silent,
            "start a scheduler, or see whether pg_cron runs",
            lambda _subject: "postroom scheduler",
        ),
        Rule(
            "snapshot_held",
            "A transaction has been open for longer than this, and slows the queues down.",
            "span",
            900,
            snapshot_held,
            "end it",
            lambda _subject: "postroom doctor",
        ),
        Rule(
            "disk",
            "The disk of the embedded database has less than this share left.",
            "share",
            0.1,
            disk,
            "make room: a full disk stops the queue",
            lambda _subject: "postroom cleanup --dry-run",
        ),
    )
}
"""All of them, by name, in the order in which they are shown."""


def _without_addresses(text: str | None) -> str:
    """What a server said, in a line: whom a mail was for is nothing for a chat room."""
    shown = re.sub(r"[^\s<>@\"'(),;:]+@(?=\w)", "…@", " ".join((text or "no error").split()))
    return shown if len(shown) <= 200 else f"{shown[:200]}…"
