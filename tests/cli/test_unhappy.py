"""Every command where nothing is as it should be: one line that says what to do, and an exit code."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import psycopg
import pytest

from tests.cli.conftest import Answer, Cli
from tests.cli.test_main import commands

NO_ROW = "00000000-0000-0000-0000-000000000001"

ASKED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("up",): (),
    ("migrate",): (),
    ("serve",): (),
    ("worker",): ("--drain",),
    ("scheduler",): (),
    ("send",): ("--to", "ada@example.com", "--subject", "s", "--text", "t"),
    ("status",): (),
    ("stats",): (),
    ("explain",): (NO_ROW,),
    ("dead-letters", "list"): (),
    ("dead-letters", "show"): (NO_ROW,),
    ("dead-letters", "retry"): ("--all",),
    ("dead-letters", "discard"): (NO_ROW,),
    ("dead-letters", "edit"): (NO_ROW, "--to", "ada@example.com"),
    ("pause",): ("emails",),
    ("resume",): ("emails",),
    ("settings", "list"): (),
    ("settings", "get"): ("lease",),
    ("settings", "set"): ("lease", "60s"),
    ("webhooks", "replay"): ("--source", "stripe", "--since", "1h"),
    ("webhooks", "reconcile"): ("stripe", "--since", "1h"),
    ("webhooks", "forget"): ("shop:room",),
    ("cron", "list"): (),
    ("cron", "history"): (),
    ("cron", "run"): ("cleanup",),
    ("cron", "use-pg-cron"): (),
    ("cron", "use-own"): (),
    ("alerts", "list"): (),
    ("cleanup",): (),
    ("audit",): (),
    ("psql",): ("-c", "SELECT count(*) FROM email_queue"),
    ("doctor",): ("--before-upgrade",),
    ("key", "new"): (),
    ("key", "list"): (),
    ("key", "revoke"): ("support",),
}
"""Each command that asks a database, as somebody writes it who does not know of it."""

ASKS_NO_DATABASE = {("version",), ("webhooks", "verify"), ("alerts", "test")}


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTROOM_PORT", "0")
    monkeypatch.setenv("POSTROOM_STRIPE_WEBHOOK_SECRET", "whsec_c2VjcmV0")
    monkeypatch.setenv("STRIPE_API_KEY", "rk_test")


def test_the_list_of_what_is_asked_has_every_command() -> None:
    """A new one gets a place in it."""
    assert set(ASKED) | ASKS_NO_DATABASE == set(commands())


def test_no_command_ends_in_anything_but_a_line_where_the_database_is_away(bare_cli: Cli) -> None:
    """It names the database and what to look at, never the password."""
    for command, answer in _answers(bare_cli):
        assert answer.code == 1, command
        assert "127.0.0.1:1" in answer.error, command
        assert "POSTROOM_DATABASE_URL" in answer.error, command
        assert "secret-word" not in answer.err, command


def test_every_command_says_that_a_database_is_to_be_migrated(
    bare_cli: Cli, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or does what one can do without."""
    monkeypatch.setenv("POSTROOM_DATABASE_URL", empty_database_url)
    for command, answer in _answers(bare_cli, but={("up",), ("migrate",), ("doctor",), ("psql",)}):
        assert answer.code == 1, command
        assert "run `postroom migrate`" in answer.error, command
    answer = bare_cli("migrate", "--check")
    assert (answer.code, answer.err) == (1, "postroom: the database is behind: run `postroom migrate`\n")
    answer = bare_cli("psql", "-c", "SELECT count(*) FROM email_queue")
    assert (answer.code, answer.error) == (1, 'database: relation "email_queue" does not exist')


def test_every_command_says_which_user_may(
    bare_cli: Cli, database_url: str, stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that may do nothing, as `anon` may not either."""
    monkeypatch.setenv("POSTROOM_DATABASE_URL", re.sub(r"//[^@]*@", f"//{stranger}:word@", database_url))
    for command, answer in _answers(bare_cli):
        assert answer.code == 1, command
        assert "permission denied for " in answer.err, command
        assert answer.err.splitlines()[-1].endswith(" in POSTROOM_DATABASE_URL"), command
        assert "name the tables' owner" in answer.err, command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("settings", "get", "nothing"), "there is no setting 'nothing'; settings: email.limit.global, "),
        (
            ("settings", "set", "nothing", "1"),
            "there is no setting 'nothing'; Settings: email.limit.global, ",
        ),
        (
            ("webhooks", "verify", "--source", "nothing", "--body", "-"),
            "no source 'nothing'; sources: stripe",
        ),
        (
            ("webhooks", "replay", "--source", "nothing", "--since", "1h"),
            "no source 'nothing'; sources: stripe",
        ),
        (
            ("webhooks", "reconcile", "nothing", "--since", "1h"),
            "there is no source 'nothing'; sources: stripe",
        ),
        (("webhooks", "forget", "nothing"), "no program 'nothing' has registered handlers; known: none"),
        (("cron", "run", "nothing"), "there is no job 'nothing'; jobs: process-email-queue, "),
        (
            ("cron", "history", "nothing"),
            "there is no job 'nothing', and no run of it; jobs: process-email-q",
        ),
        (("audit", "--action", "nothing"), "nobody does 'nothing' by hand; actions: dead_letter.retry, "),
        (("key", "revoke", "nothing"), "there is no key 'nothing'; keys: support"),
        (("key", "new", "--name", ""), "--name: a key's name is 1 to 100 characters in one line"),
        (("pause", "transport", "nothing"), "there is no such transport; known are: maildir:"),
        (("worker", "--queues", "nothing"), "there is no queue 'nothing', only email, webhooks"),
        (
            ("worker", "--app", "nothing"),
            "write it as module:name, such as shop.hooks:room; modules here: none",
        ),
        (("migrate", "--export", ""), "--export: name a folder"),
        (("dead-letters", "list", "--limit", "9" * 20), "Invalid value for '--limit'"),
        (("audit", "--before", "9" * 20), "Invalid value for '--before'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_name_that_is_none_is_wrong_usage_and_hears_which_there_are(
    cli: Cli, arguments: tuple[str, ...], told: str
) -> None:
    """Names are of the set-up; a row that is not there may have been, so that is exit 1."""
    cli("key", "new", "--name", "support")
    answer = cli(*arguments)
    assert answer.code == 2
    assert told in answer.error


@pytest.mark.parametrize(
    "command", [command for command, asked in ASKED.items() if NO_ROW in asked], ids=" ".join
)
def test_a_row_that_is_not_there_is_exit_1(cli: Cli, command: tuple[str, ...]) -> None:
    """It may have been, and cleanup took it."""
    answer = cli(*command, *ASKED[command])
    assert answer.code == 1
    assert NO_ROW in answer.err
    assert len(answer.err.splitlines()) == 1


@pytest.fixture
def stranger(database_url: str) -> Iterator[str]:
    """A user that may connect, and nothing else."""
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("CREATE ROLE stranger_of_the_cli LOGIN PASSWORD 'word'")
        yield "stranger_of_the_cli"
        db.execute("DROP ROLE stranger_of_the_cli")


def _answers(cli: Cli, *, but: Collection[tuple[str, ...]] = ()) -> Iterator[tuple[str, Answer]]:
    for command, asked in ASKED.items():
        if command not in but:
            yield " ".join(command), cli(*command, *asked)
