"""What became of an attempt: its verdict, and the one place where an error becomes one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from postroom.errors import (
    PermanentFailure,
    SendError,
    TemporaryFailure,
    TransportDown,
    UncertainOutcome,
)


class Verdict(StrEnum):
    """How an attempt ended. The values are those of postroom.settle_emails() in SQL."""

    DONE = "done"
    TEMPORARY = "temporary"
    PERMANENT = "permanent"
    UNCERTAIN = "uncertain"
    TRANSPORT_DOWN = "transport_down"
    UNHANDLED = "unhandled"  # of webhooks: done, since nobody wants the event


@dataclass(slots=True)
class Outcome:
    """
    The end of one attempt.

    Attributes:
        verdict: What follows from it.
        reply: What the other side said, or what went wrong; one line.
        code: The other side's status, where there was one.
        retry_after_s: Seconds that the other side asks to wait, where it does.
    """

    verdict: Verdict
    reply: str
    code: int | None = None
    retry_after_s: float | None = None


_VERDICTS: tuple[tuple[type[SendError], Verdict], ...] = (
    (TemporaryFailure, Verdict.TEMPORARY),
    (PermanentFailure, Verdict.PERMANENT),
    (UncertainOutcome, Verdict.UNCERTAIN),
    (TransportDown, Verdict.TRANSPORT_DOWN),
)


def outcome_of(error: BaseException, *, started: bool) -> Outcome:
    """
    Turn the error that ended an attempt into its outcome.

    Args:
        error: What the attempt raised.
        started: Whether the message may have been handed over when it was raised. An error
            that is not a SendError is uncertain then, and temporary before.
    """
    for kind, verdict in _VERDICTS:
        if isinstance(error, kind):
            return Outcome(verdict, error.text, error.code, error.retry_after_s)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Outcome(Verdict.UNCERTAIN if started else Verdict.TEMPORARY, text.replace("\n", " "))
