"""Whether mail and webhooks flow, in words: what a person reads first, and where it is mended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from postroom.dashboard.site import TITLES
from postroom.queue.bulk import BulkAction
from postroom.queue.depths import Depths
from postroom.queue.pauses import Pause, no_way_out
from postroom.queue.status import LimitStatus
from postroom.queue.table import QueueTable
from postroom.queues import EMAILS, QUEUES
from postroom.wording import count_of, duration

LATE_S = 300.0
"""What is due and has not been attempted for so long is late, as the alert `queue_age` has it."""

Level = Literal["bad", "attention", "good"]
_START = "start `postroom up` or `postroom worker`"


@dataclass(frozen=True, slots=True)
class Remark:
    """
    Something that is wrong.

    Attributes:
        level: `bad` where something does not flow.
        text: A sentence without its full stop, which could follow `but`; what is in backquotes is a command.
        path: The page below the dashboard's root that mends it or shows more.
        act: What the link to it says.
    """

    level: Level
    text: str
    path: str
    act: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    The first line of the overview.

    Attributes:
        level: The worst of all remarks; `good` where there is none.
        text: One sentence.
        remark: What it speaks of; None where all is well.
        others: What else there is, the worst first.
    """

    level: Level
    text: str
    remark: Remark | None
    others: list[Remark]


@dataclass(frozen=True, slots=True)
class House:
    """
    What is judged.

    Attributes:
        paused: Queues and transports that are.
        ways: The names of the transports that e-mail could leave by.
        limit: The one of all e-mails; None where it is off.
        scheduler_missing: Jobs of postroom's scheduler are active, and nobody leads.
        alerts: How many are open.
        snapshot: Who holds an old one, in words.
        interrupted: What is done to a whole group and stands still, since its process has ended.
        last_minute: Rows that were done, by queue.
    """

    now: datetime
    depths: Depths
    paused: Sequence[Pause]
    ways: Sequence[str]
    limit: LimitStatus | None
    scheduler_missing: bool
    alerts: int
    snapshot: str | None
    last_minute: dict[str, int]
    interrupted: BulkAction | None = None


def judge(house: House) -> Verdict:
    """What stands on top: the worst there is, or that all is well."""
    remarks = sorted(_remarks(house), key=lambda remark: remark.level != "bad")
    if not remarks:
        return Verdict("good", f"Mail and webhooks flow{_done(house)}.", None, [])
    first, *others = remarks
    text = f"{_capital(first.text)}."
    if first.level != "bad":
        text = f"Mail and webhooks flow, but {first.text}."
    return Verdict(first.level, text, first, others)


def _remarks(house: House) -> Iterator[Remark]:
    yield from _workers(house)
    yield from _paused(house)
    for queue in QUEUES:
        yield from _line(house, queue)
    yield from _attention(house)


def _workers(house: House) -> Iterator[Remark]:
    without = [queue for queue in QUEUES if not _has_worker(house, queue)]
    if len(without) == len(QUEUES):
        waits = [queue for queue in QUEUES if house.depths.waiting(queue.name)]
        text = f"no worker runs{_and_wait(house, waits)}: {_START}"
        yield Remark("bad", text, _list(next(iter(waits), EMAILS)), "What waits")
        return
    for queue in without:
        level: Level = "bad" if house.depths.waiting(queue.name) else "attention"
        text = f"no worker takes {queue.noun}s{_and_wait(house, [queue])}: {_START}"
        yield Remark(level, text, _list(queue), "What waits")


def _paused(house: House) -> Iterator[Remark]:
    for queue in QUEUES:
        if (held := _held(house, queue)) is not None:
            verb = "leave" if queue is EMAILS else "are handled"
            text = f"no {queue.noun}s {verb}: the queue is {held.said(house.now)}"
            yield Remark("bad", text, "/queues", "Resume it")
    for transport in house.paused:
        if transport.kind != "transport":
            continue
        path, act = ("/queues", "Resume it") if transport.by_hand else (_list(EMAILS), "What waits")
        if transport.name not in house.ways:
            text = f"{transport.name} is {transport.said(house.now)}"
            yield Remark("attention", text, path, act)
        elif _no_way_is_left(house):
            text = f"mail does not leave: {transport.name} is {transport.said(house.now)}"
            yield Remark("bad", text, path, act)
        else:
            text = f"{transport.name} is {transport.said(house.now)}; mail goes another way"
            yield Remark("attention", text, path, act)


