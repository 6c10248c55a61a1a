"""postroom alerts: the rules and what they found, and whether targets can be reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from tests.alerts.conftest import open_mailbox
from tests.cli.conftest import Cli, insert_dead_letter

Db = psycopg.Connection[tuple[Any, ...]]


def test_the_list_shows_rules_thresholds_and_what_was_found(cli: Cli, db: Db, tmp_path: Path) -> None:
    """By hand, as any job; --json has the same."""
    with open_mailbox() as mailbox:
        (tmp_path / "postroom.toml").write_text(
            f'[alerts.targets]\nmail = "{mailbox.url}"\n[alerts.rules]\ndisk = "off"\nno_worker = "off"\n'
        )
        insert_dead_letter(db)
        assert cli("cron", "run", "alerts").out == "dead_letter found, 1 message sent\n"
        assert len(mailbox.mails) == 1
        out = cli.ok("alerts", "list")
        lines = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if line}
        assert lines["dead_letter"][1] != "ok"
        assert (lines["oldest_due"], lines["disk"]) == (["5m", "ok"], ["off", "off"])
        assert "1 dead letter in queue email in the last day, reason permanent" in out
        assert "target mail: mailto\n" in out
        assert str(mailbox.port) not in out
        found = cli("alerts", "list", "--json").json
        assert found["targets"] == [{"name": "mail", "kind": "mailto"}]
        assert found["rules"][0]["alerts"][0]["subject"] == "email/permanent"


def test_a_test_says_of_each_target_what_happened(cli: Cli, tmp_path: Path) -> None:
    """One takes the message, one does not: exit 1, and no secret of its address is shown."""
    with open_mailbox() as mailbox:
        good = f'[alerts.targets]\nmail = "{mailbox.url}"\n'
        (tmp_path / "postroom.toml").write_text(good)
        assert cli.ok("alerts", "test") == "target mail (mailto): it took the message\n"
        assert mailbox.mails[0]["Subject"] == "postroom: this is a test; nothing is wrong"
        bad = 'pager = { webhook = "http://127.0.0.1:1/a-token" }\nchat = "nothing://a-token"\n'
        (tmp_path / "postroom.toml").write_text(good + bad)
        answer = cli("alerts", "test")
        assert answer.code == 1
        assert answer.out.splitlines()[0] == "target mail (mailto): it took the message"
        assert answer.out.splitlines()[1].startswith(
            "target pager (webhook): Cannot connect to host 127.0.0.1:1"
        )
        assert answer.out.splitlines()[2].startswith("target chat (nothing): apprise cannot read its address")
        assert answer.err == "postroom: 2 of 3 targets took no message: pager, chat\n"
        assert "a-token" not in answer.out


def test_without_a_target_both_say_what_to_do(cli: Cli) -> None:
    """The list works, and says beside it that nobody is told."""
    answer = cli("alerts", "list")
    assert answer.code == 0
    assert answer.err == "nobody is told: name a target in [alerts.targets] of postroom.toml\n"
    answer = cli("alerts", "test")
    assert (answer.code, answer.error) == (
        1,
        "there is no target: name one in [alerts.targets] of postroom.toml",
    )


def test_a_mistake_in_the_table_is_told_by_every_process_that_stays(cli: Cli, tmp_path: Path) -> None:
    """Before it opens anything."""
    (tmp_path / "postroom.toml").write_text('[alerts.rules]\noldest_due = "soon"\n')
    for command in ("worker", "serve", "scheduler", "up"):
        answer = cli(command)
        assert (answer.code, answer.error[:43]) == (1, "postroom.toml: alerts.rules.oldest_due: all")
