"""Workers and PostgreSQL die by kill -9, again and again; the receiver's ledger counts."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import psycopg
import pytest

from postroom.database.migrate import migrate
from tests.journey.ledger import Ledger, running_ledger
from tests.journey.mails import SENDER
from tests.journey.programs import Program, Programs
from tests.support.postgres import SETTINGS, PostgresServer, running_server
from tests.support.waiting import until_now

Database = psycopg.Connection[tuple[object, ...]]
DURABLE = SETTINGS.replace("synchronous_commit = off", "synchronous_commit = on")
"""What was acknowledged outlives a kill of the server; only a loss of power would need fsync as well."""

POLICY = {
    "email.limit.global": "off",
    "email.limit.recipient": "off",
    "lease": "1s",
    "email.backoff": "100ms",
}
REPLY_DELAY_S = 0.01
CHAOS_S = float(os.environ.get("POSTROOM_TEST_CHAOS_S", "180"))


class Crew:
    """Workers of which one dies now and then, and another takes its place."""

    def __init__(self, programs: Programs, size: int) -> None:
        self._programs = programs
        self.members: list[Program] = [programs.start("worker") for _ in range(size)]
        self.kills = 0

    def kill_one(self) -> None:
        """kill -9 of one of them, whatever it is doing, and a new one."""
        victim = random.randrange(len(self.members))
        self.members[victim].kill()
        self.members[victim] = self._programs.start("worker")
        self.kills += 1


@contextmanager
def working(programs: Programs, size: int) -> Iterator[Crew]:
    """A crew while the block runs."""
    crew = Crew(programs, size)
    try:
        yield crew
    finally:
        for member in crew.members:
            member.kill()


@dataclass(frozen=True)
class Account:
    """
    What became of the mails whose enqueue was acknowledged.

    Attributes:
        lost: Neither delivered nor a dead letter; or sent, as the row says, and never delivered.
        doubled: Delivered more than once.
        altered: Of those, the ones whose copies are not the same bytes.
    """

    promised: int
    delivered: int
    poisoned: int
    lost: frozenset[str]
    doubled: int
    altered: int

    @classmethod
    def of(cls, promised: Sequence[UUID], db: Database, ledger: Ledger) -> Account:
        """Compare the receiver's ledger with the table."""
        rows = db.execute("SELECT id::text, status, last_error FROM email_queue").fetchall()
        status = {str(row[0]): str(row[1]) for row in rows}
        poisoned = {str(row[0]) for row in rows if str(row[2]).startswith("poison")}
        copies = {
            message_id.strip("<>").split("@")[0]: mails
            for message_id, mails in ledger.by_message_id().items()
        }
        lost = {
            email_id
            for email_id in map(str, promised)
            if email_id not in (poisoned if status.get(email_id) == "dead_letter" else copies)
        }
        lost |= {email_id for email_id, said in status.items() if said == "sent" and email_id not in copies}
        doubled = [mails for mails in copies.values() if len(mails) > 1]
        altered = [mails for mails in doubled if len({mail.content for mail in mails}) > 1]
        return cls(len(promised), len(copies), len(poisoned), frozenset(lost), len(doubled), len(altered))


@pytest.mark.timeout(240)
def test_workers_that_are_killed_again_and_again_lose_no_mail(programs: Programs, database_url: str) -> None:
    """
    3,000 mails, two workers, a kill -9 about every 0.7 s until all is settled.

    Lost: none. A mail that went out twice has the same Message-ID and the same bytes.
    """
    with running_ledger(reply_delay_s=REPLY_DELAY_S) as ledger, _connected(database_url) as db:
        _set_policy(db)
        promised = _queue(db, 3_000)
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        with working(programs, 2) as crew:
            ends = time.monotonic() + 180
            tick = 0
            while _waiting(db) and time.monotonic() < ends:
                time.sleep(random.uniform(0.5, 0.9))
                if tick < 12 or tick % 4 == 0:  # then let them get on
                    crew.kill_one()
                tick += 1
        account = Account.of(promised, db, ledger)
        assert _waiting(db) == 0, crew.members[0].log[-3000:]
        _check_figures(db)
    assert crew.kills >= 3, "the workers were through before they could be killed"
    _check(account)


