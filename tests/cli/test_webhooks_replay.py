"""`postroom webhooks replay`: events run again, and a dry run says which."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli

Db = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(autouse=True)
def _a_source(bare_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTROOM_STRIPE_WEBHOOK_SECRET", "whsec_of_the_tests")
    Path("postroom.toml").write_text(
        '[[webhooks.stripe.handlers]]\nname = "shop"\nevents = ["checkout.*"]\nsql = "public.on_checkout"\n'
    )


@pytest.fixture(autouse=True)
def _events(request: pytest.FixtureRequest) -> None:
    """12 events that shop has missed, an hour old, the newest a dead letter; and one that it is done with."""
    if "cli" not in request.fixturenames:
        return
    db: Db = request.getfixturevalue("db")
    db.execute(
        """
        INSERT INTO webhook_retry_queue (
            webhook_type, webhook_event_id, event_type, payload, status, handlers_done, created_at
        )
        SELECT
            'stripe', 'evt_' || n, 'checkout.paid', '{}',
            CASE n WHEN 12 THEN 'dead_letter' ELSE 'processed' END,
            CASE n WHEN 0 THEN '{shop}' ELSE '{}'::text[] END, now() - interval '1 h' + n * interval '1 s'
        FROM generate_series(0, 12) AS n
        """
    )


def pending(db: Db) -> int:
    row = db.execute("SELECT count(*) FROM webhook_retry_queue WHERE status = 'pending'").fetchone()
    assert row is not None
    return int(row[0])


def test_it_says_how_many_run_again(cli: Cli, db: Db) -> None:
    """A second time there are none: they wait already."""
    assert cli.ok("webhooks", "replay", "--source", "stripe", "--since", "2h") == "12 events replayed\n"
    assert pending(db) == 12
    assert cli.ok("webhooks", "replay", "--source", "stripe", "--since", "2h") == "0 events replayed\n"


def test_a_dry_run_shows_the_first_and_changes_nothing(cli: Cli, db: Db) -> None:
    """How many, and what would run."""
    lines = cli.ok("webhooks", "replay", "--source", "stripe", "--since", "1d", "--dry-run").splitlines()
    assert lines[0] == "12 events would be replayed; the first 10:"
    assert lines[1].split() == ["ID", "EVENT", "TYPE", "STATUS", "CAME", "HANDLERS"]
    assert len(lines) == 12
    assert "evt_1 " in lines[2]
    assert lines[2].endswith("shop")
    assert pending(db) == 0


def test_json_says_the_same_to_programs(cli: Cli, db: Db) -> None:
    """A handler by its name runs again where it is done."""
    options = ("--source", "stripe", "--since", "1d", "--handler", "shop", "--json")
    found = cli("webhooks", "replay", *options, "--dry-run").json
    assert (found["dry_run"], found["count"], len(found["first"])) == (True, 13, 10)
    assert (found["first"][0]["event_id"], found["first"][0]["handlers"]) == ("evt_0", ["shop"])
    assert cli("webhooks", "replay", *options).json == {"dry_run": False, "count": 13, "refused": 0}
    assert pending(db) == 13


def test_times_are_iso_8601_or_spans_ago(cli: Cli, db: Db) -> None:
    """From the first, up to but without the second."""
    row = db.execute("SELECT created_at FROM webhook_retry_queue WHERE webhook_event_id = 'evt_5'").fetchone()
    assert row is not None
    since = row[0].astimezone(UTC).isoformat().replace("+00:00", "Z")
    until = (row[0] + timedelta(seconds=3)).isoformat()
    out = cli.ok("webhooks", "replay", "--source", "stripe", "--since", since, "--until", until)
    assert out == "3 events replayed\n"
    assert cli.ok("webhooks", "replay", "--source", "stripe", "--since", "999999999d", "--until", "30m") == (
        "9 events replayed\n"
    )


def test_a_row_that_refuses_is_told_and_the_others_run(cli: Cli, db: Db) -> None:
    """Exit 1: something is left."""
    db.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'not that one';
        END;
        $$;
        CREATE TRIGGER refuses BEFORE UPDATE ON webhook_retry_queue
        FOR EACH ROW WHEN (OLD.webhook_event_id = 'evt_7') EXECUTE FUNCTION refuse()
        """
    )
    answer = cli("webhooks", "replay", "--source", "stripe", "--since", "2h")
    assert (answer.code, answer.out) == (1, "11 events replayed\n")
    assert answer.err == "postroom: 1 row refused the update: not that one\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--source", "strip", "--since", "2h"], "there is no source 'strip'; sources: stripe"),
        (
            ["--source", "stripe", "--since", "2h", "--handler", "shp"],
            "source stripe has no handler 'shp'; handlers: shop",
        ),
    ],
)
def test_an_unknown_name_is_wrong_usage(cli: Cli, options: list[str], line: str) -> None:
    """With what there is."""
    answer = cli("webhooks", "replay", *options)
    assert (answer.code, answer.error) == (2, line)


@pytest.mark.parametrize("since", ["yesterday", "2 h", "", "2026-13-01", "-2h"])
def test_a_time_that_cannot_be_read_is_wrong_usage(bare_cli: Cli, since: str) -> None:
    """Before any database is asked."""
    answer = bare_cli("webhooks", "replay", "--source", "stripe", f"--since={since}")
    assert answer.code == 2
    assert answer.error.endswith("or a span ago such as 2h or 3d")


def test_a_time_that_is_empty_is_wrong_usage(bare_cli: Cli) -> None:
    """The end before the beginning, and a beginning in the future."""
    answer = bare_cli("webhooks", "replay", "--source", "stripe", "--since", "1h", "--until", "2h")
    assert (answer.code, answer.error) == (2, "no time lies between --since 1h and --until 2h")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    answer = bare_cli("webhooks", "replay", "--source", "stripe", "--since", tomorrow)
    assert (answer.code, answer.error) == (2, f"no time lies between --since {tomorrow} and now")
