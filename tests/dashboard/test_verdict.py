"""The first line of the overview: the worst there is, in words, and the way to where it is mended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from postroom.dashboard.verdict import House, judge
from postroom.queue.depths import Depths
from postroom.queue.pauses import Pause
from postroom.queue.status import LimitStatus, WorkerStatus

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LIMIT = LimitStatus("email:global", "100/60s", 100, 100, 3.0)


def _worker(queue: str) -> WorkerStatus:
    return WorkerStatus(uuid4(), queue, "host", 1, "1", True, True, False, 0, 0.1, NOW, {})


def _house(
    *,
    workers: tuple[str, ...] = ("email", "webhook"),
    live: dict[tuple[str, str], int] | None = None,
    late_s: float = 0.0,
    dead: int = 0,
    **more: Any,
) -> House:
    depths = Depths(
        live=live or {},
        oldest_due_s={"email": late_s, "webhook": 0.0},
        dead_letters={"email": dead, "webhook": 0},
        workers=[_worker(queue) for queue in workers],
        helpers=[],
        transports={},
        limits=[],
        cron_leads=True,
        oldest_snapshot_s=0.0,
    )
    well: dict[str, Any] = {
        "now": NOW,
        "depths": depths,
        "paused": [],
        "ways": ["smtp:relay"],
        "limit": None,
        "scheduler_missing": False,
        "alerts": 0,
        "snapshot": None,
        "last_minute": {},
    }
    return House(**(well | more))


def test_what_is_estimated_says_about_how_many() -> None:
    """Beyond 10,000 neither dead letters nor what waits is counted."""
    assert judge(_house(dead=10_000)).text == "Mail and webhooks flow, but 10,000 dead letters need a person."
    verdict = judge(_house(dead=31_415))
    assert verdict.text == "Mail and webhooks flow, but about 31,415 dead letters need a person."
    waiting = {("email", "due"): 10_000, ("email", "uncounted"): 1_234}
    remark = judge(_house(workers=("webhook",), live=waiting)).remark
    assert remark is not None
    assert remark.text.startswith("no worker takes e-mails, and about 11,234 wait: ")


def test_a_house_in_which_all_flows_is_said_to_flow() -> None:
    """With what it did in the last minute."""
    assert judge(_house()).text == "Mail and webhooks flow; nothing is late."
    verdict = judge(_house(last_minute={"email": 12, "webhook": 1}))
    assert verdict.text == "Mail and webhooks flow: 12 e-mails and 1 webhook event in the last minute."
    assert (verdict.level, verdict.remark) == ("good", None)


def test_what_needs_a_person_while_mail_flows_is_said_as_that() -> None:
    """A dead letter stops nothing else."""
    verdict = judge(_house(dead=1, alerts=2))
    assert verdict.text == "Mail and webhooks flow, but 1 dead letter needs a person."
    assert verdict.level == "attention"
    assert verdict.remark is not None
    assert verdict.remark.path == "/dead-letters"
    assert [remark.text for remark in verdict.others] == ["2 alerts are open"]


PAUSED = Pause("transport", "smtp:relay", None, None, NOW + timedelta(seconds=5), "connection refused", 3)


@pytest.mark.parametrize(
    ("house", "begins", "path"),
    [
        (
            _house(workers=(), live={("webhook", "due"): 2}),
            "No worker runs, and 2 wait: start `postroom up`",
            "/webhooks?state=waiting",
        ),
        (
            _house(workers=("webhook",), live={("email", "due"): 3}),
            "No worker takes e-mails, and 3 wait",
            "/emails?state=waiting",
        ),
        (_house(paused=[PAUSED]), "Mail does not leave: smtp:relay is paused", "/emails?state=waiting"),
        (
            _house(late_s=420, live={("email", "due"): 1}),
            "E-mails are late: the oldest has been due for 7 min.",
            "/emails?state=waiting",
        ),
    ],
)
def test_what_does_not_flow_comes_before_all_else(house: House, begins: str, path: str) -> None:
    """Whatever else there is."""
    house.depths.dead_letters["email"] = 5
    verdict = judge(house)
    assert verdict.text.startswith(begins)
    assert verdict.level == "bad"
    assert verdict.remark is not None
    assert verdict.remark.path == path
    assert "5 dead letters need a person" in [remark.text for remark in verdict.others]


def test_a_transport_that_is_down_beside_another_stops_nothing() -> None:
    """Mail leaves by the other one."""
    verdict = judge(_house(paused=[PAUSED], ways=["smtp:relay", "smtp:other"]))
    assert verdict.level == "attention"
    assert verdict.text.endswith("because: connection refused; mail goes another way.")


def test_a_transport_that_another_process_uses_says_nothing_of_the_mail_of_this_house() -> None:
    """It may be the last way of others."""
    verdict = judge(_house(paused=[PAUSED], ways=["smtp:other"]))
    assert verdict.level == "attention"
    assert verdict.text.endswith("because: connection refused.")


def test_a_queue_that_a_person_has_paused_is_said_with_who_and_why_and_is_not_late() -> None:
    """Nothing else is as urgent; its age follows from it."""
    held = Pause("queue", "email", "ada", NOW - timedelta(hours=1), None, "the provider moves")
    verdict = judge(_house(paused=[held], late_s=3_600, live={("email", "paused"): 7}))
    assert verdict.level == "bad"
    assert verdict.text.startswith("No e-mails leave: the queue is paused by ada since ")
    assert verdict.text.endswith("(1 h ago) because: the provider moves.")
    assert verdict.others == []


def test_what_waits_for_the_limit_of_all_is_held_and_not_late() -> None:
    """However long it takes: somebody has set that limit."""
    verdict = judge(_house(late_s=4_000, live={("email", "limit_global"): 9}, limit=LIMIT))
    assert verdict.text == (
        "Mail and webhooks flow, but 9 e-mails wait for the limit email:global (100/60s)."
    )
    assert verdict.remark is not None
    assert verdict.remark.path == "/settings"


@pytest.mark.parametrize(
    ("house", "part"),
    [
        (_house(live={("email", "refused"): 1}), "1 e-mail refuse"),
        (_house(scheduler_missing=True), "no scheduler runs"),
        (_house(snapshot="process 7 (app), idle in transaction, for 9 min"), "process 7"),
        (_house(workers=("email",)), "no worker takes webhook events"),
    ],
)
def test_each_thing_that_needs_a_person_is_said(house: House, part: str) -> None:
    """None of them is passed over."""
    verdict = judge(house)
    assert verdict.level == "attention"
    assert part in verdict.text