def _check_figures(db: Database) -> None:
    """Each attempt that the rows count stands in the figures, once, whoever was killed when."""
    while db.execute("SELECT postroom.merge_tallies()").fetchone() != (0,):
        pass
    counted = db.execute(
        """
        SELECT
            (SELECT sum(attempts) FROM email_queue),
            (
                SELECT sum(attempts)
                FROM postroom.processing_totals
                WHERE outcome NOT IN ('transport_down', 'abandoned', 'waits')
            ),
            (SELECT count(*) FROM email_queue WHERE status = 'sent'),
            (SELECT sum(attempts) FROM postroom.processing_totals WHERE status = 'sent')
        """
    ).fetchone()
    assert counted is not None
    assert counted[0] == counted[1]
    assert counted[2] == counted[3]


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_workers_and_postgresql_that_are_killed_for_minutes_lose_no_mail(tmp_path: Path) -> None:
    """
    Mails are queued all the while; workers die each second, PostgreSQL each half minute.

    Promised is what was acknowledged: an enqueue whose commit had no answer may be there or not.
    """
    with running_server(settings=DURABLE) as server, running_ledger(reply_delay_s=REPLY_DELAY_S) as ledger:
        url = server.url_of(server.create_database())
        asyncio.run(migrate(url))
        with _connected(url) as db:
            _set_policy(db)
        transport = f"smtp://127.0.0.1:{ledger.port}"
        programs = Programs(
            tmp_path,
            {"POSTROOM_DATABASE_URL": url, "POSTROOM_FROM": SENDER, "POSTROOM_TRANSPORT": transport},
        )
        promised: list[UUID] = []
        crashes, ends = 0, time.monotonic() + CHAOS_S
        with working(programs, 3) as crew:
            while time.monotonic() < ends:
                for _ in range(random.randint(10, 40)):
                    promised += _queue_if_it_answers(url, random.randint(1, 30))
                    time.sleep(random.uniform(0.0, 0.06))
                crew.kill_one()
                if crew.kills % 20 == 0:
                    _crash(server)
                    crashes += 1
            with _connected(url) as db:
                until_now(lambda: _waiting(db) == 0, limit_s=180)
                account = Account.of(promised, db, ledger)
    print(
        f"\nkilled {crew.kills} workers and PostgreSQL {crashes} times: promised {account.promised:,},"
        f" delivered {account.delivered:,}, lost {len(account.lost)}, doubled {account.doubled},"
        f" poisoned {account.poisoned}"
    )
    assert crashes or CHAOS_S < 60
    _check(account)


def _check(account: Account) -> None:
    assert account.lost == frozenset()
    assert account.altered == 0, "a repetition is another mail"


def _connected(url: str) -> Database:
    return psycopg.connect(url, autocommit=True)


def _set_policy(db: Database) -> None:
    for key, value in POLICY.items():
        db.execute("SELECT postroom.set_setting(%s, %s)", (key, value))


def _queue(db: Database, count: int) -> list[UUID]:
    """Queue mails by a plain INSERT; their ids, once the commit is acknowledged."""
    ids = [uuid4() for _ in range(count)]
    db.execute(
        """
        INSERT INTO email_queue (id, to_email, subject, html)
        SELECT id, 'u' || n || '@example.com', 'subject ' || n, '<p>' || n || '</p>'
        FROM unnest(%s::uuid[]) WITH ORDINALITY AS made (id, n)
        """,
        (ids,),
    )
    return ids


def _queue_if_it_answers(url: str, count: int) -> list[UUID]:
    try:
        with _connected(url) as db:
            return _queue(db, count)
    except psycopg.OperationalError:
        return []


def _crash(server: PostgresServer) -> None:
    """kill -9 of PostgreSQL and all its processes, while somebody queues and somebody claims."""
    children = psutil.Process(server.pid).children(recursive=True)
    for child in children:
        child.suspend()  # else they would end by themselves, in good order, when the first one is gone
    server.stop(signal.SIGKILL)
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=30)
    server.start()


def _waiting(db: Database) -> int:
    row = db.execute("SELECT count(*) FROM email_queue WHERE status IN ('pending', 'processing')").fetchone()
    assert row is not None
    return int(str(row[0]))
