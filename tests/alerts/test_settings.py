"""[alerts] of postroom.toml: what is allowed, and errors that name the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postroom.alerts.settings import read_alert_settings
from postroom.errors import ConfigError
from postroom.settings import load_settings

SECRET = "hush-hush"


def test_without_a_table_the_rules_are_on_and_nobody_is_told() -> None:
    """Thresholds have their defaults."""
    found = read_alert_settings(load_settings())
    assert found.targets == ()
    assert found.repeat_s == 4 * 3600
    assert found.thresholds == {
        "dead_letter": 1,
        "oldest_due": 300,
        "failure_rate": 0.2,
        "transport_paused": 120,
        "paused": 3600,
        "no_worker": 120,
        "cron_silent": 180,
        "snapshot_held": 900,
        "disk": 0.1,
    }


def test_a_table_names_targets_and_changes_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of postroom.toml; secrets come from the environment, and show in no repr."""
    (tmp_path / "postroom.toml").write_text(
        """
        [alerts]
        repeat = "1h"
        [alerts.targets]
        mail = "env:OPS_MAIL"
        pager = { webhook = "https://pager.example/hook", secret = "env:OPS_SECRET" }
        [alerts.rules]
        oldest_due = "10m"
        failure_rate = "12.5 %"
        dead_letter = 5
        disk = "off"
        """
    )
    monkeypatch.chdir(tmp_path)
    environ = {"OPS_MAIL": f"mailtos://ops:{SECRET}@mail.example", "OPS_SECRET": "whsec_aHVzaGh1c2g="}
    found = read_alert_settings(load_settings(), environ)
    assert [(target.name, target.kind) for target in found.targets] == [
        ("mail", "mailtos"),
        ("pager", "webhook"),
    ]
    assert found.repeat_s == 3600
    assert (found.thresholds["oldest_due"], found.thresholds["failure_rate"]) == (600, 0.125)
    assert (found.thresholds["dead_letter"], found.thresholds["disk"]) == (5, None)
    assert SECRET not in repr(found)
    assert "aHVza" not in repr(found)


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ({"targts": {}}, "alerts.targts: it is no setting; did you mean targets?"),
        (
            {"repeat": "5s"},
            "alerts.repeat: allowed is a whole number and a unit: 500ms, 3s, 5m, 2h or 30d; 1m",
        ),
        ({"repeat": 5}, "alerts.repeat: allowed is "),
        ({"rules": {"disks": "5%"}}, "alerts.rules.disks: it is no rule; did you mean disk?"),
        ({"rules": {"disk": 5}}, 'alerts.rules.disk: allowed is a share such as "20%", or "off"'),
        ({"rules": {"disk": "0%"}}, 'alerts.rules.disk: allowed is a share such as "20%", or "off"'),
        ({"rules": {"oldest_due": "soon"}}, "alerts.rules.oldest_due: allowed is a whole number and a unit"),
        (
            {"rules": {"dead_letter": 0}},
            'alerts.rules.dead_letter: allowed is a number from 1 to 10000, or "off"',
        ),
        ({"rules": {"dead_letter": True}}, "alerts.rules.dead_letter: allowed is a number"),
        ({"rules": 5}, "alerts.rules: it must be a table: [alerts.rules]"),
        ({"targets": {"a b": "slack://x"}}, "alerts.targets.a b: a target is named by letters"),
        (
            {"targets": {"ops": 5}},
            "alerts.targets.ops: it must be an address that apprise knows, or { webhook",
        ),
        (
            {"targets": {"ops": SECRET}},
            "alerts.targets.ops: it is no address; apprise knows such as mailtos://",
        ),
        ({"targets": {"ops": "env:NOWHERE"}}, "alerts.targets.ops: the variable NOWHERE is not set"),
        ({"targets": {"ops": {}}}, "alerts.targets.ops.webhook: it must be a text"),
        (
            {"targets": {"ops": {"webhook": f"ftp://{SECRET}"}}},
            "alerts.targets.ops.webhook: allowed is an address",
        ),
        (
            {"targets": {"ops": {"webhook": "https://x.example", "secret": SECRET}}},
            "alerts.targets.ops.secret: ",
        ),
        ({"targets": {"ops": {"url": "https://x.example"}}}, "alerts.targets.ops.url: it is no setting"),
    ],
)
def test_a_mistake_names_the_field_and_shows_no_secret(table: dict[str, Any], error: str) -> None:
    """One line, which says what is allowed."""
    with pytest.raises(ConfigError) as caught:
        read_alert_settings(load_settings(alerts=table), {})
    text = str(caught.value)
    assert text.startswith(f"postroom.toml: {error}"), text
    assert SECRET not in text
    assert "\n" not in text
