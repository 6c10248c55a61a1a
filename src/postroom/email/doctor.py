"""Checks of e-mail's way out: whether each transport can be reached, and who sends."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from postroom.email.message import OutgoingEmail
from postroom.email.transports import from_urls
from postroom.email.transports.base import Transport
from postroom.errors import ConfigError, NotStarted, SendError
from postroom.finding import Finding, ok, problem, warning
from postroom.settings import Settings

REACH_S = 15.0
"""How long a transport may take to be ready for an e-mail."""


async def check_transports(settings: Settings) -> list[Finding]:
    """Connect to each transport as if to send, as far as TLS and the password, and send nothing."""
    try:
        failover = from_urls(settings.transport_urls, settings)
    except ConfigError as error:
        return [problem("transport", str(error), "correct POSTROOM_TRANSPORT")]
    try:
        found = list(
            await asyncio.gather(*(_reach(transport, settings) for transport in failover.transports))
        )
    finally:
        await failover.close()
    goes_out = not all(transport.name.startswith("maildir:") for transport in failover.transports)
    if settings.sender is None and goes_out:
        found.append(
            warning(
                "sender",
                "POSTROOM_FROM is not set: an e-mail that names no sender becomes a dead letter",
                "set POSTROOM_FROM, such as `Shop <orders@example.com>`",
            )
        )
    elif not goes_out:
        found.append(
            warning(
                "transport",
                "all e-mail is filed in a folder of this machine, none goes out",
                "set POSTROOM_TRANSPORT, such as smtp://user:password@smtp.example.com:587",
            )
        )
    return found


async def _reach(transport: Transport, settings: Settings) -> Finding:
    """A transport awaits the start when all is ready for the e-mail: there we stop."""
    ready = False

    async def start() -> None:
        nonlocal ready
        ready = True
        raise NotStarted("a check only")

    sender = settings.sender or "postroom@example.com"
    email = OutgoingEmail(uuid4(), "postroom@example.com", "A check", "<p>A check</p>", sender)
    try:
        async with asyncio.timeout(REACH_S):
            await transport.send(email, start)
    except NotStarted:
        pass
    except TimeoutError:
        return problem("transport", f"{transport.name} is not ready after {REACH_S:g} s", _ADVICE)
    except SendError as error:
        return problem("transport", error.text, _ADVICE)
    assert ready, "a transport must await the start before it hands over"
    return ok("transport", f"{transport.name} is ready")


_ADVICE = "see POSTROOM_TRANSPORT, the network and the provider's status"
