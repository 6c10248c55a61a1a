"""
Guards taken out, one at a time: each of these runs must turn red, and for the reason that it names.

A guard in SQL goes by another text for its function in the run's own database; one in Python by a program
that replaces it before the real one starts (saboteur.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.chaos.faults import QUEUE_PAUSED, TRANSPORT_PAUSED
from tests.chaos.report import table
from tests.chaos.rig import Run, run
from tests.chaos.saboteur import (
    answer_before_the_commit,
    ask_once_for_a_paused_transport,
    know_of_no_pause,
    mark_in_another_transaction,
    use_slots_of_any_age,
)
from tests.chaos.scenario import Scenario

Edit = tuple[str, str, str]


@dataclass(frozen=True)
class Sabotage:
    """
    One guard, and the run that must miss it.

    Attributes:
        scenario: With the guard taken out, and with the faults that it is there for.
        shows: The findings of which one must be there.
    """

    guard: str
    scenario: Scenario
    shows: tuple[str, ...]


SHORT = Scenario(
    seconds=12.0,
    drain_s_max=20.0,
    gap_s=(0.5, 0.9),
    weights={},
    workers=3,
    doors=1,
    clocks_off=False,
    maildir=False,
).with_policy(email__limit__global="off", email__limit__recipient="off", lease="1s")

ONLY_MAILS = replace(SHORT, events_per_s=0.0)
ONLY_EVENTS = replace(SHORT, mails_per_s=0.0, events_per_s=25.0)
STOP = "worker stopped for longer than its lease"
STOPS = {STOP: 1}

SLOW_BOOKS = """
    CREATE FUNCTION chaos.take_a_while() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END $$;
    CREATE TRIGGER slow BEFORE UPDATE ON public.rate_limit_counters
        FOR EACH ROW EXECUTE FUNCTION chaos.take_a_while();
