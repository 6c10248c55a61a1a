"""The job `alerts`: look at the house by every rule, and tell each target what it has not been told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING

import asyncpg

from postroom import log
from postroom.alerts.message import Message, message_of
from postroom.alerts.rules import RULES, Found
from postroom.alerts.settings import AlertSettings, Target
from postroom.alerts.store import Alert, AlertStore
from postroom.alerts.targets import NotTaken, send
from postroom.errors import DatabaseUnavailable, PostroomError
from postroom.wording import count_of

if TYPE_CHECKING:
    from postroom.room import Room

SENDING_S_MAX = 40.0
"""No further message is begun after this time: the next minute's run goes on."""

_log = log.get_logger()


async def run_alerts(room: Room, now: datetime | None = None) -> str:
    """
    One round; says what it did.

    Args:
        now: Instead of the database's time, for how long things have held.

    Raises:
        PostroomError: A target did not take a message, or a rule could not look; all else is done.
        DatabaseUnavailable: Nothing is known to be written down.
    """
    settings = room.alerts
    found, blind = await _look(room, settings)
    store = AlertStore(room.database)
    owed = await store.track(
        found,
        off=[name for name in RULES if settings.thresholds[name] is None],
        targets=[target.name for target in settings.targets],
        repeat_s=settings.repeat_s,
        now=now,
    )
    messages = [
        (alert, message_of(alert, house_of(room), room.settings.public_url))
        for alert in owed
        if alert.rule in RULES
    ]
    ends = monotonic() + SENDING_S_MAX
    outcomes = await asyncio.gather(*(_tell(target, messages, store, ends) for target in settings.targets))
    problems = blind + [problem for _, problem in outcomes if problem is not None]
    sent = sum(count for count, _ in outcomes)
    holds = [name for name, ones in found.items() if ones]
    said = f"{', '.join(holds) or 'nothing'} found, {count_of(sent, 'message')} sent"
    if problems:
        raise PostroomError(f"{said}; {'; '.join(problems)}")
    return said


def house_of(room: Room) -> str:
    """Which postroom speaks: its address, or its database."""
    return room.settings.public_url or room.database.name


async def _look(room: Room, settings: AlertSettings) -> tuple[dict[str, list[Found]], list[str]]:
    """What each rule finds; and what kept a rule from looking."""
    found: dict[str, list[Found]] = {}
    problems: list[str] = []
    for name, rule in RULES.items():
        threshold = settings.thresholds[name]
        if threshold is None:
            continue
        try:
            found[name] = await rule.look(room, threshold)
        except DatabaseUnavailable:
            raise
        except (asyncpg.PostgresError, OSError) as error:
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            _log.error("alert.not_looked", rule=name, error=said)
            problems.append(f"rule {name} could not look: {said}")
    return found, problems


async def _tell(
    target: Target, messages: Sequence[tuple[Alert, Message]], store: AlertStore, ends: float
) -> tuple[int, str | None]:
    """Send a target what it is owed, until it fails; how many it took, and why no more."""
    taken = 0
    for alert, message in messages:
        if target.name not in alert.owed:
            continue
        if monotonic() > ends:
            return taken, f"target {target.name} is slow: the rest follows"
        about: Mapping[str, object] = {
            "rule": alert.rule,
            "subject": alert.subject,
            "kind": message.kind,
            "target": target.name,
        }
        try:
            await send(target, message)
        except NotTaken as error:
            _log.error("alert.not_sent", **about, error=str(error))
            return taken, f"target {target.name}: {error}"
        _log.warning("alert.sent", **about, summary=alert.summary)
        await store.taken(alert, target.name)
        taken += 1
    return taken, None
