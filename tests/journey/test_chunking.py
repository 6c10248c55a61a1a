"""CHUNKING with a Postfix: a real server says what the scripted one of the transport's own tests says."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from postroom.email.message import OutgoingEmail
from postroom.email.transports.smtp import SmtpServer, SmtpTransport
from postroom.errors import PermanentFailure
from tests.journey.ledger import running_ledger
from tests.journey.postfix import running_postfix
from tests.support.waiting import until

COUNT = 200


def email(number: int, to: str = "ada@example.com") -> OutgoingEmail:
    text = f"Mail {number}\n.\n..\nend" + "x" * number
    return OutgoingEmail(
        uuid4(), to, f"Mail {number}", f"<p>Mail {number}</p>", "shop@example.org", text=text
    )


async def started() -> None:
    """A start that is granted at once."""


async def test_postfix_takes_each_email_once_and_goes_on_behind_a_refusal() -> None:
    """Every tenth recipient is refused when the content is written already: the connection takes the next."""
    with running_ledger() as ledger, running_postfix(ledger.port) as port:
        transport = SmtpTransport(SmtpServer("127.0.0.1", port), connections=4)
        left = iter(range(COUNT))
        sent: set[UUID] = set()
        refused = 0

        async def sender() -> None:
            nonlocal refused
            for number in left:
                if number % 10:
                    ours = email(number)
                    assert "queued as" in await transport.send(ours, started)
                    sent.add(ours.id)
                    continue
                with pytest.raises(PermanentFailure, match=r"501 5\.1\.3"):
                    await transport.send(email(number, to="-ada@example.com"), started)
                refused += 1

        await asyncio.gather(*(sender() for _ in range(4)))
        connections = len(transport._pool._open)
        await transport.close()
        await until(lambda: len(ledger.delivered) >= len(sent))
        copies = ledger.by_message_id()
        assert set(copies) == {f"<{each}@example.org>" for each in sent}
        assert {len(each) for each in copies.values()} == {1}
        assert all(b"\r\n.\r\n..\r\nend" in each.content for each in ledger.delivered)
        assert (refused, connections) == (COUNT // 10, 4)
