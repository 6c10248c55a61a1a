"""Limits as the receiver measures them: bursts, kills, and a window that slides over its own times."""

from __future__ import annotations

import random
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from postroom.queue.engine import BUFFER_PER_ATTEMPT
from tests.journey.ledger import Delivered, Ledger, running_ledger
from tests.journey.programs import Program, Programs
from tests.support.waiting import until_now

Database = psycopg.Connection[tuple[object, ...]]
WORKERS = 3
IN_FORCE_S = 5.0
"""Contract, section 4: a changed setting is in force within 5 s."""

IN_FLIGHT = 40
FIRST_BATCHES = 2 * WORKERS * IN_FLIGHT * BUFFER_PER_ATTEMPT
"""What the workers' buffers hold, and what they look for meanwhile."""

FAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
)
LINES = ("recipient", "domain.hot.example", "sender.news@example.com", "type.digest")
"""Limits in whose lines mails wait, and the mails that each of them holds up; see _queue_lines."""


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """The database, as its owner."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def test_no_window_holds_more_than_any_limit_says_whoever_dies(programs: Programs, db: Database) -> None:
    """
    Six limits at once, mails in three bursts, a kill -9 now and then, one worker's clock an hour ahead.

    Each mail arrives; where nobody died during its attempt, waiting has used up no attempt.
    """
    limits = {
        "global": (40, 2.0),
        "recipient": (4, 2.0),
        "domain.hot.example": (12, 2.0),
        "sender.news@example.com": (9, 2.0),
        "type.digest": (8, 2.0),
        "transport.smtp": (35, 2.0),
    }
    _set(db, "lease", "1s")
    for key, (amount, window_s) in limits.items():
        _set(db, f"email.limit.{key}", f"{amount}/{window_s:g}s")
    ahead = _an_hour_ahead(programs)
    with running_ledger() as ledger, _crew(programs, ledger, ahead) as crew:
        for burst in range(3):
            _queue_mixed(db, 60, burst)
            for _ in range(2):
                time.sleep(random.uniform(0.3, 1.2))
                victim = random.randrange(len(crew))
                crew[victim].kill()
                crew[victim] = (ahead if victim == 0 else programs).start("worker")
        until_now(lambda: _waiting(db) == 0, limit_s=90)
    assert len(ledger.by_message_id()) == 180
    most = _most_of_each_limit(ledger.delivered, limits)
    print(f"\nmost in a window: {most}")
    assert not {key: most[key] for key, (amount, _) in limits.items() if most[key] > amount}
    rows = db.execute("SELECT DISTINCT status, attempts, error_count FROM email_queue WHERE crashes = 0")
    assert rows.fetchall() == [("sent", 1, 0)]


@pytest.mark.parametrize(
    ("window_s", "share"), [(5.0, 0.85), pytest.param(60.0, 0.95, marks=pytest.mark.chaos)]
)
def test_a_line_uses_its_limit(programs: Programs, db: Database, window_s: float, share: float) -> None:
    """
    While mails wait for a recipient, a domain, a sender or a type, that limit is used: 85 % of it with
    windows of 5 s, 95 % with 60 s. None holds up another.
    """
    amounts = dict(zip(LINES, (3, 20, 10, 7), strict=True))
    limits = {key: (amount, window_s) for key, amount in amounts.items()}
    for key, amount in amounts.items():
        _set(db, f"email.limit.{key}", f"{amount}/{window_s:g}s")
    with _workers(programs) as ledger:
        _queue_lines(db, {key: 3 * amount for key, amount in amounts.items()})
        until_now(lambda: _waiting(db) == 0, limit_s=6 * window_s + 30)
    groups = _groups(ledger.delivered, limits)
    used = {key: _share_used(groups[key][_hot(key)], *limits[key]) for key in LINES}
    print(f"\nused of {window_s:g} s windows: {', '.join(f'{key} {used[key]:.1%}' for key in LINES)}")
    assert all(value <= 1.0 for value in used.values())
    assert min(used.values()) >= share
    rows = db.execute("SELECT DISTINCT status, attempts FROM email_queue").fetchall()
    assert rows == [("sent", 1)]


@pytest.mark.parametrize(
    ("window_s", "share"), [(5.0, 0.85), pytest.param(60.0, 0.95, marks=pytest.mark.chaos)]
)
def test_the_global_limit_is_used(programs: Programs, db: Database, window_s: float, share: float) -> None:
    """Three workers do not stand in each other's way: mails to many, 60 in each window."""
    limits = {"global": (60, window_s)}
    _set(db, "email.limit.global", f"60/{window_s:g}s")
    with _workers(programs) as ledger:
        _queue(db, 180, recipients=60)
        until_now(lambda: _waiting(db) == 0, limit_s=6 * window_s + 30)
    assert len(ledger.delivered) == len(ledger.by_message_id()) == 180
    assert _most_of_each_limit(ledger.delivered, limits)["global"] <= 60
    used = _share_used(_times(ledger.delivered), 60, window_s)
    print(f"\nused of {window_s:g} s windows: {used:.1%}")
    assert used >= share


