"""Why a row is where it is, in sentences, and its attempts: from the tables that the engine works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from postroom.database.connect import Database
from postroom.queue.pauses import Pause, no_way_out, read_pauses
from postroom.queue.statements import read_json
from postroom.queue.status import ALIVE, LimitStatus, read_limits
from postroom.queue.table import QueueTable
from postroom.wording import count_of, duration, moment

LEFT_ALONE_S = 2.0
"""A row that is due for less than this is about to be claimed; for longer, something keeps it."""

BEFORE_MAX = 10_000
"""Rows that stand before this one are counted up to here."""

KEPT_MAX = 20
"""Entries of a row's attempt_log; what was before them is no longer known."""

DECISIONS = ("retried", "discarded", "replaced", "replayed")
"""Outcomes of a row's attempt_log that are no attempts: what a person did."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """
    One entry of a row's attempt_log; old callers' and crashed ones lack some of it.

    Attributes:
        outcome: How the attempt ended; or one of DECISIONS, what a person did.
        reply: What the other side said; the person's note.
        by: The person.
        by_email: The e-mail that replaces it.
    """

    at: datetime | None
    outcome: str
    reply: str | None
    ms: int | None
    worker: str | None
    transport: str | None = None
    by: str | None = None
    by_email: str | None = None

    @property
    def is_decision(self) -> bool:
        """Whether a person did it, so that it is no attempt."""
        return self.outcome in DECISIONS


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    What there is to say of one row at the database's time `now`.

    Attributes:
        about: What it is about, such as its recipient and subject.
        reason, why: See Why.
        next_at: When it may be attempted next, where that is known.
        attempts: The last twenty, oldest first; `attempts_counted` counts all that count.
    """

    id: UUID
    queue: str
    status: str | None
    about: dict[str, str | None]
    reason: str
    why: list[str]
    next_at: datetime | None
    attempts_counted: int
    attempts_max: int
    attempts: list[Attempt]
    last_error: str | None
    created_at: datetime | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Why:
    """
    Why a row is where it is.

    Attributes:
        reason: For programs: `limit:…`, `backoff`, `send_at`, `next_retry_at`, `transport`,
            `paused` (its queue), `no_worker`, `program`, `lane`, `due`, `lease`, `refused`, `sent` or
            `processed`, `dead_letter`, `failed`, `unknown_status`.
        lines: For people: sentences, the reason first, what to do last.
    """

    reason: str
    lines: list[str]


@dataclass(frozen=True, slots=True)
class House:
    """
    What a row that waits depends on, besides itself.

    Attributes:
        paused: Its queue, where a person has paused that, and the transports that are.
        ways: The names of the transports that it could leave by; empty where that is not known.
    """

    workers: int = 0
    workers_asleep: int = 0
    before: int = 0
    paused: Sequence[Pause] = ()
    limit: LimitStatus | None = None
    ways: Sequence[str] = ()


async def explain(
    database: Database, queues: Sequence[QueueTable], row_id: UUID, *, ways: Sequence[str] = ()
) -> Explanation | None:
    """
    Find a row in these queues and say why it is where it is.

    Args:
        ways: The names of the transports of POSTROOM_TRANSPORT.

    Returns:
        None where no queue has it.

    Raises:
        DatabaseUnavailable: No answer in time.
    """
    for queue in queues:
        found = await database.fetchrow(_row_sql(queue), queue.name, row_id)
        if found is not None:
            row = dict(found)
            reason = why(queue, row, await _read_house(database, queue, row, ways))
            return Explanation(
                id=row_id,
                queue=queue.name,
                status=row["status"],
                about={column: row[column] for column in queue.about},
                reason=reason.reason,
                why=reason.lines,
                next_at=row["due_at"] if row["status"] in ("pending", "processing") else None,
                attempts_counted=row["attempts"],
                attempts_max=row["max_attempts"],
                attempts=attempts_of(_json(row["attempt_log"])),
                last_error=row["last_error"],
                created_at=row["created_at"],
                now=row["now"],
            )
    return None


def why(queue: QueueTable, row: Mapping[str, Any], house: House) -> Why:
    """Why this row is where it is."""
    status = row["status"]
    if row["refused_error"] is not None:
        return _refused(row)
    if status == "pending":
        held = next((pause for pause in house.paused if pause.kind == "queue"), None)
        if row["is_due"]:
            return _due(queue, row, house) if held is None else _held(queue, row, held)
        waits = _waits(row)
        return waits if held is None else Why(waits.reason, [*waits.lines, *_held(queue, row, held).lines])
    if status == "processing":
        return _leased(row)
    if status == queue.done:
        return _done(queue, row)
    if status == "dead_letter":
        return _dead_letter(queue, row)
    if status == "failed":
        return _given_up(row)
    return Why(
        "unknown_status",
        [f"Nobody touches it: its status {status!r} is none of postroom's. UPDATE it to 'pending'."],
    )