def _line(house: House, queue: QueueTable) -> Iterator[Remark]:
    """What is late, or held by the limit of all, with workers there."""
    held = house.depths.live.get((queue.name, "limit_global"), 0)
    late_s = house.depths.oldest_due_s[queue.name]
    if queue is EMAILS and held and house.limit is not None:
        limit = f"the limit {house.limit.key} ({house.limit.setting})"
        yield Remark("attention", f"{_count(held, queue)} wait for {limit}", "/settings", "Its setting")
    elif late_s > LATE_S and _has_worker(house, queue) and not _is_paused(house, queue):
        text = f"{queue.noun}s are late: the oldest has been due for {duration(late_s)}"
        yield Remark("bad", text, _list(queue), "What waits")
    if refused := house.depths.live.get((queue.name, "refused"), 0):
        text = f"{_count(refused, queue)} refuse their update by a trigger or constraint of the table"
        yield Remark("attention", text, _list(queue), "Which and why")


def _attention(house: House) -> Iterator[Remark]:
    if dead := sum(house.depths.dead_letters.values()):
        need = "needs" if dead == 1 else "need"
        about = "about " if any(house.depths.dead_is_estimate(queue.name) for queue in QUEUES) else ""
        text = f"{about}{count_of(dead, 'dead letter')} {need} a person"
        yield Remark("attention", text, "/dead-letters", "Open")
    if (action := house.interrupted) is not None:
        what = "retry" if action.action == "retry" else "discard"
        far = f"{action.done:,} of {count_of(action.total, 'dead letter')}"
        text = f"the {what} of a whole group stands still at {far}: its process ended"
        yield Remark("attention", text, f"/dead-letters/actions/{action.id}", "Go on, or stop it")
    if house.scheduler_missing:
        text = "no scheduler runs: `postroom up` or `postroom scheduler` starts one"
        yield Remark("attention", text, "/cron", "Its jobs")
    if house.alerts:
        verb = "is" if house.alerts == 1 else "are"
        yield Remark("attention", f"{count_of(house.alerts, 'alert')} {verb} open", "#alerts", "Which")
    if house.snapshot is not None:
        text = f"an old snapshot slows the queues: {house.snapshot}; `postroom doctor` says what to do"
        yield Remark("attention", text, "#alerts", "More")


def _held(house: House, queue: QueueTable) -> Pause | None:
    """Its pause, where a person has paused it."""
    return next((one for one in house.paused if (one.kind, one.name) == ("queue", queue.name)), None)


def _no_way_is_left(house: House) -> bool:
    return no_way_out(house.paused, house.ways)


def _is_paused(house: House, queue: QueueTable) -> bool:
    return _held(house, queue) is not None or (queue is EMAILS and _no_way_is_left(house))


def _has_worker(house: House, queue: QueueTable) -> bool:
    return any(worker.queue == queue.name for worker in house.depths.workers)


def _and_wait(house: House, queues: Sequence[QueueTable]) -> str:
    waiting = sum(house.depths.waiting(queue.name) for queue in queues)
    about = "about " if any(house.depths.waiting_is_estimate(queue.name) for queue in queues) else ""
    return f", and {about}{waiting:,} wait" if waiting else ""


def _list(queue: QueueTable) -> str:
    return f"{TITLES[queue.name][1]}?state=waiting"


def _count(count: int, queue: QueueTable) -> str:
    return count_of(count, queue.noun)


def _done(house: House) -> str:
    done = [
        count_of(house.last_minute[queue.name], queue.noun)
        for queue in QUEUES
        if house.last_minute.get(queue.name)
    ]
    return f": {' and '.join(done)} in the last minute" if done else "; nothing is late"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
