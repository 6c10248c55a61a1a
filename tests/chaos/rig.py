"""One run: traffic and faults for a while, then heal, drain, and look from the outside."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from tests.chaos.account import Account
from tests.chaos.faults import FAULTS, Undo
from tests.chaos.house import House, running_house
from tests.chaos.promises import Promises
from tests.chaos.scenario import Scenario
from tests.chaos.traffic import running_traffic


@dataclass
class Run:
    """A run that is over."""

    scenario: Scenario
    faults: Counter[str] = field(default_factory=Counter)
    missing: dict[str, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    took_s: float = 0.0
    drain_s: float = 0.0


def run(scenario: Scenario, tell: Callable[[str], None] = lambda _line: None) -> Run:
    """Break a house for a while, and account for it."""
    done = Run(scenario)
    began = time.monotonic()
    promises = Promises()
    with running_house(scenario) as house:
        with running_traffic(house, promises):
            _break(house, done, tell)
            tell("healed; callers end what they began")
        drain_began = time.monotonic()
        _drain(house)
        done.drain_s = time.monotonic() - drain_began
        done.missing = house.missing
        done.account = Account.of(house, promises)
    done.took_s = time.monotonic() - began
    return done


def _break(house: House, done: Run, tell: Callable[[str], None]) -> None:
    """The faults of the schedule, each from its moment to its end; all of them have ended afterwards."""
    house.sink.behave(house.scenario.receiver)
    began = time.monotonic()
    ends: list[tuple[float, int, Undo]] = []
    order = count()
    if house.scenario.clocks_off and "a worker's clock an hour off" not in house.missing:
        done.faults["a worker's clock an hour off"] = min(house.scenario.workers - 1, 2)
    try:
        for moment in house.scenario.schedule():
            while ends and ends[0][0] <= moment.at_s:
                at_s, _, undo = heapq.heappop(ends)
                _sleep_until(began + at_s)
                undo()
            _sleep_until(began + moment.at_s)
            house.restart_ended()
            if moment.kind in house.missing:
                continue
            tell(f"{time.monotonic() - began:6.1f} s  {moment.kind}")
            undo_it = FAULTS[moment.kind](house, random.Random(moment.draw))
            done.faults[moment.kind] += 1
            if undo_it is not None:
                heapq.heappush(ends, (moment.at_s + moment.lasts_s, next(order), undo_it))
        _sleep_until(began + house.scenario.seconds)
    finally:
        while ends:
            heapq.heappop(ends)[2]()
        house.proxy.heal()
        house.proxy.drop_connections()
        house.heal_server()
        house.sink.behave("normal")


def _drain(house: House) -> None:
    """Until nothing waits. Where workers died three times in an event's handlers, a person tries it again."""
    ends = time.monotonic() + house.scenario.drain_s_max
    while time.monotonic() < ends:
        house.restart_ended()
        with house.connected() as db:
            db.execute(
                """
                SELECT postroom.retry_dead_webhooks(array_agg(id))
                FROM webhook_retry_queue WHERE status = 'dead_letter' HAVING count(*) > 0
                """
            )
            row = db.execute(
                """
                SELECT (SELECT count(*) FROM email_queue WHERE status IN ('pending', 'processing'))
                    + (SELECT count(*) FROM webhook_retry_queue WHERE status <> 'processed')
                """
            ).fetchone()
        if row is not None and row[0] == 0:
            return
        time.sleep(0.2)


def _sleep_until(moment: float) -> None:
    time.sleep(max(moment - time.monotonic(), 0.0))
