"""
The errors of postroom, as a tree by what the caller does next.

The message of each names the value that was wrong and the next step. None of them
carries a secret or the body of a message.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum


class PostroomError(Exception):
    """Base of every error that postroom raises on purpose."""


class ConfigError(PostroomError):
    """A setting is missing or wrong: fix it and start again."""


class InvalidEmail(PostroomError):
    """
    An e-mail that can never be sent or stored: fix the field that is named.

    Args:
        field: The field of the call, such as `to` or `subject`.
        problem: What is wrong with it and what to do.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class SchemaError(PostroomError):
    """The database's schema does not fit this program: run `postroom migrate`."""


class DatabaseUnavailable(PostroomError):
    """No answer from the database in time: nothing is known to be recorded; repeat it."""


class NotStarted(PostroomError):
    """
    The attempt may not begin: its lease is lost, or a limit is reached. It counts in nothing.

    Args:
        reason: Why not, one line.
        waits_for: What the row waits for, such as `limit:email:global`, where it was put back.
        due_at: When it is due then, by the database's clock.
        held: Nobody has given the row back, as far as is known: whoever claimed it must.
    """

    def __init__(
        self,
        reason: str,
        *,
        waits_for: str | None = None,
        due_at: datetime | None = None,
        held: bool = False,
    ) -> None:
        super().__init__(reason)
        self.waits_for = waits_for
        self.due_at = due_at
        self.held = held


class SendError(PostroomError):
    """
    An attempt that failed; its subclass says what follows.

    Args:
        text: What the other side said, or what went wrong; one line, no body, no secret.
        code: The other side's status (SMTP reply code or HTTP status), where there was one.
        retry_after_s: Seconds that the other side asks to wait, where it does.
    """

    def __init__(self, text: str, *, code: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.retry_after_s = retry_after_s


class TemporaryFailure(SendError):
    """It may succeed later: try again by the schedule."""


class PermanentFailure(SendError):
    """It can never succeed: a dead letter now."""


class UncertainOutcome(SendError):
    """The other side may have taken it: the setting email.on_uncertain decides."""


class TransportDown(SendError):
    """The transport, not the e-mail, has failed: give the e-mail back, no attempt counted."""


class SignatureReason(StrEnum):
    """Why a webhook's signature does not hold."""

    HEADER_MISSING = "header_missing"
    HEADER_DOUBLED = "header_doubled"
    HEADER_MALFORMED = "header_malformed"
    BODY_MALFORMED = "body_malformed"
    TOO_OLD = "too_old"
    TOO_NEW = "too_new"
    MISMATCH = "mismatch"


class SignatureError(PostroomError):
    """
    A webhook whose signature does not hold: answer 4xx and store nothing.

    Args:
        reason: Which part of it, for programs.
        sentence: The same for people; no secret, and nothing of the body.
    """

    def __init__(self, reason: SignatureReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
