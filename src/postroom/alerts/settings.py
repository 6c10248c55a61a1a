"""
The table [alerts] of postroom.toml: who is told, what is worth telling, how often.

    [alerts]
    repeat = "4h"

    [alerts.targets]
    mail = "env:ALERT_MAIL"                     # any URL that apprise knows: mailtos://, slack://, pagerduty://
    pager = { webhook = "https://pager.example/hook", secret = "env:ALERT_SECRET" }

    [alerts.rules]
    oldest_due = "10m"
    disk = "off"

A mistake is a ConfigError whose one line names the field; it never shows a value of [alerts.targets].
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NoReturn
from urllib.parse import urlsplit

from postroom.alerts.rules import RULES, Rule
from postroom.errors import ConfigError
from postroom.settings import Settings
from postroom.settings_sources import config_file, suggestion
from postroom.spans import ALLOWED as SPANS
from postroom.spans import parse_span
from postroom.webhooks.schemes.standard import StandardWebhooks

TARGETS_MAX = 20
REPEAT_S = 4 * 3600.0
REPEAT_S_MIN = 60.0
SPAN_S_MAX = 30 * 86400.0

_FIELDS = ("repeat", "targets", "rules")
_WEBHOOK_FIELDS = ("webhook", "secret")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://\S+")
_SHARE = re.compile(r"(\d{1,2}(?:\.\d{1,3})?)\s*%")


@dataclass(frozen=True, slots=True)
class Target:
    """
    Whom alerts are sent to.

    Attributes:
        name: What the log and the database call it.
        kind: `webhook`, or the scheme of an address that apprise knows, such as `mailto`.
        url: May hold a password or a token.
        secret: A webhook is signed with it, by Standard Webhooks.
    """

    name: str
    kind: str
    url: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """
    What [alerts] says.

    Attributes:
        targets: In their order; none where nobody is told.
        thresholds: Of each rule, in the rule's unit; None where it is off.
        repeat_s: How often what goes on is told again.
    """

    targets: tuple[Target, ...]
    thresholds: Mapping[str, float | None]
    repeat_s: float


def read_alert_settings(settings: Settings, environ: Mapping[str, str] = os.environ) -> AlertSettings:
    """
    The alerts of this process.

    Args:
        environ: Where `env:NAME` looks.

    Raises:
        ConfigError: A field is wrong, a variable is not set, or apprise is needed and not installed.
    """
    table = settings.alerts
    _only(table, _FIELDS, "alerts")
    return AlertSettings(
        targets=_targets(table.get("targets", {}), environ),
        thresholds=_thresholds(table.get("rules", {})),
        repeat_s=_span(table.get("repeat", REPEAT_S), "alerts.repeat", REPEAT_S_MIN, "1m"),
    )


def _targets(table: object, environ: Mapping[str, str]) -> tuple[Target, ...]:
    named = _table(table, "alerts.targets")
    if len(named) > TARGETS_MAX:
        _refuse("alerts.targets", f"there may be {TARGETS_MAX} at most")
    return tuple(_target(name, value, environ) for name, value in named.items())


def _target(name: str, value: object, environ: Mapping[str, str]) -> Target:
    where = f"alerts.targets.{name}"
    if not _NAME.fullmatch(name):
        _refuse(where, "a target is named by letters, digits, _, . and -, at most 63 of them")
    if isinstance(value, dict):
        return _webhook(name, value, where, environ)
    if not isinstance(value, str):
        _refuse(where, 'it must be an address that apprise knows, or { webhook = "https://…" }')
    url = _from_env(value, where, environ)
    match = _URL.fullmatch(url)
    if match is None:
        _refuse(
            where, "it is no address; apprise knows such as mailtos://user:password@host?to=ops@example.com"
        )
    if find_spec("apprise") is None:
        _refuse(where, "it needs apprise: pip install 'postroom[alerts]'")
    return Target(name, match[1].lower(), url)


def _webhook(name: str, table: dict[str, Any], where: str, environ: Mapping[str, str]) -> Target:
    _only(table, _WEBHOOK_FIELDS, where)
    url = _from_env(table.get("webhook"), f"{where}.webhook", environ)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        _refuse(f"{where}.webhook", "allowed is an address that begins with https:// or http://")
    secret = None
    if "secret" in table:
        secret = _from_env(table["secret"], f"{where}.secret", environ)
        try:
            StandardWebhooks().signature(secret, b"")
        except ConfigError as error:
            _refuse(f"{where}.secret", f"{error}; expected is whsec_ and base64, or whsk_ and an Ed25519 key")
    return Target(name, "webhook", url, secret)


def _thresholds(table: object) -> dict[str, float | None]:
    written = _table(table, "alerts.rules")
    for name in written:
        if name not in RULES:
            _refuse(f"alerts.rules.{name}", f"it is no rule{suggestion(name, RULES)}")
    return {
        name: _threshold(rule, written[name]) if name in written else rule.threshold
        for name, rule in RULES.items()
    }


def _threshold(rule: Rule, value: object) -> float | None:
    where = f"alerts.rules.{rule.name}"
    if value == "off" or value is False:
        return None
    if rule.unit == "span":
        return _span(value, where, 0.0, "0s", or_off=True)
    if rule.unit == "share":
        match = _SHARE.fullmatch(value) if isinstance(value, str) else None
        if match is None or not float(match[1]):
            _refuse(where, 'allowed is a share such as "20%", or "off"')
        return float(match[1]) / 100
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
        _refuse(where, 'allowed is a number from 1 to 10000, or "off"')
    return float(value)


def _span(value: object, where: str, least_s: float, least: str, *, or_off: bool = False) -> float:
    if isinstance(value, float):
        return value
    try:
        span_s = parse_span(value) if isinstance(value, str) else -1.0
    except ValueError:
        span_s = -1.0
    if not least_s <= span_s <= SPAN_S_MAX:
        _refuse(where, f"allowed is {SPANS}; {least} to 30d{', or off' if or_off else ''}")
    return span_s


def _from_env(value: object, where: str, environ: Mapping[str, str]) -> str:
    """A text, or what the variable holds that `env:NAME` names."""
    if not isinstance(value, str):
        _refuse(where, "it must be a text")
    if not value.startswith("env:"):
        return value.strip()
    name = value.removeprefix("env:").strip()
    found = environ.get(name)
    if not found:
        _refuse(where, f"the variable {name} is {'not set' if found is None else 'empty'}")
    return found.strip()


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, f"it must be a table: [{where}]")
    return value


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in table:
        if name not in known:
            _refuse(f"{where}.{name}", f"it is no setting{suggestion(name, known)}")


def _refuse(where: str, problem: str) -> NoReturn:
    raise ConfigError(f"{config_file()}: {where}: {problem}")
