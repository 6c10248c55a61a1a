"""postroom cleanup: a line for each rule."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.cli.conftest import Cli, insert_email

Db = psycopg.Connection[tuple[Any, ...]]


def test_a_dry_run_says_what_would_be_forgotten(cli: Cli, db: Db) -> None:
    """And the run after it forgets that."""
    for sent_at in ("2020-01-01", "2021-01-01", "2999-01-01"):
        insert_email(db, status="sent", sent_at=sent_at)
    out = cli.ok("cleanup", "--dry-run")
    assert out.splitlines() == [
        "e-mails, retention.sent = 30d: 2 would be deleted",
        "e-mails, retention.dead_letter = off: 0 would be deleted",
        "e-mails, retention.failed = 90d: 0 would be deleted",
        "e-mails, retention.body = off: 0 would be emptied",
        "webhook events, retention.processed = 30d: 0 would be deleted",
        "webhook events, retention.dead_letter = off: 0 would be deleted",
        "webhook events, retention.failed = 90d: 0 would be deleted",
        "webhook events, retention.body = off: 0 would be emptied",
        "known event ids older than 30d: 0 would be forgotten",
        "limits whose window has ended: 0 would be forgotten",
        "runs of jobs, retention.cron = 7d: 0 would be deleted",
        "minutes of figures, retention.stats = 30d: 0 would be deleted",
        "entries of the audit trail, retention.audit = 365d: 0 would be deleted",
    ]
    assert db.execute("SELECT count(*) FROM email_queue").fetchone() == (3,)
    assert cli.ok("cleanup").startswith("e-mails, retention.sent = 30d: 2 deleted\n")
    assert db.execute("SELECT count(*) FROM email_queue").fetchone() == (1,)
    found = cli("cleanup", "--json").json
    assert found["counts"]["e-mails"] == {"sent": 0, "dead_letter": 0, "failed": 0, "body": 0}


def test_the_job_does_the_same(cli: Cli, db: Db) -> None:
    """Each night, or by hand."""
    insert_email(db, status="sent", sent_at="2020-01-01")
    assert cli.ok("cron", "run", "cleanup") == "1 e-mails (sent)\n"
    assert cli.ok("cron", "run", "cleanup") == "nothing was old enough\n"
