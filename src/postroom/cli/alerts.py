"""`postroom alerts`: the rules and what they found, and whether each target can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from postroom.cli.house import opened_room, run
from postroom.cli.screen import heading, note, print_json, print_line, print_table, progress
from postroom.errors import PostroomError
from postroom.spans import format_span
from postroom.wording import away

if TYPE_CHECKING:
    from datetime import datetime

    from postroom.alerts.rules import Rule
    from postroom.alerts.settings import AlertSettings
    from postroom.alerts.store import Alert

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(help="What is wrong, and who is told.")


@app.callback()
def alerts() -> None:
    """What is wrong, and who is told."""


@app.command("list")
def list_alerts(json: Json = False) -> None:
    """Show the rules with their thresholds, the targets, and what was found last."""
    settings, found, now = run(_list())
    from postroom.alerts.rules import RULES

    if json:
        print_json(
            {
                "repeat": format_span(settings.repeat_s),
                "targets": [{"name": target.name, "kind": target.kind} for target in settings.targets],
                "rules": [
                    {
                        "rule": name,
                        "threshold": _threshold(rule, settings.thresholds[name]),
                        "meaning": rule.meaning,
                        "alerts": [_shown(alert) for alert in found if alert.rule == name],
                    }
                    for name, rule in RULES.items()
                ],
            }
        )
        return
    going_on = {alert.rule for alert in found if alert.over_at is None}
    print_table(
        ["RULE", "THRESHOLD", "STATE", "MEANING"],
        [
            (name, _threshold(rule, threshold), _state(name, threshold, going_on), rule.meaning)
            for name, rule in RULES.items()
            for threshold in [settings.thresholds[name]]
        ],
        flexible=["MEANING"],
    )
    if found:
        heading("Alerts")
        print_table(
            ["RULE", "SINCE", "TOLD", "AGAIN", "OVER", "FOUND"],
            [
                (
                    alert.rule,
                    away(alert.since, now),
                    away(alert.fired_at, now) if alert.fired_at else "not yet",
                    alert.repeats,
                    away(alert.over_at, now) if alert.over_at else "",
                    alert.summary,
                )
                for alert in found
            ],
            flexible=["FOUND"],
        )
    for target in settings.targets:
        waiting = sum(target.name in alert.owed for alert in found)
        print_line(f"target {target.name}: {target.kind}{f', {waiting} not taken yet' if waiting else ''}")
    if not settings.targets:
        note("nobody is told: name a target in [alerts.targets] of postroom.toml")


@app.command("test")
def test() -> None:
    """Send a test message to each target, and say what became of it."""
    outcomes = run(_test())
    for name, kind, problem in outcomes:
        print_line(f"target {name} ({kind}): {problem or 'it took the message'}")
    failed = [name for name, _, problem in outcomes if problem is not None]
    if failed:
        raise PostroomError(f"{len(failed)} of {len(outcomes)} targets took no message: {', '.join(failed)}")


async def _list() -> tuple[AlertSettings, list[Alert], datetime]:
    from postroom.alerts.store import AlertStore

    async with opened_room() as room:
        settings = room.alerts
        now: datetime = await room.database.fetchval("SELECT clock_timestamp()")
        return settings, await AlertStore(room.database).read(), now


async def _test() -> list[tuple[str, str, str | None]]:
    import asyncio
    from datetime import UTC, datetime

    from postroom.alerts.message import test_message
    from postroom.alerts.settings import Target
    from postroom.alerts.targets import NotTaken, send
    from postroom.room import Room

    # Without the database: that it is away is no reason not to try the targets.
    room = Room()
    targets = room.alerts.targets
    if not targets:
        raise PostroomError("there is no target: name one in [alerts.targets] of postroom.toml")
    message = test_message(room.settings.public_url or "this machine", datetime.now(UTC))

    async def attempt(target: Target) -> tuple[str, str, str | None]:
        try:
            await send(target, message)
        except NotTaken as error:
            return target.name, target.kind, str(error)
        return target.name, target.kind, None

    with progress("sending"):
        return await asyncio.gather(*(attempt(target) for target in targets))


def _threshold(rule: Rule, threshold: float | None) -> str:
    if threshold is None:
        return "off"
    if rule.unit == "span":
        return format_span(threshold)
    return f"{threshold * 100:g}%" if rule.unit == "share" else f"{threshold:g}"


def _state(name: str, threshold: float | None, going_on: set[str]) -> str:
    if threshold is None:
        return "off"
    return "found" if name in going_on else "ok"


def _shown(alert: Alert) -> dict[str, Any]:
    return {
        "subject": alert.subject,
        "summary": alert.summary,
        "since": alert.since,
        "fired_at": alert.fired_at,
        "last_sent": alert.last_sent,
        "repeats": alert.repeats,
        "over_at": alert.over_at,
        "owed": alert.owed,
    }
