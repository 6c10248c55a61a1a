"""The transports as screens show them: which there are, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from postroom.database.connect import Database
from postroom.queue.pauses import Pause

State = Literal["up", "not tried yet", "down", "paused"]

SHOWN_MAX = 100


@dataclass(frozen=True, slots=True)
class TransportStatus:
    """
    A transport.

    Attributes:
        state: `paused` by a person; `down`, and tried again by itself; `not tried yet`: no attempt by it has
            ever ended, so nobody knows; else `up`.
        here: One of this process's POSTROOM_TRANSPORT.
    """

    name: str
    state: State
    here: bool


async def read_transports(
    database: Database, ways: Sequence[str], paused: Sequence[Pause]
) -> list[TransportStatus]:
    """
    This process's transports, then those that others have used, found down or paused.

    Args:
        ways: The names of this process's.
        paused: What read_pauses() has found.
    """
    rows = await database.fetch(_KNOWN, SHOWN_MAX)
    tried = {row["name"] for row in rows if row["tried"]}
    by_hand = {pause.name for pause in paused if pause.kind == "transport" and pause.by_hand}
    down = {pause.name for pause in paused if pause.kind == "transport" and not pause.by_hand}

    def state_of(name: str) -> State:
        if name in by_hand:
            return "paused"
        if name in down:
            return "down"
        return "up" if name in tried or _OTHER in tried else "not tried yet"

    names = dict.fromkeys([*ways, *(row["name"] for row in rows if row["name"] != _OTHER)])
    return [TransportStatus(name, state_of(name), name in ways) for name in names]


_OTHER = "other"
"""Attempts by transports whose names are too long to be counted by (59_times.sql)."""

_KNOWN = """
    SELECT found.name, bool_or(found.tried) AS tried
    FROM (
        SELECT transport.name, true FROM postroom.transports AS transport
        UNION ALL
        SELECT held.name, false FROM postroom.pauses AS held WHERE held.kind = 'transport'
        UNION ALL
        SELECT total.transport, true
        FROM postroom.processing_totals AS total
        WHERE total.queue = 'email' AND total.outcome <> 'waits'
        UNION ALL
        SELECT tally.transport, true
        FROM postroom.tallies AS tally
        WHERE tally.queue = 'email' AND tally.outcome <> 'waits'
    ) AS found (name, tried)
    WHERE found.name NOT IN ('', 'an old caller')
    GROUP BY found.name
    ORDER BY found.name
    LIMIT $1
"""