def _waits(row: Mapping[str, Any]) -> Why:
    until = moment(row["due_at"], row["now"])
    reason = row["waits_for"] or "next_retry_at"
    if reason.startswith("limit:"):
        setting = f" ({row['limit_written']})" if row["limit_written"] else ""
        return Why(
            reason, [f"It waits for the limit {reason.removeprefix('limit:')}{setting} until {until}."]
        )
    if reason == "backoff":
        return Why(reason, [f"It waits for its next try at {until}.", *_failed_before(row)])
    if reason == "send_at":
        return Why(reason, [f"It is to go out at {until}."])
    if reason == "transport":
        return Why(reason, [f"Its transport was down; it waits until {until}.", *_failed_before(row)])
    return Why(reason, [f"It waits until {until}, as its next_retry_at says.", *_failed_before(row)])


def _due(queue: QueueTable, row: Mapping[str, Any], house: House) -> Why:
    due_for_s = row["due_for_s"]
    since = f"It has been due for {duration(due_for_s)}" if due_for_s >= 0.1 else "It is due now"
    before = _failed_before(row)
    if house.workers == 0:
        return Why(
            "no_worker", [f"{since}, and no worker runs: start `postroom up` or `postroom worker`.", *before]
        )
    if house.paused and _no_way_is_left(row, house):
        return Why("transport", [*(_paused(transport, row["now"]) for transport in house.paused), *before])
    limit = house.limit
    if limit is not None and limit.amount is not None and limit.used == limit.amount:
        free = f"the next slot is free in {duration(limit.next_free_s or 0)}."
        line = f"It waits for the limit {limit.key} ({limit.setting}): {free}"
        return Why(f"limit:{limit.key}", [line, *_line_of(queue, house), *before])
    if row["behind"] is not None:
        return Why("lane", [f"{since}.", *_behind(queue, read_json(row["behind"])), *before])
    if row["programs"] and due_for_s > LEFT_ALONE_S:
        return Why("program", [f"{since}.", *_left_to(row["programs"]), *_line_of(queue, house), *before])
    state = "asleep" if house.workers_asleep == house.workers else "at work"
    line = f"{since}; {count_of(house.workers, 'worker')} {state}."
    return Why("due", [line, *_line_of(queue, house), *before])


def _behind(queue: QueueTable, first: Mapping[str, Any]) -> list[str]:
    """Events of one lane go one after the other."""
    lines = [f"It waits for {queue.noun} {first['id']}, which is before it in its lane: {first['status']}."]
    if first["status"] == "dead_letter":
        lines.append(f"Retry that one when its cause is gone: postroom dead-letters retry {first['id']}")
        lines.append(f"Or discard it: postroom dead-letters discard {first['id']}")
    return lines


def _left_to(programs: Sequence[str]) -> list[str]:
    """Its handlers are in a program, and workers without that one leave it alone."""
    app = programs[0]
    return [
        f"Only a worker with --app {app} takes it: see that `postroom worker --app {app}` runs.",
        f"Where that program is gone for good: postroom webhooks forget {app}",
    ]


def _failed_before(row: Mapping[str, Any]) -> list[str]:
    if not row["attempts"] or not row["last_error"]:
        return []
    return [f"Attempt {row['attempts']} of {row['max_attempts']} failed: {row['last_error']}"]


def _line_of(queue: QueueTable, house: House) -> list[str]:
    if house.before == 0:
        return ["It is the next."]
    more = "More than " if house.before == BEFORE_MAX else ""
    return [f"{more}{count_of(house.before, queue.noun)} {'goes' if house.before == 1 else 'go'} before it."]


def _held(queue: QueueTable, row: Mapping[str, Any], pause: Pause) -> Why:
    """A person has paused its queue."""
    goes = "" if row["is_due"] else f" No {queue.noun} is attempted until then."
    return Why(
        "paused",
        [
            f"Its queue is {pause.said(row['now'])}.{goes}",
            f"It goes on by: {pause.resume_command}",
            *(_failed_before(row) if row["is_due"] else []),
        ],
    )


def _no_way_is_left(row: Mapping[str, Any], house: House) -> bool:
    """Whether paused transports keep it: all that there are; who asks may have others than the workers."""
    paused = {pause.name for pause in house.paused}
    if not paused.isdisjoint(house.ways):
        return no_way_out(house.paused, house.ways)
    return row["waits_for"] == "transport" or bool(row["due_for_s"] > LEFT_ALONE_S)


