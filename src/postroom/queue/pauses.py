"""
What is paused: a queue or a transport, by a person; a transport also by itself, while it is down.

A person's pause stands in the database and holds for everybody (docs/decisions/0025); the one of a transport
that is down is each process's own, and the database shows it (docs/decisions/0007). Both are read here.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from time import monotonic
from typing import Any, Literal

from postroom import log
from postroom.database.audit import Action, Actor, record
from postroom.database.connect import Database
from postroom.database.connection import Connection
from postroom.errors import PostroomError
from postroom.queue.claim import Paused
from postroom.spans import parse_span
from postroom.wording import count_of, moment

Kind = Literal["queue", "transport"]

LOOK_S = 1.0
"""What a process knows of pauses is at most so old while it works: a statement a second at most."""

REASON_CHARACTERS_MAX = 500
FOR_S_MIN = 1.0
FOR_S_MAX = 366 * 86_400.0

QUEUE_WORDS = {"emails": "email", "webhooks": "webhook"}
"""The queues as people call them, and their names in the tables."""

_log = log.get_logger()


class PauseRefused(PostroomError):
    """A pause cannot be as it was asked for: the text says what is allowed."""


@dataclass(frozen=True, slots=True)
class Pause:
    """
    Something that is paused.

    Attributes:
        name: `email` or `webhook`; or a transport's name.
        paused_by: The person; None where a transport is down and the workers try it again by themselves.
        since: When a person paused it.
        until: When it ends by itself; None: when a person resumes it.
        failures: How many times in a row a transport was down.
    """

    kind: Kind
    name: str
    paused_by: str | None
    since: datetime | None
    until: datetime | None
    reason: str | None
    failures: int = 0

    @property
    def by_hand(self) -> bool:
        """Whether a person did it, and not a transport that is down."""
        return self.paused_by is not None

    @property
    def what(self) -> str:
        """`queue email`, `transport smtp://relay.example.com:25`."""
        return f"{self.kind} {self.name}"

    @property
    def resume_command(self) -> str:
        """The command that ends it."""
        return f"postroom resume {self.words}"

    @property
    def words(self) -> str:
        """What it is called on the command line: `emails`, `transport smtp://relay.example.com:25`."""
        if self.kind == "transport":
            return shlex.join(["transport", self.name])
        return next(word for word, queue in QUEUE_WORDS.items() if queue == self.name)

    def said(self, now: datetime) -> str:
        """`paused by ada since 10:31:07 (3 min ago) until 12:00:00 (in 1 h 29 min) because: …`."""
        since = "" if self.since is None else f" since {moment(self.since, now)}"
        until = "" if self.until is None else f" until {moment(self.until, now)}"
        failures = f" after {count_of(self.failures, 'failure')}" if self.failures else ""
        return f"paused{self._by}{since}{until}{failures}{self._because}"

    @property
    def in_short(self) -> str:
        """The same without its times, for what is kept."""
        return f"paused{self._by}{self._because}"

    @property
    def _by(self) -> str:
        return "" if self.paused_by is None else f" by {self.paused_by}"

    @property
    def _because(self) -> str:
        return f" because: {self.reason.rstrip('.')}" if self.reason else ""


class Pauses:
    """What a process knows of the pauses by persons: while it works, a second old at most."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[tuple[Kind, str], tuple[Pause, float]] = {}
        self._looked_at = -inf
        self._looking = asyncio.Lock()

    async def look(self, *, older_than_s: float = LOOK_S) -> None:
        """
        Read them anew, where that was not done a short while ago.

        Raises:
            DatabaseUnavailable: No answer in time; what was known goes on to hold.
        """
        async with self._looking:
            asked_at = monotonic()
            if asked_at < self._looked_at + older_than_s:
                return
            rows = await self._database.fetch(_BY_HAND)
            known: dict[tuple[Kind, str], tuple[Pause, float]] = {}
            for row in rows:
                pause = _pause(row)
                ends = inf if row["left_s"] is None else asked_at + row["left_s"]
                known[pause.kind, pause.name] = pause, ends
            self._tell(known)
            self._known, self._looked_at = known, asked_at

    def of(self, kind: Kind, name: str) -> Pause | None:
        """The pause of a queue or a transport; None where there is none."""
        pause, ends = self._known.get((kind, name), (None, -inf))
        return pause if ends > monotonic() else None

    def of_queue(self, queue: str) -> Paused | None:
        """The same of a queue, as whoever works on it needs it."""
        if (held := self.of("queue", queue)) is None:
            return None
        return Paused(
            self.left_s("queue", queue), "released", f"{held.what} is {held.said(datetime.now(UTC))}"
        )

    def left_s(self, kind: Kind, name: str) -> float:
        """For how many seconds it is paused: 0 where it is not, infinity where only a person ends it."""
        _, ends = self._known.get((kind, name), (None, -inf))
        return max(ends - monotonic(), 0.0)

    def _tell(self, known: dict[tuple[Kind, str], tuple[Pause, float]]) -> None:
        for key, (pause, _) in known.items():
            before, _ = self._known.get(key, (None, 0.0))
            if before == pause:
                continue
            facts = {
                "by": pause.paused_by,
                "since": pause.since,
                "until": pause.until,
                "reason": pause.reason,
            }
            said = {name: str(fact) for name, fact in facts.items() if fact is not None}
            if pause.kind == "queue":
                _log.warning("queue.paused", queue=pause.name, **said)
            else:
                _log.warning("transport.paused", transport=pause.name, **said)
        for kind, name in self._known.keys() - known.keys():
            if kind == "queue":
                _log.info("queue.resumed", queue=name)
            else:
                _log.info("transport.resumed", transport=name)


