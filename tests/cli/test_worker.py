"""postroom worker: the queue alone, and how it ends."""

from __future__ import annotations

import signal
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli, insert_email
from tests.journey.ledger import running_ledger
from tests.journey.programs import Programs
from tests.support.postgres import free_port
from tests.support.waiting import until_now

Db = psycopg.Connection[tuple[Any, ...]]


def test_drain_sends_what_is_due_and_ends(programs: Programs, db: Db) -> None:
    """One line on stdout that counts; what is not due stays."""
    for number in range(3):
        insert_email(db, f"u{number}@example.com")
    later = insert_email(db, next_retry_at="2999-01-01")
    with running_ledger() as ledger:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        done = programs.run("worker", "--queues", "email", "--drain")
    assert (done.returncode, done.stdout) == (0, "3 e-mails sent, 0 failed, 0 put back to wait\n")
    assert len(ledger.delivered) == 3
    assert db.execute("SELECT id::text FROM email_queue WHERE status = 'pending'").fetchall() == [(later,)]


def test_drain_is_exit_1_where_the_transport_is_down(programs: Programs, db: Db) -> None:
    """What is due stays, with no attempt counted, and the last line says why."""
    insert_email(db)
    programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{free_port()}"
    done = programs.run("worker", "--drain")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("postroom: what is due stays in the queue, since smtp://")
    assert db.execute("SELECT status, attempts FROM email_queue").fetchall() == [("pending", 0)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_attempt_in_flight_end(programs: Programs, db: Db, number: signal.Signals) -> None:
    """
    The server has the mail and has not said so yet when the signal comes.

    The answer is awaited and written down; what has not begun stays due; exit 0.
    """
    with running_ledger(reply_delay_s=1.0) as ledger:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        programs.settings["POSTROOM_CONCURRENCY"] = "1"
        first = insert_email(db, "first@example.com", created_at="2020-01-01")
        second = insert_email(db, "second@example.com")
        worker = programs.start("worker")
        try:
            until_now(lambda: len(ledger.delivered) == 1)
            worker.process.send_signal(number)
            assert worker.process.wait(30) == 0, worker.log
        finally:
            worker.kill()
    rows = db.execute("SELECT id::text, status FROM email_queue ORDER BY created_at").fetchall()
    assert rows == [(first, "sent"), (second, "pending")]
    assert worker.answer == ""
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("queues", ["mails", "", "email,"])
def test_a_queue_that_is_none_is_wrong_usage(bare_cli: Cli, queues: str) -> None:
    """And the line says which there are."""
    answer = bare_cli("worker", "--queues", queues)
    assert answer.code == 2
    assert "email" in answer.error


def test_a_wrong_transport_ends_it_with_one_line(programs: Programs) -> None:
    """Exit 1; the password that stands in it is not shown."""
    programs.settings["POSTROOM_TRANSPORT"] = "smtp://user:secret-word@"
    done = programs.run("worker")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("postroom: POSTROOM_TRANSPORT names no host")
    assert "secret-word" not in done.stderr
    assert "Traceback" not in done.stderr
