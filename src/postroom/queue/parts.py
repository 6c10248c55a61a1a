"""
What lists of a queue's rows are made of: parts that one index has in order, one after the other.

A place in a list is a part and a key in it. Each part says what stands behind such a place and what stands
before it, so a page is read from where the one beside it ends, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from postroom.queue.table import QueueTable

State = Literal["all", "in_flight", "waiting", "done", "dead_letter", "failed"]
STATES: tuple[State, ...] = ("all", "waiting", "in_flight", "done", "dead_letter", "failed")

REASONS = ("permanent", "exhausted", "uncertain", "poison", "transport", "stale")
"""Why postroom makes a row a dead letter; what an old caller wrote has none of them."""

Argument = Callable[[object], str]
"""Takes a value and gives its place in a statement, such as `$3`."""

_DUE = "COALESCE(item.due_at, item.next_retry_at, '-infinity'::timestamptz)"


@dataclass(frozen=True, slots=True)
class Part:
    """
    Rows of one status, in the order of an index. Every text is SQL over the row `item`.

    Attributes:
        statuses: As in the table; `done` stands for the queue's own.
        where: Further conditions that the index knows.
        hit: A further condition that no index knows: rows are looked at one by one.
        at: The time that the list goes by; None where these rows have none.
        asked: The time that a filter by time asks for.
        order: What it is ordered by: expression, its type, and whether the largest comes first.
        led_by: What the index begins with, the same in all these rows.
    """

    statuses: tuple[str, ...]
    where: str
    hit: str
    at: str | None
    asked: str | None
    order: tuple[tuple[str, str, bool], ...]
    led_by: str = ""

    def rows_of(self, queue: QueueTable) -> str:
        """The condition that makes up the part."""
        statuses = ", ".join(f"'{queue.done if each == 'done' else each}'" for each in self.statuses)
        return f"item.status IN ({statuses}) AND {self.where}"

    def ordered(self, *, back: bool) -> str:
        """As in ORDER BY."""
        by = [f"{each} {'DESC' if falls is not back else 'ASC'}" for each, _, falls in self.order]
        return ", ".join([self.led_by, *by] if self.led_by else by)

    def beyond(self, key: str, *, back: bool, including: bool = False) -> list[str]:
        """
        Conditions that together, one after the other, are all that stands beyond a place.

        Where the order is of one direction, one condition is enough; it also names the first expression
        alone, since an index that ends with it can be entered by that. The list of what is live has two: its
        priorities go down and its times up.

        Args:
            key: A text[] with the place.
            including: With what stands at the place itself.
        """
        (first, _, falls), *rest = self.order
        values = [f"({key})[{place}]::{kind}" for place, (_, kind, _) in enumerate(self.order, 1)]
        same = "=" if including else ""
        if not rest:
            return [f"{first} {_sign(falls is not back)}{same} {values[0]}"]
        if all(each[2] is falls for each in rest):
            sign, names = _sign(falls is not back), ", ".join(each[0] for each in self.order)
            return [f"{first} {sign}= {values[0]} AND ({names}) {sign}{same} ({', '.join(values)})"]
        sign, names = _sign(rest[0][2] is not back), ", ".join(each[0] for each in rest)
        return [
            f"{first} = {values[0]} AND {rest[0][0]} {sign}= {values[1]} "
            f"AND ({names}) {sign}{same} ({', '.join(values[1:])})",
            f"{first} {_sign(falls is not back)} {values[0]}",
        ]


def parts_of(queue: QueueTable, state: State, *, timed: bool, reason: str | None = None) -> list[Part]:
    """
    The parts of a list, in their order.

    Args:
        timed: Only rows that have the time which a filter asks for.
        reason: Of dead letters only those: one of REASONS, or `none`.
    """
    if state in ("waiting", "in_flight"):
        return [_live(state)]
    parts = [_live(state)] if state == "all" else []
    for each in ("dead_letter", "failed", "done") if state == "all" else (state,):
        parts += _ended(queue, each, timed=timed, reason=reason)
    return parts


def of_reason(reason: str | None) -> str:
    """That a dead letter has one of REASONS, or none (`none`), as an index finds it; None takes all."""
    if reason is None:
        return ""
    return f"COALESCE(item.dead_reason, 'none') = '{reason}'"


def _live(state: State) -> Part:
    """
    By the index of claims. The time that a person asks for is when it was queued.

    Few rows are in flight, among many that wait: they are looked for, and nobody knows for how long.
    """
    order = (("item.priority", "integer", True), (_DUE, "timestamptz", False), ("item.id", "uuid", False))
    statuses = ("pending",) if state == "waiting" else ("pending", "processing")
    hit = "item.status = 'processing'" if state == "in_flight" else ""
    return Part(statuses, "true", hit, _DUE, "item.created_at", order)


def _ended(queue: QueueTable, status: str, *, timed: bool, reason: str | None) -> list[Part]:
    at = f"item.{queue.done_at if status == 'done' else 'failed_at'}"
    where = (of_reason(reason) if status == "dead_letter" else "") or "true"
    newest = ((at, "timestamptz", True), ("item.id", "uuid", True))
    parts = [Part((status,), f"{where} AND {at} IS NOT NULL", "", at, at, newest)]
    if not timed:  # an old caller may have left the time out
        by_id = (("item.id", "uuid", False),)
        parts.append(Part((status,), f"{where} AND {at} IS NULL", "", None, None, by_id, led_by=at))
    return parts


def _sign(downwards: bool) -> str:
    return "<" if downwards else ">"