"""
"""Locks are held for long, so that a short run meets two that want the same ones."""


def _without(function: str, guard: str, instead: str = "") -> Edit:
    return f"postroom.{function}", guard, instead


def _saboteur(replaced: Callable[[], None]) -> tuple[str, ...]:
    return sys.executable, "-m", "tests.chaos.saboteur", replaced.__name__


ALL = (
    Sabotage(
        "fencing of outcomes",
        replace(
            ONLY_MAILS,
            weights=STOPS,
            lasts_s={STOP: (1.2, 2.2)},  # he wakes while the next one waits for the slow receiver
            receiver="slow",
            edits=(
                _without("write_email_outcomes", "AND email_queue.lease_no = outcome.lease_no"),
                _without("write_webhook_outcomes", "AND webhook_retry_queue.lease_no = outcome.lease_no"),
            ),
        ),
        ("outcomes overwritten by an old lease",),
    ),
    Sabotage(
        "fencing of handlers",
        replace(
            ONLY_EVENTS,
            weights=STOPS,
            environment={"POSTROOM_TEST_HANDLER_SLOW": "0.5"},
            edits=(
                _without(
                    "finish_handler",
                    """
        AND webhook_retry_queue.lease_no = p_lease_no
        AND webhook_retry_queue.leased_by = p_worker
        AND p_handler <> ALL (webhook_retry_queue.handlers_done || webhook_retry_queue.handlers_stopped)""",
                ),
            ),
        ),
        ("doubled effects",),
    ),
    Sabotage(
        "start mark",
        replace(
            ONLY_MAILS,
            weights={"worker killed": 1},
            receiver="slow",
            edits=(
                _without(
                    "mark_begun",
                    "begun = p_ids,\n        begun_lease_nos = p_lease_nos",
                    "begun = '{}', begun_lease_nos = '{}'",
                ),
            ),
        ),
        ("doubled mails without an open end",),
    ),
    Sabotage(
        "slot stamp: written",
        replace(
            ONLY_MAILS,
            mails_per_s=80.0,
            weights={"worker killed": 1},
            edits=(
                _without(
                    "take_slots", "WHERE counter.key = next.key", "WHERE counter.key = next.key AND false"
                ),
                _without("take_slots_at_once", "BEGIN\n    INSERT", "BEGIN\n    RETURN true;\n    INSERT"),
            ),
        ).with_policy(email__limit__global="40/2s", email__limit__recipient="6/2s"),
        ("over the limit",),
    ),
    Sabotage(
        "slot stamp: 250 ms",
        replace(
            ONLY_MAILS,
            mails_per_s=80.0,
            weights={"slots of limits known late": 1},
            worker_command=_saboteur(use_slots_of_any_age),
        ).with_policy(email__limit__global="20/1s", email__limit__recipient="off", lease="10s"),
        ("over the limit",),
    ),
    Sabotage(
        "answer after commit",
        replace(
            ONLY_EVENTS,
            weights={"PostgreSQL stopped fast": 1},
            gap_s=(2.0, 3.0),
            door_command=_saboteur(answer_before_the_commit),
        ),
        ("lost events",),
    ),
    Sabotage(
        "dedupe",
        replace(
            ONLY_EVENTS,
            weights={"door killed": 1},
            edits=(
                _without(
                    "store_webhooks",
                    "WHERE seen.id = EXCLUDED.id OR seen.seen_at < clock_timestamp() - interval '30 days'",
                ),
            ),
        ),
        ("events stored twice", "doubled effects"),
    ),
    Sabotage(
        "sorted locks",
        replace(
            ONLY_MAILS,
            workers=4,
            burst=80,
            hot_share=1.0,
            hot_recipients=40,
            statements=(SLOW_BOOKS,),
            weights={"worker killed": 1},
            edits=(
                _without(
                    "lock_books",
                    "ORDER BY counter.key\n            FOR UPDATE",
                    "ORDER BY random()\n            FOR UPDATE",
                ),
                _without(
                    "take_slots_at_once",
                    "ORDER BY wanted.key\n    ON CONFLICT",
                    "ORDER BY random()\n    ON CONFLICT",
                ),
            ),
        ).with_policy(email__limit__global="off", email__limit__recipient="1000/5s"),
        ("deadlocks",),
    ),
    Sabotage(
        "the handler's shared transaction",
        replace(
            ONLY_EVENTS,
            weights={"worker killed": 3, "backends terminated": 1},
            worker_command=_saboteur(mark_in_another_transaction),
        ),
        ("lost effects",),
    ),
    Sabotage(
        "pause of a queue",
        replace(
            SHORT,
            weights={QUEUE_PAUSED: 1},
            worker_command=_saboteur(know_of_no_pause),
            edits=(
                _without("lease_emails", "pause.name = 'email'", "pause.name = ''"),
                _without("lease_webhooks", "pause.name = 'webhook'", "pause.name = ''"),
            ),
        ),
        ("leased though its queue was paused",),
    ),
    Sabotage(
        "pause of a transport",
        replace(
            ONLY_MAILS,
            mails_per_s=80.0,
            weights={TRANSPORT_PAUSED: 1},
            gap_s=(4.5, 5.0),
            receiver="slow",
            workers=1,
            environment={"POSTROOM_CONCURRENCY": "400"},  # many more than there are connections
            worker_command=_saboteur(ask_once_for_a_paused_transport),
        ),
        ("begun though its transport was paused",),
    ),
)


def runs(seed: int, only: str | None = None) -> Iterator[tuple[Sabotage, Run, bool]]:
    """Each sabotage, its run, and whether it turned red as it must."""
    for sabotage in ALL:
        if only is None or only in sabotage.guard:
            done = run(replace(sabotage.scenario, seed=seed))
            yield sabotage, done, any(done.account.findings[name] for name in sabotage.shows)


def line(sabotage: Sabotage, done: Run, is_red: bool) -> str:
    """What one of them came to, with the whole table where the run proved nothing."""
    findings = done.account.findings
    found = [
        f"{len(findings[name])} {name}: {findings[name][0]}" for name in sabotage.shows if findings[name]
    ]
    if is_red:
        return f"{sabotage.guard}: red ({', '.join(found)})"
    said = "green" if done.account.green else "red for another reason"
    return f"{sabotage.guard}: {said.upper()}, though it is taken out: the run proves nothing\n{table(done)}"
