"""postroom audit: who did what by hand, told of every action of the command line."""

from __future__ import annotations

from typing import Any

import psycopg

from postroom.database.audit import NOTE_CHARACTERS_MAX
from tests.cli.conftest import Cli, insert_dead_letter

Db = psycopg.Connection[tuple[Any, ...]]


def test_what_is_done_by_the_command_line_is_in_the_trail_with_who_and_when(cli: Cli, db: Db) -> None:
    """Newest first, each with what it was about."""
    one, other, _ = (insert_dead_letter(db) for _ in range(3))
    cli.ok("dead-letters", "retry", one, "--note", "address is right again")
    cli.ok("dead-letters", "discard", other)
    cli.ok("dead-letters", "retry", "--all", "--reason", "permanent")
    cli.ok("settings", "set", "email.limit.global", "7/10s")
    cli.ok("cron", "run", "cleanup")
    key = cli("key", "new").out
    trail = cli("audit", "--json").json
    assert [entry["action"] for entry in reversed(trail)] == [
        "dead_letter.retry",
        "dead_letter.discard",
        "dead_letter.retry",
        "dead_letter.retry",
        "setting.change",
        "job.run",
        "key.create",
    ]
    about = [entry["about"] for entry in reversed(trail)]
    assert about[0] == {"queue": "email", "count": 1, "ids": [one]}
    assert about[1] == {"queue": "email", "count": 1, "ids": [other]}
    bulk = about[2]["bulk"]
    assert about[2] == {"bulk": bulk, "count": 1, "reason": "permanent", "state": "begun"}
    assert about[3] == {"bulk": bulk, "count": 1, "state": "done"}
    assert about[4] == {"key": "email.limit.global", "before": "100/60s", "after": "7/10s"}
    assert about[5]["job"] == "cleanup"
    assert trail[-1]["note"] == "address is right again"
    assert {entry["role"] for entry in trail} == {"cli"}
    assert all("@" in entry["actor"] for entry in trail)
    assert key.strip() not in str(trail)


def test_what_changed_nothing_is_not_in_the_trail(cli: Cli, db: Db) -> None:
    """A dead letter that is none, a setting as before, a value that is refused, a look at something."""
    cli("dead-letters", "retry", "00000000-0000-0000-0000-000000000001")
    cli.ok("settings", "set", "lease", "60s")
    cli("settings", "set", "lease", "no")
    cli.ok("cleanup", "--dry-run")
    assert cli("audit", "--json").json == []


def test_the_trail_is_read_in_pages_and_by_action(cli: Cli, db: Db) -> None:
    """As text for people, with how to go on."""
    for seconds in (61, 62, 63):
        cli.ok("settings", "set", "lease", f"{seconds}s")
    cli.ok("dead-letters", "discard", insert_dead_letter(db))
    answer = cli("audit", "--limit", "2", "--action", "setting.change")
    assert answer.code == 0
    assert "lease: 62s → 63s" in answer.out
    assert "lease: 60s → 61s" not in answer.out
    assert "--before 2 show more" in answer.err
    assert "lease: 60s → 61s" in cli.ok("audit", "--before", "2")
    assert [entry["action"] for entry in cli("audit", "--json", "--action", "dead_letter").json] == [
        "dead_letter.discard"
    ]


def test_an_action_and_its_entry_are_there_together_or_not_at_all(cli: Cli, db: Db) -> None:
    """Where the entry cannot be written, nothing is done."""
    db.execute("ALTER TABLE postroom.audit ADD CONSTRAINT closed CHECK (false)")
    letter = insert_dead_letter(db)
    for command in (
        ("dead-letters", "retry", letter),
        ("settings", "set", "lease", "5s"),
        ("cron", "run", "cleanup"),
        ("key", "new"),
    ):
        assert cli(*command).code == 1
    assert db.execute("SELECT status FROM email_queue").fetchall() == [("dead_letter",)]
    assert db.execute("SELECT value FROM postroom.settings WHERE key = 'lease'").fetchall() == [("60s",)]
    assert db.execute("SELECT count(*) FROM postroom.service_keys").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM postroom.job_runs").fetchone() == (0,)