async def read_pauses(database: Database) -> list[Pause]:
    """All that is paused: by persons, and transports that are down, as the workers last said."""
    rows = await database.fetch(
        f"""
        {_BY_HAND}
        UNION ALL
        SELECT
            'transport', transport.name, NULL, NULL, transport.paused_until, transport.reason,
            transport.failures, NULL
        FROM postroom.transports AS transport
        WHERE transport.paused_until > clock_timestamp()
        ORDER BY 1, 2, 3 NULLS LAST
        """  # noqa: S608 - a constant of ours
    )
    return [_pause(row) for row in rows]


async def pause(
    database: Database, kind: Kind, name: str, *, by: Actor, reason: str | None, for_s: float | None
) -> Pause:
    """
    Pause a queue or a transport, for all processes within 5 s, with an entry of the audit trail.

    What is in flight is finished and settled. A pause that is there already gets this person's name,
    reason and end.

    Args:
        for_s: It ends by itself after so many seconds; None: when somebody resumes it.
    """
    why = (reason or "").replace("\0", "").strip()[:REASON_CHARACTERS_MAX] or None
    async with database.transaction() as connection:
        await connection.execute(
            "SELECT postroom.pause($1, $2, $3, $4, $5)",
            kind,
            name,
            by.name,
            why,
            None if for_s is None else timedelta(seconds=for_s),
        )
        made = await _read_one(connection, kind, name)
        assert made is not None
        about = {kind: name} | ({} if made.until is None else {"until": made.until})
        await record(connection, by, "queue.pause" if kind == "queue" else "transport.pause", about, why)
    return made


async def resume(
    database: Database, kind: Kind, name: str, *, by: Actor, note: str | None = None
) -> Pause | None:
    """
    End the pause of a queue or a transport, with an entry of the audit trail.

    Returns:
        The pause that was; None where there was none.
    """
    async with database.transaction() as connection:
        before = await _read_one(connection, kind, name)
        if not await connection.fetchval("SELECT postroom.resume($1, $2)", kind, name):
            return None
        action: Action = "queue.resume" if kind == "queue" else "transport.resume"
        await record(connection, by, action, {kind: name}, note)
    return before


def find_transport(known: Sequence[str], said: str) -> str | None:
    """
    The transport that a person means: by its name, case and the user in it aside, or by how it alone begins.

    Returns:
        None where there is none, or several begin so.
    """
    wanted = re.sub(r"^((?:\w|\+)+://)[^/]*@", r"\1", said.strip().lower())
    exact = [name for name in known if name.lower() == wanted]
    begins = [name for name in known if wanted and name.lower().startswith(wanted)]
    return next((found[0] for found in (exact, begins) if len(found) == 1), None)


def no_way_out(pauses: Iterable[Pause], ways: Sequence[str]) -> bool:
    """
    Whether pauses keep all mail in the house.

    Args:
        pauses: By persons, of transports that are down, or both.
        ways: The names of the transports that there are.
    """
    paused = {pause.name for pause in pauses if pause.kind == "transport"}
    return bool(paused) and paused.issuperset(ways)


def seconds_of(span: str) -> float:
    """
    For how long a pause is to last.

    Raises:
        PauseRefused: It is no span, or none of 1 s to 366 d.
    """
    try:
        seconds = parse_span(span)
    except ValueError as error:
        raise PauseRefused(str(error)) from None
    if not FOR_S_MIN <= seconds <= FOR_S_MAX:
        raise PauseRefused(f"{span} is not allowed; write a span of 1s to 366d, such as 30m")
    return seconds


_BY_HAND = """
    SELECT
        held.kind, held.name, held.paused_by, held.since, held.until, held.reason, 0 AS failures,
        extract(EPOCH FROM held.until - clock_timestamp())::double precision AS left_s
    FROM postroom.pauses AS held
    WHERE COALESCE(held.until > clock_timestamp(), true)
"""


async def _read_one(connection: Connection, kind: Kind, name: str) -> Pause | None:
    row = await connection.fetchrow(f"{_BY_HAND} AND held.kind = $1 AND held.name = $2", kind, name)
    return None if row is None else _pause(row)


def _pause(row: Any) -> Pause:
    return Pause(**{name: value for name, value in dict(row).items() if name != "left_s"})
