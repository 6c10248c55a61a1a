"""`postroom webhooks reconcile stripe`: how many events had never arrived."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli
from tests.support.stripe_api import KEY, StripeServer, stripe_server_beside

Db = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def stripe(monkeypatch: pytest.MonkeyPatch) -> Iterator[StripeServer]:
    with stripe_server_beside() as server:
        monkeypatch.setenv("POSTROOM_STRIPE_WEBHOOK_SECRET", "whsec_of_the_tests")
        monkeypatch.setenv("POSTROOM_STRIPE_API_URL", server.url)
        monkeypatch.setenv("STRIPE_API_KEY", KEY)
        for n in range(120):
            server.add(f"evt_{n}", int(time()) - 7200 + n, "checkout.paid" if n % 2 else "invoice.paid")
        yield server


def test_it_says_how_many_had_not_arrived(cli: Cli, db: Db, stripe: StripeServer) -> None:
    """A second time there are none."""
    command = ("webhooks", "reconcile", "stripe", "--since", "3h")
    assert cli.ok(*command, "--events", "checkout.*") == "60 of 60 events had not arrived: stored now\n"
    assert cli.ok(*command) == "60 of 120 events had not arrived: stored now\n"
    assert cli(*command, "--json").json == {"listed": 120, "missing": 0, "refused": 0}
    assert db.execute("SELECT count(*) FROM webhook_retry_queue").fetchone() == (120,)


def test_what_the_database_refuses_ends_it_with_1(cli: Cli, db: Db, stripe: StripeServer) -> None:
    """The others are stored."""
    db.execute("ALTER TABLE webhook_retry_queue ADD CONSTRAINT mine CHECK (webhook_event_id <> 'evt_3')")
    answer = cli("webhooks", "reconcile", "stripe", "--since", "1d")
    assert (answer.code, answer.out) == (1, "119 of 120 events had not arrived: stored now\n")
    assert "the database refused 1 event: see its triggers and constraints" in answer.err


def test_a_wrong_key_is_one_line(cli: Cli, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a missing one says where to put it."""
    monkeypatch.setenv("POSTROOM_STRIPE_API_KEY", "sk_other")
    answer = cli("webhooks", "reconcile", "stripe", "--since", "3h")
    assert answer.code == 1
    assert answer.error.startswith("Stripe refuses the key in POSTROOM_STRIPE_API_KEY: HTTP 401")
    monkeypatch.delenv("POSTROOM_STRIPE_API_KEY")
    monkeypatch.delenv("STRIPE_API_KEY")
    answer = cli("webhooks", "reconcile", "stripe", "--since", "3h")
    assert (answer.code, answer.error) == (
        1,
        "set STRIPE_API_KEY to a key that may read events: sk_… or rk_…",
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["strip", "--since", "3h"], "there is no source 'strip'; sources: github, stripe"),
        (
            ["github", "--since", "3h"],
            "source github is of scheme github: only Stripe's events can be listed",
        ),
        (
            ["stripe", "--since", "30d"],
            "--since 30d is more than 29 days ago: an event is known for 30 days",
        ),
        (["stripe", "--since", "2999-01-01"], "no time lies between --since 2999-01-01 and now"),
        (
            ["stripe", "--since", "then"],
            "--since: 'then' is no time: write 2026-11-25, 2026-11-25 10:30, or a span ago such as 2h or 3d",
        ),
    ],
)
def test_what_can_never_work_is_wrong_usage(
    bare_cli: Cli, stripe: StripeServer, arguments: list[str], line: str
) -> None:
    """Before any database or Stripe is asked."""
    Path("postroom.toml").write_text('[webhooks.github]\nsecrets = ["a secret"]\n')
    answer = bare_cli("webhooks", "reconcile", *arguments)
    assert (answer.code, answer.error) == (2, line)
    assert stripe.asked == []
