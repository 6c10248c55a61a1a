"""What does the SMTP transport alone come to, without queue and database, beside other clients?"""

from __future__ import annotations

import asyncio
import smtplib
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from statistics import median
from uuid import uuid4

import aiosmtplib
import uvloop

from bench import mails
from bench.report import Result, ratio, spread, versions
from bench.servers import Sink
from postroom.email.message import OutgoingEmail
from postroom.email.mime import render
from postroom.email.transports.smtp import SmtpServer, SmtpTransport

QUESTION = "mails a second that an SMTP client hands over, without queue and database"
CONNECTIONS = 10

Client = Callable[[int, list[OutgoingEmail], int], Coroutine[None, None, None]]
"""Sends these mails to a port of this machine, over so many connections."""


def run(*, count: int = 3_000, rounds: int = 3) -> Result:
    """
    Measure in turns.

    Args:
        count: Mails a round.
    """
    result = Result("smtp_client", QUESTION, ["", "mails/s", "ratio"])
    clients: dict[str, Client] = {"postroom": postroom, "aiosmtplib": plain_aiosmtplib, "smtplib": _smtplib}
    rates: dict[str, list[float]] = {name: [] for name in clients}
    with Sink.running() as sink:
        for _ in range(rounds):
            for name, client in clients.items():
                rates[name].append(rate(client, sink.port, sink, count, CONNECTIONS))
    slowest = min(median(values) for values in rates.values())
    for name, values in rates.items():
        result.rows.append([name, spread(values), ratio(median(values), slowest)])
        result.measured[name] = values
    result.settings |= {
        "mails": f"{count:,} of 2 KB of HTML and a plain part; {CONNECTIONS} connections, kept",
        "figures": f"median of {rounds} rounds in turns (lowest-highest)",
        "postroom": "renders each mail and asks for its start; CHUNKING: one write, one answer",
        "aiosmtplib, smtplib": "send ready-made bytes, a command at a time; on uvloop, in threads",
        "versions": versions("postroom", "aiosmtplib", "uvloop"),
    }
    return result


def rate(client: Client, port: int, sink: Sink, count: int, connections: int) -> float:
    """Mails a second that a client sends to a port, behind which the sink is."""
    emails = [_email(number) for number in range(count)]
    sink.reset()
    began = time.monotonic()
    uvloop.run(client(port, emails, connections))
    took_s = time.monotonic() - began
    arrived = sink.report()
    if arrived["subjects"] != count:
        raise RuntimeError(f"of {count} mails {arrived} have arrived")
    return count / took_s


async def postroom(port: int, emails: list[OutgoingEmail], connections: int) -> None:
    """Ours, as the queue uses it."""
    transport = SmtpTransport(SmtpServer("127.0.0.1", port), connections=connections)
    left = iter(emails)

    async def start() -> None:
        pass

    async def sender() -> None:
        for email in left:
            await transport.send(email, start)

    await asyncio.gather(*(sender() for _ in range(connections)))
    await transport.close()


async def plain_aiosmtplib(port: int, emails: list[OutgoingEmail], connections: int) -> None:
    """aiosmtplib with its connections kept."""
    left = iter(emails)
    ready = render(emails[0])

    async def sender() -> None:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as client:
            for email in left:
                await client.sendmail(ready.sender, [email.to_email], _with_subject(ready.content, email))

    await asyncio.gather(*(sender() for _ in range(connections)))


async def _smtplib(port: int, emails: list[OutgoingEmail], connections: int) -> None:
    ready = render(emails[0])

    def sender(share: list[OutgoingEmail]) -> None:
        with smtplib.SMTP("127.0.0.1", port, local_hostname="localhost") as client:
            for email in share:
                client.sendmail(ready.sender, [email.to_email], _with_subject(ready.content, email))

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(connections) as threads:
        shares = [emails[place::connections] for place in range(connections)]
        await asyncio.gather(*(loop.run_in_executor(threads, sender, share) for share in shares))


def _with_subject(content: bytes, email: OutgoingEmail) -> bytes:
    return content.replace(b"Subject: Order 0\r\n", f"Subject: {email.subject}\r\n".encode(), 1)


def _email(number: int) -> OutgoingEmail:
    return OutgoingEmail(
        id=uuid4(),
        to_email=mails.recipient(number, 1_000),
        subject=mails.subject(number),
        html=mails.html(number),
        from_email=mails.SENDER,
        created_at=datetime.now(UTC),
    )