def test_many_letters_are_two_entries_and_each_says_by_whom(cli: Cli, db: Db) -> None:
    """One where it begins and one where it ends; in its own history each letter names who it was."""
    db.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, status, dead_reason, failed_at)
        SELECT 'a@example.com', 's', 'h', 'dead_letter', 'permanent', now() FROM generate_series(1, 1200)
        """
    )
    cli.ok("dead-letters", "retry", "--all")
    trail = cli("audit", "--json").json
    assert [(entry["about"]["state"], entry["about"]["count"]) for entry in trail] == [
        ("done", 1200),
        ("begun", 1200),
    ]
    told = db.execute("SELECT DISTINCT attempt_log -> -1 ->> 'by' FROM email_queue").fetchall()
    assert told == [(trail[0]["actor"],)]


def test_a_note_is_bounded_and_the_trail_is_forgotten_after_a_year(cli: Cli, db: Db) -> None:
    """By cleanup, as retention.audit says."""
    cli.ok("dead-letters", "discard", insert_dead_letter(db), "--note", "x" * 5_000)
    assert len(cli("audit", "--json").json[0]["note"]) == NOTE_CHARACTERS_MAX
    db.execute("UPDATE postroom.audit SET at = now() - interval '364 days'")
    assert "entries of the audit trail, retention.audit = 365d: 0 deleted" in cli.ok("cleanup")
    db.execute("UPDATE postroom.audit SET at = now() - interval '366 days' WHERE note IS NOT NULL")
    assert "entries of the audit trail, retention.audit = 365d: 1 deleted" in cli.ok("cleanup")


def test_a_replay_of_many_events_is_two_entries_and_each_event_says_by_whom(cli: Cli, db: Db) -> None:
    """One before the first event is touched, one with what became of them; none where nothing was chosen."""
    db.execute(
        "INSERT INTO postroom.handlers (app, source, name, events) VALUES ('shop:room', 's', 'ship', '{*}')"
    )
    again = ("webhooks", "replay", "--source", "s", "--since", "1h", "--handler", "ship")
    cli.ok(*again)
    cli.ok(*again, "--dry-run")
    assert cli("audit", "--json").json == []
    db.execute(
        """
        INSERT INTO webhook_retry_queue (webhook_type, payload, status, handlers_done)
        SELECT 's', '{}', 'processed', '{ship}' FROM generate_series(1, 1200)
        """
    )
    assert "1,200 events replayed" in cli.ok(*again)
    ended, begun = cli("audit", "--json").json
    assert (begun["action"], begun["about"]["state"], begun["about"]["handler"]) == (
        "webhook.replay",
        "begun",
        "ship",
    )
    assert (ended["about"]["count"], ended["about"]["state"]) == (1200, "done")
    told = db.execute("SELECT DISTINCT attempt_log -> -1 ->> 'by' FROM webhook_retry_queue").fetchall()
    assert told == [(ended["actor"],)]


def test_no_command_changes_the_house_without_an_entry(cli: Cli, db: Db) -> None:
    """What no page does, too: forgetting, cleaning up, another scheduler, a program's handlers."""
    db.execute(
        "INSERT INTO postroom.handlers (app, source, name, events) VALUES ('shop:room', 's', 'ship', '{*}')"
    )
    cli.ok("cleanup")
    cli.ok("webhooks", "forget", "shop:room")
    cli.ok("cron", "use-own")
    assert [(entry["action"], entry["about"]) for entry in reversed(cli("audit", "--json").json)] == [
        ("job.run", {"job": "cleanup"}),
        ("handlers.forget", {"program": "shop:room", "handlers": ["s/ship"]}),
        ("cron.use", {"scheduler": "postroom"}),
    ]


def test_what_takes_many_steps_does_none_without_its_entry(cli: Cli, db: Db) -> None:
    """Where the trail refuses, a replay, a cleanup and a program's end have changed nothing."""
    db.execute(
        "INSERT INTO postroom.handlers (app, source, name, events) VALUES ('shop:room', 's', 'ship', '{*}')"
    )
    db.execute(
        """
        INSERT INTO webhook_retry_queue (webhook_type, payload, status, handlers_done, processed_at)
        VALUES ('s', '{}', 'processed', '{ship}', now() - interval '90 d')
        """
    )
    db.execute("ALTER TABLE postroom.audit ADD CONSTRAINT closed CHECK (false)")
    for command in (
        ("webhooks", "replay", "--source", "s", "--since", "1h", "--handler", "ship"),
        ("webhooks", "forget", "shop:room"),
        ("cleanup",),
        ("cron", "use-own"),
    ):
        assert cli(*command).code == 1
    assert db.execute("SELECT status FROM webhook_retry_queue").fetchall() == [("processed",)]
    assert db.execute("SELECT count(*) FROM postroom.handlers").fetchone() == (1,)
