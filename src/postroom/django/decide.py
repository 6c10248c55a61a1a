"""What a person decides on dead letters in the admin pages: by postroom's functions, with the audit trail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from django.db import Error, InterfaceError, OperationalError, connections, transaction

from postroom.database.audit import IDS_MAX, RECORD, Action, Actor, values_of_entry
from postroom.database.sqlstate import driver_error, sqlstate_of
from postroom.django.conf import alias
from postroom.queue.dead_letters import What
from postroom.queue.table import QueueTable

_ACTIONS: dict[What, Action] = {"retry": "dead_letter.retry", "discard": "dead_letter.discard"}


@dataclass(slots=True)
class Decided:
    """
    What became of it.

    Attributes:
        done: Rows that changed; the others are no dead letters any more.
        refused: What rows said that refuse their update, by their own trigger or because they are locked.
        stopped: Why it went no further, where it did not: the database was lost, or the role may not.
    """

    done: int = 0
    refused: list[str] = field(default_factory=list)
    stopped: str = ""


def decide(queue: QueueTable, what: What, ids: Sequence[UUID], by: Actor, note: str) -> Decided:
    """Retry or discard dead letters; row and entry in the audit trail are one transaction of Django's."""
    decided = Decided()
    undone_together = connections[alias()].in_atomic_block  # as ATOMIC_REQUESTS has it
    try:
        for start in range(0, len(ids), IDS_MAX):
            _decide(queue, what, ids[start : start + IDS_MAX], by, note, decided)
    except Error as error:
        decided.stopped = _why_stopped(error)
        if not decided.stopped:
            raise
        if undone_together:
            decided.done = 0
    return decided


def _decide(
    queue: QueueTable, what: What, ids: Sequence[UUID], by: Actor, note: str, decided: Decided
) -> None:
    try:
        decided.done += _carry_out(queue, what, ids, by, note)
    except Error as error:
        if _why_stopped(error):
            raise
        if len(ids) == 1:
            decided.refused.append(f"{ids[0]}: {_first_line(error)}")
            return
        for row_id in ids:
            _decide(queue, what, [row_id], by, note, decided)


def _why_stopped(error: Error) -> str:
    """
    Why no other row would fare better; empty where the error is of one row.

    OperationalError alone does not tell: it is also what a row gives that somebody has locked (lock_timeout,
    statement_timeout, deadlock). Without a SQLSTATE it comes from the driver, which has no server any more.
    """
    state = sqlstate_of(error)
    if state == "42501":
        return f"The database's role may not do that ({_first_line(error)})"
    lost = (state[:2] in _LOST_CLASSES and state != _CANCELLED) or state in _LOST_STATES
    if lost or (not state and isinstance(error, OperationalError | InterfaceError)):
        return f"The database was lost ({_first_line(error)})"
    return ""


def _first_line(error: Error) -> str:
    return str(driver_error(error)).strip().partition("\n")[0]


_LOST_CLASSES = ("08", "28", "3D", "53", "57", "58")
"""Connection, login, database, no resources, shutdown, the server's disk."""

_LOST_STATES = ("25006", "25P03")
"""It is a standby by now; the session was ended."""

_CANCELLED = "57014"


def _carry_out(queue: QueueTable, what: What, ids: Sequence[UUID], by: Actor, note: str) -> int:
    using = alias()
    function, said = (queue.retry, [by.name]) if what == "retry" else (queue.discard, [by.name, note or None])
    places = ", ".join(["%s::uuid[]", *["%s"] * len(said)])
    with transaction.atomic(using), connections[using].cursor() as cursor:
        cursor.execute(f"SELECT {function}({places})::text", [[str(one) for one in ids], *said])
        done = [row[0] for row in cursor.fetchall()]
        if done:
            about = {"queue": queue.name, "count": len(done), "ids": done}
            cursor.execute(
                RECORD.format(*["%s"] * 5), values_of_entry(by, _ACTIONS[what], about, note or None)
            )
    return len(done)