def _paused(transport: Pause, now: datetime) -> str:
    command = f" It goes on by: {transport.resume_command}" if transport.by_hand else ""
    return f"Its transport {transport.name} is {transport.said(now)}.{command}"


def _leased(row: Mapping[str, Any]) -> Why:
    if row["due_at"] is None:
        return Why(
            "lease", ["An old caller claimed it before postroom came: `postroom migrate` decides about it."]
        )
    until = moment(row["due_at"], row["now"])
    if row["leased_by"] is None:
        held = "The lease of an old caller ended" if row["is_due"] else "An old caller holds it until"
        return Why("lease", [f"{held} {until}."])
    who = f"worker {row['leased_by']}"
    if row["host"] is not None:
        who = f"the worker on {row['host']} (process {row['pid']})"
    begun = "its attempt has begun" if row["begun"] else "its attempt has not begun"
    if row["is_due"]:
        lines = [f"The lease of {who} ended {until}; {begun}."]
    else:
        lines = [f"It is leased until {until} by {who}; {begun}."]
    if not row["worker_alive"]:
        gone = f"was last seen {duration(row['seen_s'])} ago" if row["seen_s"] is not None else "is gone"
        counted = "the attempt counts as uncertain" if row["begun"] else "nothing is counted"
        lines.append(f"That worker {gone}: once the lease has ended it is due again, and {counted}.")
    return Why("lease", lines)


def _done(queue: QueueTable, row: Mapping[str, Any]) -> Why:
    lines = [f"It was {queue.done} {_at(row['done_at'], row)}."]
    attempts = attempts_of(_json(row["attempt_log"]))
    if attempts and attempts[-1].outcome == "done" and attempts[-1].reply:
        lines.append(f"The other side said: {attempts[-1].reply}")
    if any(attempt.outcome in ("uncertain", "crashed") for attempt in attempts[:-1]):
        lines.append("An earlier attempt may have gone out too: whatever it sent has the same ids.")
    return Why(queue.done, lines)


def _dead_letter(queue: QueueTable, row: Mapping[str, Any]) -> Why:
    cause = _CAUSES.get(row["dead_reason"], "an old caller gave it up")
    cause = cause.format(attempts=count_of(row["attempts"], "attempt"))
    lines = [f"It has been a dead letter since {_at(row['failed_at'], row, '')}: {cause}."]
    if row["last_error"]:
        lines.append(f"Last error: {row['last_error']}")
    if row["dead_reason"] in ("uncertain", "poison"):
        lines.append("It may have gone out all the same; another attempt would have the same ids.")
    command = "postroom dead-letters"
    lines.append(f"Retry it when the cause is gone: {command} retry {row['id']}")
    if queue.can_be_edited:
        lines.append(f"Or mend it, which makes another one: {command} edit {row['id']} --to ADDRESS")
    lines.append(f"Or discard it: {command} discard {row['id']}")
    return Why("dead_letter", lines)


def _given_up(row: Mapping[str, Any]) -> Why:
    at = _at(row["failed_at"], row)
    last = next(reversed(attempts_of(_json(row["attempt_log"]))), None)
    by = f" by {last.by}" if last is not None and last.by else ""
    if last is not None and last.outcome == "replaced":
        return Why("failed", [f"It was edited{by} {at}: e-mail {last.by_email} goes out in its place."])
    if last is not None and last.outcome == "discarded":
        return Why("failed", [f"It was discarded{by} {at}{f': {last.reply}' if last.reply else '.'}"])
    return Why("failed", [f"It failed {at}: a person discarded it, or an old caller wrote so."])


_CAUSES = {
    "permanent": "the other side refused it for good",
    "exhausted": "{attempts} failed, and no more are allowed",
    "uncertain": "its last attempt may or may not have gone out, and email.on_uncertain is park",
    "poison": "workers died again and again during its attempts",
    "transport": "its transport was down, and it was to go out at once",
    "stale": "it had waited for too long when postroom came",
}


def _refused(row: Mapping[str, Any]) -> Why:
    lines = [f"The row refuses our updates: {row['refused_error']}"]
    if row["refused_verdict"] is not None:
        said = f": {row['refused_reply']}" if row["refused_reply"] else ""
        lines.append(
            f"It was attempted ({row['refused_verdict']}{said}), and that could not be written down."
        )
    again = moment(row["refused_until"], row["now"])
    lines.append(f"Change the trigger or constraint that refuses; the next try is at {again}.")
    return Why("refused", lines)


def _at(at: datetime | None, row: Mapping[str, Any], word: str = "at ") -> str:
    return "an unknown time" if at is None else f"{word}{moment(at, row['now'])}"


