"""What a person decides on dead letters in the admin pages: by postroom's functions, with the audit trail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from django.db import Error, connections, transaction

from postroom.database.audit import IDS_MAX, RECORD, Action, Actor, values_of_entry
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
        refused: What rows said that refuse their update, by their own trigger.
    """

    done: int = 0
    refused: list[str] = field(default_factory=list)


def decide(queue: QueueTable, what: What, ids: Sequence[UUID], by: Actor, note: str) -> Decided:
    """Retry or discard dead letters; row and entry in the audit trail are one transaction of Django's."""
    decided = Decided()
    for start in range(0, len(ids), IDS_MAX):
        _decide(queue, what, ids[start : start + IDS_MAX], by, note, decided)
    return decided


def _decide(
    queue: QueueTable, what: What, ids: Sequence[UUID], by: Actor, note: str, decided: Decided
) -> None:
    try:
        decided.done += _carry_out(queue, what, ids, by, note)
    except Error as error:
        if len(ids) == 1:
            decided.refused.append(f"{ids[0]}: {str(error).partition(chr(10))[0]}")
            return
        for row_id in ids:
            _decide(queue, what, [row_id], by, note, decided)


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
