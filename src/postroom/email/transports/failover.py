"""
Several transports in order, and the pauses of those that are down.

A transport that is down is left alone for 1 s, then twice as long each time, at most 60 s, or for
as long as the other side asks; while it is, the next one is tried. One that a person has paused is left alone
in the same way until that ends. Nothing follows an outcome that speaks of the e-mail, and above all not an
uncertain one: the e-mail would go out twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from postroom.email.message import OutgoingEmail
from postroom.email.transports.base import Held, Start, Transport
from postroom.email.transports.said import without_body
from postroom.errors import NotStarted, SendError, TransportDown

PAUSE_S_MIN = 1.0
PAUSE_S_MAX = 60.0

OnChange = Callable[[str, float | None, str | None, int], None]
"""Called with the name, seconds, reason and number of failures of a pause; seconds None: it is up again."""

OnRoute = Callable[[str], None]

PausedByHand = Callable[[str], "Pause | None"]
"""The pause of a transport, by its name, that a person has asked for."""


@dataclass(frozen=True, slots=True)
class Pause:
    """
    A transport that was down and has not proved to be up since, or that a person has paused.

    Attributes:
        name: The transport's name.
        until: When it may be tried again, by time.monotonic(); infinity where a person ends it.
        reason: What it said, one line; or by whom it is paused, and why.
        failures: How many times in a row it was down.
        by_hand: A person has paused it.
    """

    name: str
    until: float
    reason: str
    failures: int
    by_hand: bool = False

    @property
    def said(self) -> str:
        """`paused: connection refused`, `paused by ada because: …`."""
        return self.reason if self.by_hand else f"paused: {self.reason}"

    @property
    def left_s(self) -> float:
        """Seconds until it may be tried again; 0.0 where it may be."""
        return max(0.0, self.until - monotonic())


class Failover:
    """
    Transports in their order, as one.

    Args:
        transports: At least one.
        on_change: Told when a transport pauses and when it is up again; must not raise.

    Attributes:
        held: Says what a person has paused.
    """

    def __init__(self, transports: Sequence[Transport], *, on_change: OnChange | None = None) -> None:
        if not transports:
            raise ValueError("a Failover needs a transport")
        self.name = ", ".join(transport.name for transport in transports)
        self.on_change = on_change
        self.held: PausedByHand = _held_by_nobody
        self.transports = tuple(transports)
        self._pauses: dict[Transport, Pause] = {}
        self._paused_at: dict[Transport, float] = {}

    async def send(self, email: OutgoingEmail, start: Start, on_route: OnRoute | None = None) -> str:
        """
        Hand one e-mail over to the first transport that is not down.

        Args:
            on_route: Told each transport's name before it is tried: a transport may have a limit of its own.

        Raises:
            TransportDown: All are; retry_after_s says when the first may be tried again.
            TemporaryFailure, PermanentFailure, UncertainOutcome, NotStarted: As the transport says.
        """
        for transport in self.transports:
            pause = self._pause_of(transport)
            if pause is not None and pause.left_s > 0:
                continue
            began = monotonic()
            if on_route is not None:
                on_route(transport.name)
            try:
                reply = await transport.send(email, self._unless_paused(transport, start))
            except _PausedMeanwhile:
                continue
            except SendError as error:
                error.text = without_body(error.text, email)
                error.args = (error.text,)
                if not isinstance(error, TransportDown):
                    raise
                self._pause(transport, error, began)
            else:
                self._resume(transport, began)
                return without_body(reply, email)
        raise self._all_down()

    @property
    def names(self) -> list[str]:
        """The transports' names, in their order."""
        return [transport.name for transport in self.transports]

    async def close(self) -> None:
        """Close all transports, each whatever becomes of the others."""
        await asyncio.gather(*(transport.close() for transport in self.transports), return_exceptions=True)

    def paused_for_s(self) -> float | None:
        """Seconds until a transport may be tried; None where one may be now."""
        pauses = [self._pause_of(each) for each in self.transports]
        return min(0.0 if pause is None else pause.left_s for pause in pauses) or None

    def pauses(self) -> list[Pause]:
        """The transports that are paused, or were down and have not proved to be up since, in their order."""
        pauses = [self._pause_of(each) for each in self.transports]
        return [pause for pause in pauses if pause is not None]

    def _unless_paused(self, transport: Transport, start: Start) -> Start:
        """What waits for a connection has not begun, and may wait for minutes: a person can stop it."""

        async def begin() -> Held | None:
            held = self.held(transport.name)
            if held is not None and held.left_s > 0:
                raise _PausedMeanwhile(f"{transport.name} is {held.said}", held=True)
            return await start()

        return begin

    def _pause_of(self, transport: Transport) -> Pause | None:
        """By a person's word first; it says nothing of whether the transport is up."""
        held, down = self.held(transport.name), self._pauses.get(transport)
        if held is not None and (down is None or held.left_s >= down.left_s):
            return held
        return down

    def _pause(self, transport: Transport, error: TransportDown, began: float) -> None:
        before = self._pauses.get(transport)
        if before is not None and began < self._paused_at[transport]:
            # One of many that were under way when it went down: the same failure, not the next.
            if error.retry_after_s is None or monotonic() + error.retry_after_s <= before.until:
                return
            failures = before.failures
        else:
            failures = before.failures + 1 if before is not None else 1
        pause_s = min(PAUSE_S_MIN * 2.0 ** min(failures - 1, 30), PAUSE_S_MAX)
        if error.retry_after_s is not None:
            pause_s = max(error.retry_after_s, PAUSE_S_MIN)
        now = monotonic()
        self._pauses[transport] = Pause(transport.name, now + pause_s, error.text, failures)
        self._paused_at[transport] = now
        self._tell(transport.name, pause_s, error.text, failures)

    def _resume(self, transport: Transport, began: float) -> None:
        # A success that began before the failure proves nothing about the time after it.
        if transport in self._pauses and began >= self._paused_at[transport]:
            del self._pauses[transport]
            del self._paused_at[transport]
            self._tell(transport.name, None, None, 0)

    def _tell(self, name: str, pause_s: float | None, reason: str | None, failures: int) -> None:
        if self.on_change is None:
            return
        try:
            self.on_change(name, pause_s, reason, failures)
        except Exception as error:
            # The e-mail is out, or another transport is next: neither may fail by who listens.
            context = {"message": f"on_change of {name} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def _all_down(self) -> TransportDown:
        pauses = self.pauses()
        reasons = [f"{pause.name} is {pause.reason}" if pause.by_hand else pause.reason for pause in pauses]
        left_s = min((pause.left_s for pause in pauses), default=PAUSE_S_MIN)
        return TransportDown("; ".join(reasons), retry_after_s=min(left_s, PAUSE_S_MAX))


class _PausedMeanwhile(NotStarted):
    """A person has paused the transport while the e-mail waited for its turn there."""


def _held_by_nobody(_: str) -> Pause | None:
    return None