async def _read_house(
    database: Database, queue: QueueTable, row: Mapping[str, Any], ways: Sequence[str]
) -> House:
    if row["status"] != "pending":
        return House()
    paused = [
        pause
        for pause in await read_pauses(database)
        if (pause.name == queue.name if pause.kind == "queue" else queue.limit_key is not None)
    ]
    if not row["is_due"]:
        return House(paused=paused)
    found = await database.fetchrow(
        f"""
        SELECT
            count(*) AS workers,
            count(*) FILTER (WHERE worker.asleep) AS asleep
        FROM postroom.workers AS worker
        WHERE worker.queue = $1 AND worker.claims AND worker.seen_at > clock_timestamp() - {ALIVE}
        """,  # noqa: S608 - a constant of ours
        queue.name,
    )
    assert found is not None
    limits = await read_limits(database, [queue])
    return House(
        workers=found["workers"],
        workers_asleep=found["asleep"],
        before=await database.fetchval(_before_sql(queue), row["priority"], row["id"], BEFORE_MAX),
        paused=paused,
        limit=limits[0] if limits else None,
        ways=ways,
    )


def _row_sql(queue: QueueTable) -> str:
    about = ", ".join(f"item.{column}" for column in queue.about)
    return f"""
        SELECT
            item.id, item.status, COALESCE(item.attempts, 0) AS attempts,
            COALESCE(item.max_attempts, 6) AS max_attempts, item.last_error,
            item.created_at, item.failed_at, item.{queue.done_at} AS done_at, item.priority,
            item.waits_for, item.dead_reason, item.leased_by, item.attempt_log::text AS attempt_log,
            {about}, {queue.programs} AS programs, {queue.behind}::text AS behind,
            COALESCE(item.due_at, item.next_retry_at) AS due_at,
            COALESCE(item.due_at, item.next_retry_at, '-infinity') <= clock_timestamp() AS is_due,
            COALESCE((
                SELECT extract(EPOCH FROM clock_timestamp() - since.moment)
                FROM (VALUES (COALESCE(item.due_at, item.next_retry_at, item.created_at))) AS since (moment)
                WHERE isfinite(since.moment)
            ), 0)::double precision AS due_for_s,
            worker.host, worker.pid,
            extract(EPOCH FROM clock_timestamp() - worker.seen_at)::double precision AS seen_s,
            COALESCE(worker.seen_at > clock_timestamp() - {ALIVE}, false) AS worker_alive,
            postroom.begun_by(item.leased_by, item.id, item.lease_no) AS begun,
            refused.error AS refused_error, refused.verdict AS refused_verdict,
            refused.reply AS refused_reply, refused.next_try_at AS refused_until,
            (postroom.limit_rule_of(substr(item.waits_for, 7))).written AS limit_written,
            clock_timestamp() AS now
        FROM {queue.table} AS item
        LEFT JOIN postroom.workers AS worker ON worker.id = item.leased_by
        LEFT JOIN postroom.refused_rows AS refused ON refused.queue = $1 AND refused.id = item.id
        WHERE item.id = $2
    """  # noqa: S608 - names of ours


def _before_sql(queue: QueueTable) -> str:
    """How many due rows are claimed before this one: of a higher priority, or due for longer."""
    return f"""
        SELECT count(*)
        FROM (
            SELECT 1
            FROM {queue.table} AS other
            JOIN {queue.table} AS item ON item.id = $2
            WHERE other.status IN ('pending', 'processing')
                AND COALESCE(other.due_at, other.next_retry_at, '-infinity') <= clock_timestamp()
                AND (
                    other.priority > $1
                    OR (
                        other.priority = $1
                        AND COALESCE(other.due_at, other.next_retry_at, '-infinity')
                            < COALESCE(item.due_at, item.next_retry_at, '-infinity')
                    )
                )
            LIMIT $3
        ) AS found
    """  # noqa: S608 - names of ours


def _json(text: str | None) -> object:
    return None if text is None else read_json(text)


def attempts_of(log: object) -> list[Attempt]:
    """The entries of an attempt_log; old callers may have written anything there."""
    entries = log if isinstance(log, list) else []
    return [_attempt(entry) for entry in entries if isinstance(entry, dict)]


def _attempt(entry: Mapping[str, Any]) -> Attempt:
    try:
        at = datetime.fromisoformat(str(entry.get("at")))
    except ValueError:
        at = None
    worker, transport = entry.get("worker"), entry.get("transport")
    return Attempt(
        at=at,
        outcome=str(entry.get("outcome") or ""),
        reply=_text(entry.get("reply")),
        ms=entry["ms"] if isinstance(entry.get("ms"), int) else None,
        worker=_text(worker or transport),
        transport=_text(transport),
        by=_text(entry.get("by")),
        by_email=_text(entry.get("by_email")),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
