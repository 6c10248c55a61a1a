"""What people are told: a title, some lines, and the same as JSON; made anew whenever it is sent."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from postroom.alerts.rules import RULES
from postroom.alerts.store import Alert
from postroom.wording import duration

Kind = Literal["fired", "repeated", "over", "test"]


@dataclass(frozen=True, slots=True)
class Message:
    """
    One message.

    Attributes:
        id: The same whenever this message is sent again.
        data: For programs, as JSON.
    """

    id: str
    kind: Kind
    title: str
    text: str
    at: datetime
    data: dict[str, Any]

    @property
    def document(self) -> dict[str, Any]:
        """What a webhook gets: Standard Webhooks' `type`, `timestamp` and `data`."""
        return {
            "type": f"alert.{self.kind}",
            "timestamp": self.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": self.data,
        }


def message_of(alert: Alert, house: str, public_url: str | None) -> Message:
    """
    The last message of an alert that has fired.

    Args:
        house: Which postroom speaks.
        public_url: Where its dashboard is; None where nobody has said.
    """
    assert alert.last_sent is not None
    rule = RULES[alert.rule]
    kind: Kind = "over" if alert.over_at is not None else "repeated" if alert.repeats else "fired"
    advice, command = rule.advice, rule.command(alert.subject)
    dashboard = None if public_url is None else f"{public_url}/dashboard"
    lasted = duration(((alert.over_at or alert.last_sent) - alert.since).total_seconds())
    if kind == "over":
        title = f"over: {alert.summary}"
        lines = [f"This is over; it lasted {lasted}.", f"It was: {alert.summary}."]
    else:
        title = f"{'still: ' if kind == 'repeated' else ''}{alert.summary}"
        lines = [f"{_sentence(alert.summary)}."]
        if kind == "repeated":
            lines.append(f"It has been so for {lasted}.")
        lines += [f"What to do: {advice}.", f"Command: {command}"]
    if dashboard is not None:
        lines.append(f"Dashboard: {dashboard}")
    lines.append(f"Rule {alert.rule} of {house}; every rule: docs/operations.md")
    return Message(
        id=_id(alert.rule, alert.subject, alert.last_sent.isoformat(), kind),
        kind=kind,
        title=f"postroom: {title}",
        text="\n".join(lines),
        at=alert.last_sent,
        data={
            "house": house,
            "rule": alert.rule,
            "subject": alert.subject,
            "summary": alert.summary,
            "since": _written(alert.since),
            "repeats": alert.repeats,
            "over_at": _written(alert.over_at),
            "advice": advice,
            "command": command,
            "dashboard": dashboard,
        },
    )


def test_message(house: str, at: datetime) -> Message:
    """What `postroom alerts test` sends."""
    summary = "this is a test; nothing is wrong"
    return Message(
        id=_id("test", house, at.isoformat(), "test"),
        kind="test",
        title=f"postroom: {summary}",
        text=f"{_sentence(summary)}.\nSent by `postroom alerts test` of {house}.",
        at=at,
        data={"house": house, "rule": "test", "subject": "", "summary": summary},
    )


def _id(*parts: str) -> str:
    return f"msg_{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"


def _written(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
