"""
Two faults in one run: two workers that die one after the other, or one that loses a connection and then dies.

What both cost together is no more than what each costs alone: a mail counts a failed attempt for each death
during it, as the marks name them, and one that a lost connection may cost; it goes out again only after an
attempt that failed, and as the same bytes; effects of handlers are there once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product
from uuid import UUID

from tests.failpoints.lanes import Bench, Lane, open_lane, until
from tests.failpoints.table import BEGIN, CLAIM, SETTLE, Case, Loss, Point
from tests.failpoints.workers import (
    STOPPED,
    Emails,
    Events,
    end,
    is_settled,
    open_emails,
    open_events,
)

Pair = tuple[Case, Case]


def deaths(points: Iterable[str]) -> list[Pair]:
    """Each of these points meets a kill, and in the worker that takes over each does."""
    return [(Case(first, "kill"), Case(second, "kill")) for first, second in product(points, repeat=2)]


def losses(seconds: Mapping[str, list[Case]]) -> list[Pair]:
    """The connection is lost before or after a statement, and then the same worker dies at a later point."""
    around = {"claim": CLAIM, "begin": BEGIN, "settle": SETTLE}
    return [
        (Case(f"{name}.{'after' if loss.after else 'before'}", loss), second)
        for name, found in seconds.items()
        for point in around[name]
        for loss in point.losses
        for second in found
    ]


async def break_twice(bench: Bench, table: Mapping[str, Point], pair: Pair) -> None:
    """Break a worker, and the one that takes over or the same one again; let a third finish, and check."""
    first, second = pair
    opened = open_emails if "smtp.connected" in table else open_events
    async with open_lane(bench, first) as lane, opened(lane, table[first.point]) as work:
        await work.queue()
        attempts: set[tuple[UUID, int]] = set()
        if first.fault == "kill":
            attempts |= await _died(lane, work, first, victim=True)
            attempts |= await _died(lane, work, second, victim=False)
        else:
            attempts |= await _died(lane, work, second, victim=True)
            assert lane.rule is not None
            assert lane.rule.fired == 1, "it died before its connection was lost"
        last = lane.start(work.arguments, work.environment, victim=False)
        await until(lambda: last.code is not None or is_settled(lane, work))
        await end(lane, last)
        may_fail = first.fault.fails if isinstance(first.fault, Loss) else 0
        deaths_of = Counter(row_id for row_id, _ in attempts)
        if isinstance(work, Emails):
            await _check_emails(work, deaths_of, may_fail)
        else:
            await _check_events(work, deaths_of, may_fail)
        lane.check_logs()


async def _died(lane: Lane, work: Emails | Events, case: Case, *, victim: bool) -> set[tuple[UUID, int]]:
    """A worker dies at a point, the victim on the lane's own connection: what it had begun."""
    program = lane.start(work.arguments, work.environment | case.environment, victim=victim)
    assert await lane.ended(program) == -9, program.log[-2000:]
    await lane.quiet(gone=True)
    begun = await lane.begun(work.table)
    await lane.end_leases(work.table)
    return begun


async def _check_emails(work: Emails, deaths_of: Counter[UUID], may_fail: int) -> None:
    rows = {row["id"]: row for row in await work.lane.db.fetch("SELECT * FROM email_queue")}
    await work.ledger.caught_up()
    copies = work.ledger.copies()
    count = Counter(email_id for email_id, _ in copies)
    assert set(count) == set(rows), "a mail is lost, or one came from nowhere"
    assert len(set(copies)) == len(rows), "a mail that went out twice was another one"
    assert {row["status"] for row in rows.values()} == {"sent"}
    for row in rows.values():
        assert row["attempts"] == row["error_count"] + 1, row
        assert count[row["id"]] <= row["error_count"] + 1, "it went out twice without an open end"
    _check_blame({row_id: row["error_count"] for row_id, row in rows.items()}, deaths_of, may_fail)


async def _check_events(work: Events, deaths_of: Counter[UUID], may_fail: int) -> None:
    rows = await work.lane.db.fetch("SELECT * FROM webhook_retry_queue")
    effects = await work.lane.db.fetch("SELECT handler, event_id FROM effects")
    ids = {row["webhook_event_id"] for row in rows}
    wanted = Counter((handler, event) for handler in ("async", "plain", "sql") for event in ids)
    assert Counter((row["handler"], row["event_id"]) for row in effects) == wanted
    for row in rows:
        assert row["status"] == ("dead_letter" if row["webhook_event_id"] == STOPPED else "processed")
    errors = {row["id"]: row["error_count"] - (row["webhook_event_id"] == STOPPED) for row in rows}
    _check_blame(errors, deaths_of, may_fail)


def _check_blame(errors: dict[UUID, int], deaths_of: Counter[UUID], may_fail: int) -> None:
    others = {row_id: count - deaths_of[row_id] for row_id, count in errors.items()}
    assert min(others.values()) >= 0, "a death that its marks name was not counted"
    assert sum(others.values()) <= may_fail, "an attempt that had not begun was blamed"