@pytest.mark.parametrize(
    ("key", "count"),
    [
        ("domain.hot.example", 2_000),
        pytest.param("domain.hot.example", 50_000, marks=pytest.mark.chaos),
        pytest.param("recipient", 50_000, marks=pytest.mark.chaos),
    ],
)
def test_mails_that_wait_for_one_limit_hold_up_nobody(
    programs: Programs, db: Database, key: str, count: int
) -> None:
    """
    Many mails wait for one recipient, or for one domain; mails to others, queued behind them, overtake them.

    Each is written to once until its turn comes: it gets its time without a lease (but for those of the first
    batches, which made the line: they are leased once, and put back). The limit is
    lifted: they begin to leave within 5 s.
    """
    _set(db, f"email.limit.{key}", "5/1h")
    _count_writes(db)
    programs.settings["POSTROOM_CONCURRENCY"] = str(IN_FLIGHT)  # buffers that are small beside the line
    with _workers(programs) as ledger:
        db.execute(
            """
            INSERT INTO email_queue (to_email, subject, html)
            SELECT %s || '@hot.example', 'hot ' || n, '<p>Hi</p>' FROM generate_series(1, %s) AS n
            """,
            ("ada", count),
        )
        _queue(db, 50, recipients=50, name="other")
        until_now(lambda: len(ledger.delivered) >= 55, limit_s=60 + count / 200)
        others = [mail for mail in ledger.delivered if mail.recipient.startswith("other")]
        assert len(others) == 50
        until_now(lambda: _waiting_for(db, "limit:email:") == count - 5, limit_s=60 + count / 200)
        writes = _number(
            db, "SELECT sum((metadata->>'writes')::int) FROM email_queue WHERE status = 'pending'"
        )
        print(f"\n{writes} writes to {count - 5} e-mails that wait")
        assert writes <= count + FIRST_BATCHES
        changed_at = time.time()
        _set(db, f"email.limit.{key}", "off")
        until_now(lambda: len(ledger.delivered) > 55)
        assert _times(ledger.delivered)[55] - changed_at < IN_FORCE_S
        until_now(lambda: len(ledger.delivered) >= min(55 + 500, 50 + count), limit_s=60)


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


def _most_of_each_limit(mails: Sequence[Delivered], limits: dict[str, tuple[int, float]]) -> dict[str, int]:
    """By limit, the most mails that one window of one of its keys holds."""
    return {
        key: max(most_in_a_window(times, limits[key][1]) for times in of_key.values())
        for key, of_key in _groups(mails, limits).items()
    }


def _groups(
    mails: Sequence[Delivered], limits: dict[str, tuple[int, float]]
) -> dict[str, dict[str, list[float]]]:
    """By limit, the times of the mails that it is about, by what it counts apart."""
    groups: dict[str, dict[str, list[float]]] = {key: defaultdict(list) for key in limits}
    for mail in sorted(mails, key=lambda mail: mail.mail_from_at):
        is_about = {
            "global": True,
            "recipient": True,
            "domain.hot.example": mail.recipient.endswith("@hot.example"),
            "sender.news@example.com": mail.sender == "news@example.com",
            "type.digest": "digest" in str(mail.message["Subject"]),
            "transport.smtp": True,
        }
        for key in limits:
            if is_about[key]:
                groups[key][mail.recipient if key == "recipient" else ""].append(mail.mail_from_at)
    return groups


