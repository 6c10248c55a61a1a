"""Limits as the receiver measures them: three worker processes, one window that slides over its own times."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import psycopg
import pytest

from tests.journey.ledger import Delivered, Ledger, running_ledger
from tests.journey.programs import Programs
from tests.support.waiting import until_now

Database = psycopg.Connection[tuple[object, ...]]
WORKERS = 3
IN_FORCE_S = 5.0
"""Contract, section 4: a changed setting is in force within 5 s."""


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """The database, as its owner."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def test_no_window_of_the_receivers_holds_more_than_the_limits_say(programs: Programs, db: Database) -> None:
    """
    200 mails to 20 recipients, 50 in 2 s for all and 5 in 2 s for each of them.

    Waiting uses up no attempt. What share of the limit was used is printed: three workers must
    not stand in each other's way.
    """
    limit, each_limit, window_s, count = 50, 5, 2.0, 200
    _set(db, "email.limit.global", f"{limit}/2s")
    _set(db, "email.limit.recipient", f"{each_limit}/2s")
    with _workers(programs) as ledger:
        _queue(db, count, recipients=20)
        until_now(lambda: _waiting(db) == 0, limit_s=60)
    assert len(ledger.delivered) == len(ledger.by_message_id()) == count
    assert most_in_a_window(_times(ledger.delivered), window_s) <= limit
    by_recipient = defaultdict(list)
    for mail in ledger.delivered:
        by_recipient[mail.recipient].append(mail)
    assert len(by_recipient) == 20
    for mails in by_recipient.values():
        assert most_in_a_window(_times(mails), window_s) <= each_limit
    rows = db.execute("SELECT DISTINCT status, attempts, error_count FROM email_queue").fetchall()
    assert rows == [("sent", 1, 0)]
    times = _times(ledger.delivered)
    rate = (count - limit) / (times[-1] - times[0])  # the first window's worth leaves at once
    print(f"\nlimit {limit}/{window_s:g}s: {rate:.1f} mails/s, {rate / (limit / window_s):.0%} of it")


def test_a_limit_that_is_lifted_lets_what_waits_for_it_go(programs: Programs, db: Database) -> None:
    """Both limits: the mails had been told to wait for up to an hour."""
    _set(db, "email.limit.global", "30/1h")
    _set(db, "email.limit.recipient", "5/1h")
    with _workers(programs) as ledger:
        _queue(db, 40, recipients=2)  # 10 leave, 30 wait for their recipients
        until_now(lambda: len(ledger.delivered) == 10 and _waiting_for(db, "limit:email:recipient:") == 30)
        _queue(db, 60, recipients=60, name="other")  # 20 leave, 40 wait for all
        until_now(lambda: len(ledger.delivered) == 30 and _waiting(db) == 70)
        changed_at = time.time()
        _set(db, "email.limit.recipient", "off")
        _set(db, "email.limit.global", "off")
        until_now(lambda: _waiting(db) == 0)
    assert len(ledger.by_message_id()) == len(ledger.delivered) == 100
    assert _times(ledger.delivered)[-1] - changed_at < IN_FORCE_S


@pytest.mark.chaos
def test_a_limit_that_is_lowered_holds_within_its_time(programs: Programs, db: Database) -> None:
    """From 5 s after the change on, no window holds more than the new limit says."""
    _set(db, "email.limit.global", "30/1s")
    with _workers(programs) as ledger:
        _queue(db, 1_000, recipients=1_000)
        until_now(lambda: len(ledger.delivered) >= 60)
        changed_at = time.time()
        _set(db, "email.limit.global", "5/1s")
        until_now(lambda: bool(ledger.delivered) and time.time() > changed_at + IN_FORCE_S + 2.0)
    times = [at for at in _times(ledger.delivered) if at > changed_at + IN_FORCE_S]
    assert times, "nothing leaves any more"
    assert most_in_a_window(times, 1.0) <= 5


def most_in_a_window(times: Sequence[float], window_s: float) -> int:
    """The most of some moments, in their order, that any span of that length holds."""
    return max(bisect_left(times, start + window_s) - place for place, start in enumerate(times))


@contextmanager
def _workers(programs: Programs) -> Iterator[Ledger]:
    """Three workers that have begun, and the receiver."""
    with running_ledger() as ledger, ExitStack() as stack:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        workers = [stack.enter_context(programs.running("worker")) for _ in range(WORKERS)]
        for worker in workers:
            worker.working()
        yield ledger


def _set(db: Database, key: str, value: str) -> None:
    db.execute("SELECT postroom.set_setting(%s, %s)", (key, value))


def _queue(db: Database, count: int, *, recipients: int, name: str = "u") -> None:
    db.execute(
        """
        INSERT INTO email_queue (to_email, subject, html)
        SELECT %s || n %% %s || '@example.com', 'subject ' || n, '<p>Hi</p>'
        FROM generate_series(1, %s) AS n
        """,
        (name, recipients, count),
    )


def _waiting(db: Database) -> int:
    return _count(db, "status IN ('pending', 'processing')")


def _waiting_for(db: Database, reason: str) -> int:
    return _count(db, f"status = 'pending' AND starts_with(waits_for, '{reason}')")


def _count(db: Database, condition: str) -> int:
    row = db.execute(f"SELECT count(*) FROM email_queue WHERE {condition}").fetchone()
    assert row is not None
    return int(str(row[0]))


def _times(mails: Sequence[Delivered]) -> list[float]:
    """When each mail's transaction began, by the receiver's clock."""
    return sorted(mail.mail_from_at for mail in mails)
