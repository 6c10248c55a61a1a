"""The alerts' SQL: what is wrong since when, and who was told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from postroom.database.connect import Database

if TYPE_CHECKING:
    from postroom.alerts.rules import Found

DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class Alert:
    """
    A row of postroom.alerts.

    Attributes:
        since: Found first.
        fired_at: Told first; None: it has not held for long enough.
        last_sent: When its last message fell due.
        repeats: How often it was told again.
        over_at: None while it goes on.
        owed: Names of the targets that have not taken the last message.
    """

    rule: str
    subject: str
    summary: str
    since: datetime
    fired_at: datetime | None
    last_sent: datetime | None
    repeats: int
    over_at: datetime | None
    owed: list[str]


class AlertStore:
    """Reads and writes postroom.alerts; every call may raise DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def track(
        self,
        found: Mapping[str, Sequence[Found]],
        *,
        off: Sequence[str],
        targets: Sequence[str],
        repeat_s: float,
        now: datetime | None = None,
    ) -> list[Alert]:
        """
        Write down what the rules found; the alerts whose last message somebody has not taken yet.

        Args:
            found: By rule; one that found nothing has an empty list, one that could not look is not there.
            off: Rules that are switched off.
            now: Instead of the database's time.
        """
        each = [(rule, one) for rule, ones in found.items() for one in ones]
        rows = await self._database.fetch(
            """
            SELECT *
            FROM postroom.track_alerts($1, $2, $3, $4, $5, $6, $7, $8, COALESCE($9, clock_timestamp()))
            """,
            list(found),
            list(off),
            [rule for rule, _ in each],
            [one.subject for _, one in each],
            [one.summary for _, one in each],
            [timedelta(seconds=one.hold_s) for _, one in each],
            list(targets),
            timedelta(seconds=repeat_s),
            now,
            deadline_s=DEADLINE_S,
        )
        return [Alert(**row) for row in rows]

    async def taken(self, alert: Alert, target: str) -> None:
        """A target has taken the alert's last message."""
        await self._database.execute(
            "SELECT postroom.alert_taken($1, $2, $3, $4)",
            alert.rule,
            alert.subject,
            alert.last_sent,
            target,
            deadline_s=DEADLINE_S,
        )

    async def read(self) -> list[Alert]:
        """All of them, those that go on first."""
        rows = await self._database.fetch(
            "SELECT * FROM postroom.alerts ORDER BY over_at IS NOT NULL, over_at DESC, since, rule, subject"
        )
        return [Alert(**row) for row in rows]
