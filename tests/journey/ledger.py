"""The outside ledger: an SMTP server that notes down every mail that it took, when and with which bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage


@dataclass
class Delivered:
    """One mail as the receiver saw it; times are time.time()."""

    sender: str
    recipient: str
    content: bytes
    mail_from_at: float
    accepted_at: float

    @property
    def message(self) -> EmailMessage:
        """The mail, parsed as its reader would."""
        parsed = message_from_bytes(self.content, policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed


@dataclass
class Ledger:
    """What an SMTP server took; `port` is where it listens."""

    port: int = 0
    delivered: list[Delivered] = field(default_factory=list)
    reply_delay_s: float = 0.0
    size_bytes_max: int | None = None

    def by_message_id(self) -> dict[str, list[Delivered]]:
        """All copies of each mail."""
        found: dict[str, list[Delivered]] = defaultdict(list)
        for mail in list(self.delivered):
            header = mail.content.split(b"Message-ID:", 1)[1].split(b"\r\n", 1)[0]
            found[header.strip().decode()].append(mail)
        return found


@contextmanager
def running_ledger(*, reply_delay_s: float = 0.0, size_bytes_max: int | None = None) -> Iterator[Ledger]:
    """
    A small SMTP server in a thread of its own, which outlives every worker.

    Args:
        reply_delay_s: Between the final dot and its 250: the time in which a kill doubles a mail.
        size_bytes_max: What it announces that it takes (SIZE).
    """
    ledger = Ledger(reply_delay_s=reply_delay_s, size_bytes_max=size_bytes_max)
    started: Future[asyncio.AbstractEventLoop] = Future()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(lambda r, w: _session(ledger, r, w), "127.0.0.1", 0, limit=2**22)
        ledger.port = server.sockets[0].getsockname()[1]
        started.set_result(asyncio.get_running_loop())
        await stop.wait()
        server.close()

    # asyncio.run() ends the sessions of killed workers: left to the garbage, they fail some other test.
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    loop = started.result(10)
    try:
        yield ledger
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


async def _session(ledger: Ledger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await _converse(ledger, reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def _converse(ledger: Ledger, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    def say(line: str) -> None:
        writer.write(line.encode() + b"\r\n")

    say("220 ledger ESMTP")
    sender, recipient, mail_from_at = "", "", 0.0
    while line := await reader.readline():
        command = line.decode("utf-8", "replace").strip()
        verb = command.upper()
        if verb.startswith("EHLO"):
            say("250-ledger\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8")
            if ledger.size_bytes_max is not None:
                say(f"250-SIZE {ledger.size_bytes_max}")
            say("250 ENHANCEDSTATUSCODES")
        elif verb.startswith("MAIL FROM"):
            sender, mail_from_at = _address(command), time.time()
            say("250 2.1.0 Ok")
        elif verb.startswith("RCPT TO"):
            recipient = _address(command)
            say("250 2.1.5 Ok")
        elif verb == "DATA":
            say("354 go on")
            await writer.drain()
            raw = await reader.readuntil(b"\r\n.\r\n")
            content = raw[:-3].replace(b"\r\n..", b"\r\n.")
            ledger.delivered.append(Delivered(sender, recipient, content, mail_from_at, time.time()))
            if ledger.reply_delay_s:
                await asyncio.sleep(ledger.reply_delay_s)
            say("250 2.0.0 Ok: queued")
        elif verb == "QUIT":
            say("221 2.0.0 Bye")
            return
        else:
            say("250 2.0.0 Ok")


def _address(command: str) -> str:
    return command.split("<", 1)[1].split(">", 1)[0]
