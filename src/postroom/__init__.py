"""
Reliable e-mail out of PostgreSQL, and webhooks into it.

    from postroom import Room

    room = Room()
    id = await room.send(to="ada@example.com", subject="Your order", html="<p>Thank you</p>")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from postroom.errors import (
    ConfigError,
    DatabaseUnavailable,
    InvalidEmail,
    PermanentFailure,
    PostroomError,
    SchemaError,
    SendError,
    TemporaryFailure,
    TransportDown,
    UncertainOutcome,
)

if TYPE_CHECKING:
    from postroom.email.attachments import Attachment
    from postroom.email.enqueue import Email
    from postroom.room import Room
    from postroom.webhooks.event import Event

__all__ = [
    "Attachment",
    "ConfigError",
    "DatabaseUnavailable",
    "Email",
    "Event",
    "InvalidEmail",
    "PermanentFailure",
    "PostroomError",
    "Room",
    "SchemaError",
    "SendError",
    "TemporaryFailure",
    "TransportDown",
    "UncertainOutcome",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name):
        """Import the large ones when they are first asked for: `import postroom` costs nothing."""
        if name == "Room":
            from postroom.room import Room

            return Room
        if name == "Attachment":
            from postroom.email.attachments import Attachment

            return Attachment
        if name == "Email":
            from postroom.email.enqueue import Email

            return Email
        if name == "Event":
            from postroom.webhooks.event import Event

            return Event
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
