"""postroom status: the house at a glance."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.cli.conftest import Cli, insert_dead_letter, insert_email

Db = psycopg.Connection[tuple[Any, ...]]


def test_an_empty_house_shows_both_queues_and_that_nobody_works(cli: Cli) -> None:
    """Zero is a number, too; and what to do."""
    out = cli.ok("status")
    assert [line.split() for line in out.splitlines()[:3]] == [
        ["QUEUE", "STATUS", "COUNT", "OLDEST"],
        ["email", "empty", "0"],
        ["webhook", "empty", "0"],
    ]
    assert "none: start `postroom up` or `postroom worker`" in out


def test_it_counts_by_status_and_says_what_waits_for_what(cli: Cli, db: Db) -> None:
    """Counts and ages of both queues, and the limits."""
    insert_email(db)
    insert_email(db, next_retry_at="2999-01-01", created_at="2001-01-01")
    insert_dead_letter(db)
    db.execute("INSERT INTO webhook_retry_queue (webhook_type, payload) VALUES ('stripe', '{}')")
    lines = [" ".join(line.split()) for line in cli.ok("status").splitlines()]
    assert any(line.startswith("email pending 2 ") and " d" in line for line in lines), lines
    assert any(line.startswith("email dead_letter 1 ") for line in lines)
    assert any(line.startswith("webhook pending 1 ") for line in lines)
    assert any(line.startswith("1 for a worker, the oldest for ") for line in lines)
    assert "email:global: 0 of 100 used (100/60s)" in lines


def test_json_has_the_same_for_programs(cli: Cli, db: Db) -> None:
    """One document, numbers as numbers."""
    insert_email(db)
    found = cli("status", "--json").json
    assert found["queues"]["email"]["counts"] == {"pending": 1}
    assert found["queues"]["email"]["oldest_s"]["pending"] >= 0
    assert found["queues"]["webhook"]["counts"] == {}
    assert found["workers"] == []
    assert found["limits"][0]["amount"] == 100


def test_it_says_of_each_transport_what_is_known(cli: Cli, db: Db) -> None:
    """Nobody knows of one that was never tried; it is not up for that."""
    db.execute(
        """
        INSERT INTO postroom.transports (name, paused_until, reason, failures)
        VALUES ('smtp://one:25', now() + interval '1 min', 'refused', 3), ('smtp://two:25', NULL, NULL, 0);
        SELECT postroom.pause('transport', 'smtp://three:25', 'ada');
        """
    )
    found = {one["name"]: (one["state"], one["here"]) for one in cli("status", "--json").json["transports"]}
    (here,) = [name for name, (_, is_here) in found.items() if is_here]
    assert found == {
        here: ("not tried yet", True),
        "smtp://one:25": ("down", False),
        "smtp://two:25": ("up", False),
        "smtp://three:25": ("paused", False),
    }
    lines = [" ".join(line.split()) for line in cli.ok("status").splitlines()]
    assert f"{here}: not tried yet" in lines


def test_it_shows_further_limits_and_who_waits_for_them(cli: Cli, db: Db) -> None:
    """Beside the global one: what is used of each, and how many mails wait for it."""
    db.execute("SELECT postroom.set_setting('email.limit.domain.gmail.com', '2/1h')")
    db.execute("SELECT increment_rate_limit('email:domain:gmail.com', 2, 2)")
    db.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, due_at, waits_for)
        VALUES ('ada@gmail.com', 's', 'h', now() + interval '1h', 'limit:email:domain:gmail.com')
        """
    )
    lines = [" ".join(line.split()) for line in cli.ok("status").splitlines()]
    assert any(line.startswith("email:domain:gmail.com: 2 of 2 used (2/1h), the next slot") for line in lines)
    assert "1 for the limit email:domain:gmail.com" in lines


def test_a_database_that_is_not_migrated_is_told_so(
    bare_cli: Cli, empty_database_url: str, monkeypatch: Any
) -> None:
    """Exit 1; only the embedded database is migrated by whoever opens it."""
    monkeypatch.setenv("POSTROOM_DATABASE_URL", empty_database_url)
    answer = bare_cli("status")
    assert answer.code == 1
    assert "`postroom migrate`" in answer.error
