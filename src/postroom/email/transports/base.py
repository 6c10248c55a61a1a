"""What a transport is: the one way out of the house, in one method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from postroom.email.message import OutgoingEmail

Held = Callable[[], bool]
"""
Whether the e-mail is still surely ours: asked right before the last byte of it.

A process that stood still (a laptop's lid, a paused machine) wakes up where it was, and another worker may
have sent the e-mail meanwhile.
"""

Start = Callable[[], Awaitable[Held | None]]
"""
Makes the start of the attempt durable and takes its slots of the limits.

A transport awaits it once it is ready to hand the e-mail over (its connection stands), right
before the first command that names the e-mail (MAIL FROM, POST, the first write). The start is
good for 250 ms; calling it again takes it anew. It raises NotStarted where the attempt may not
begin: the transport lets that pass and keeps its connection.
"""


class Transport(Protocol):
    """
    Takes one e-mail out of the house.

    Attributes:
        name: Scheme, host and port, never a user or a key: for logs, rows and screens.
    """

    name: str

    async def send(self, email: OutgoingEmail, start: Start) -> str:
        """
        Hand one e-mail over; safe to call many times at once.

        Returns:
            What the other side said, one line, such as `250 2.0.0 Ok: queued as 4F2A`.

        Raises:
            TemporaryFailure, PermanentFailure, UncertainOutcome, TransportDown: How it failed.
            NotStarted: From `start`; nothing was handed over.
        """
        ...

    async def close(self) -> None:
        """Close what is open, within a few seconds, whatever state it is in."""
        ...
