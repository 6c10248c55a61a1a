"""postroom settings: queue policy, which all workers share."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli

DEFAULTS = {
    "email.limit.global": "100/60s",
    "email.limit.recipient": "10/60s",
    "email.backoff": "1s,5s,30s,5m,30m",
    "webhook.backoff": "1m,5m,30m,2h,24h",
    "email.on_uncertain": "retry",
    "lease": "60s",
    "retention.sent": "30d",
    "retention.processed": "30d",
    "retention.dead_letter": "off",
    "retention.failed": "90d",
    "retention.cron": "7d",
    "retention.body": "off",
    "retention.stats": "30d",
    "retention.audit": "365d",
    "cron.process-email-queue": "* * * * *",
    "cron.process-webhook-retries": "*/5 * * * *",
    "cron.cleanup": "15 3 * * *",
    "cron.reconcile": "7 * * * *",
    "cron.alerts": "* * * * *",
}


def test_the_list_has_every_setting_with_its_default(cli: Cli) -> None:
    """As the contract names them."""
    assert cli("settings", "list", "--json").json == DEFAULTS
    rows = [line.split(maxsplit=1) for line in cli.ok("settings", "list").splitlines()]
    assert cli.ok("settings", "list").split()[:3] == ["KEY", "VALUE", "DEFAULT"]
    assert rows[1:] == [[key, value] for key, value in DEFAULTS.items()]


def test_set_says_what_was_and_get_what_is(cli: Cli) -> None:
    """get prints the value alone, for scripts; list shows the default beside a changed one."""
    assert cli.ok("settings", "set", "lease", "30s") == "lease = 30s (was 60s)\n"
    assert cli.ok("settings", "set", "lease", "30s") == "lease = 30s, as before\n"
    assert cli.ok("settings", "get", "lease") == "30s\n"
    assert cli("settings", "get", "lease", "--json").json == {"lease": "30s"}
    assert ["lease", "30s", "60s"] in [line.split() for line in cli.ok("settings", "list").splitlines()]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lease", "1ms", "write a span of 1s to 1d, such as 60s"),
        ("email.backoff", "soon", "such as 1s,5s,30s,5m,30m"),
        ("email.limit.global", "100", "100/60s"),
        ("email.on_uncertain", "maybe", "retry"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_what_is(cli: Cli, key: str, value: str, said: str) -> None:
    """Exit 2, and nothing is changed."""
    answer = cli("settings", "set", key, value)
    assert answer.code == 2
    assert said in answer.error
    assert cli.ok("settings", "get", key) == f"{DEFAULTS[key]}\n"


@pytest.mark.parametrize("arguments", [("get", "leese"), ("set", "leese", "60s")], ids=" ".join)
def test_a_key_that_is_none_is_told_which_there_are(cli: Cli, arguments: tuple[str, ...]) -> None:
    """Each of them once: the database's hint is a part of its error's text already."""
    answer = cli("settings", *arguments)
    assert answer.code == 2
    assert answer.error.count("email.limit.global") == 1


def test_a_further_limit_is_there_once_it_is_set(cli: Cli) -> None:
    """set, list and get know it, in whatever case; off forgets it."""
    key = "email.limit.domain.gmail.com"
    assert cli.ok("settings", "get", key) == "off\n"
    assert cli.ok("settings", "set", key, "500/1h") == f"{key} = 500/1h (was off)\n"
    assert cli.ok("settings", "get", "email.limit.domain.GMail.com") == "500/1h\n"
    rows = [line.split() for line in cli.ok("settings", "list").splitlines()]
    assert rows[-1] == [key, "500/1h", "off"]
    assert cli.ok("settings", "set", key, "OFF") == f"{key} = off (was 500/1h)\n"
    assert cli("settings", "list", "--json").json == DEFAULTS


def test_a_further_limit_that_cannot_be_is_told_the_forms(cli: Cli) -> None:
    """A typing error makes no limit that holds for nothing."""
    for key in ("email.limit.transport.resnd", "email.limit.sender.shop", "email.limit.domain.a@b.example"):
        answer = cli("settings", "set", key, "1/1s")
        assert answer.code == 2
        assert "email.limit.domain.DOMAIN" in answer.error