def _share_used(times: Sequence[float], amount: int, window_s: float) -> float:
    """What part of a limit was used, from the first mail to the last: one window's worth leaves at once."""
    return (len(times) - amount) / (times[-1] - times[0]) * window_s / amount


def _hot(key: str) -> str:
    return "ada@example.com" if key == "recipient" else ""


def _times(mails: Sequence[Delivered]) -> list[float]:
    """When each mail's transaction began, by the receiver's clock."""
    return sorted(mail.mail_from_at for mail in mails)


@contextmanager
def _workers(programs: Programs) -> Iterator[Ledger]:
    """Three workers that have begun, and the receiver."""
    with running_ledger() as ledger, ExitStack() as stack:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        workers = [stack.enter_context(programs.running("worker")) for _ in range(WORKERS)]
        for worker in workers:
            worker.working()
        yield ledger


@contextmanager
def _crew(programs: Programs, ledger: Ledger, ahead: Programs) -> Iterator[list[Program]]:
    """Three workers of which a test may kill any; the first one's clock is ahead."""
    for each in (programs, ahead):
        each.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
    crew = [ahead.start("worker"), *(programs.start("worker") for _ in range(WORKERS - 1))]
    try:
        for worker in crew:
            worker.working()
        yield crew
    finally:
        for worker in crew:
            worker.kill()


def _an_hour_ahead(programs: Programs) -> Programs:
    library = next((one for one in FAKETIME if Path(one).exists()), None)
    if library is None:
        pytest.skip("needs Debian's package libfaketime")
    clock = {"LD_PRELOAD": library, "FAKETIME": "+1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return replace(programs, settings={**programs.settings, **clock})


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


def _queue_mixed(db: Database, count: int, burst: int) -> None:
    """Mails of which each limit stops some: every third to a hot domain, every fourth a digest, and so on."""
    db.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, from_email, email_type)
        SELECT
            'u' || n %% 12 || CASE WHEN n %% 3 = 0 THEN '@hot.example' ELSE '@example.com' END,
            CASE WHEN n %% 4 = 0 THEN 'digest ' ELSE 'order ' END || %(burst)s || '.' || n, '<p>Hi</p>',
            CASE WHEN n %% 5 = 0 THEN 'Our News <News@Example.com>' END,
            CASE WHEN n %% 4 = 0 THEN 'digest' END
        FROM generate_series(1, %(count)s) AS n
        """,
        {"burst": burst, "count": count},
    )


def _queue_lines(db: Database, counts: dict[str, int]) -> None:
    """Mails that wait in one line each."""
    for key, to, sender, email_type in (
        ("recipient", "ada@example.com", None, None),
        ("domain.hot.example", "%s@hot.example", None, None),
        ("sender.news@example.com", "%s@b.example", "news@example.com", None),
        ("type.digest", "%s@c.example", None, "digest"),
    ):
        db.execute(
            """
            INSERT INTO email_queue (to_email, subject, html, from_email, email_type)
            SELECT
                replace(%(to)s, '%%s', 'u' || n), COALESCE(%(type)s, 'order') || n, '<p>Hi</p>',
                %(sender)s, %(type)s
            FROM generate_series(1, %(count)s) AS n
            """,
            {"to": to, "type": email_type, "sender": sender, "count": counts[key]},
        )


def _count_writes(db: Database) -> None:
    """Let each row of the queue count its updates."""
    db.execute(
        """
        CREATE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.metadata := jsonb_build_object('writes', COALESCE((OLD.metadata->>'writes')::int, 0) + 1);
            RETURN NEW;
        END $$;
        CREATE TRIGGER count_writes BEFORE UPDATE ON email_queue
        FOR EACH ROW EXECUTE FUNCTION count_writes();
        """
    )


def _waiting(db: Database) -> int:
    return _count(db, "status IN ('pending', 'processing')")


def _waiting_for(db: Database, reason: str) -> int:
    return _count(db, f"status = 'pending' AND starts_with(waits_for, '{reason}')")


def _count(db: Database, condition: str) -> int:
    return _number(db, f"SELECT count(*) FROM email_queue WHERE {condition}")


def _number(db: Database, query: LiteralString) -> int:
    row = db.execute(query).fetchone()
    assert row is not None
    return int(str(row[0]))
