"""Real SMTP servers on loopback, each with the address that POSTROOM_TRANSPORT wants and what it took."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.email.transports.servers.certificates import Authority
from tests.journey.ledger import Delivered, running_ledger
from tests.journey.postfix import running_postfix

USER, PASSWORD = "courier", "p@ss:w/rd é"


@dataclass
class Relay:
    """
    A server.

    Attributes:
        url: For POSTROOM_TRANSPORT.
        delivered: What has come out at its far end so far.
    """

    url: str
    delivered: list[Delivered]


OpenRelay = Callable[[Path], AbstractContextManager[Relay]]


@contextmanager
def postfix(_folder: Path) -> Iterator[Relay]:
    """A Postfix that takes mail from anybody on loopback and hands it on to a ledger."""
    with running_ledger() as ledger, running_postfix(ledger.port) as port:
        yield Relay(f"smtp://127.0.0.1:{port}", ledger.delivered)


@contextmanager
def aiosmtpd(folder: Path) -> Iterator[Relay]:
    """aiosmtpd in a thread of its own, which takes nothing without STARTTLS and a password."""
    authority = Authority(folder)
    delivered: list[Delivered] = []
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        loop.create_server(
            lambda: SMTP(
                _Inbox(delivered),
                loop=loop,
                tls_context=authority.server_context(),
                require_starttls=True,
                authenticator=_authenticate,
                auth_required=True,
                enable_SMTPUTF8=True,
            ),
            "127.0.0.1",
            0,
        )
    )
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        login = f"{USER}:{quote(PASSWORD, safe='')}"
        yield Relay(f"smtp://{login}@127.0.0.1:{port}?ca={quote(str(authority.ca_file))}", delivered)
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


class _Inbox:
    """What aiosmtpd hands each mail to."""

    def __init__(self, delivered: list[Delivered]) -> None:
        self._delivered = delivered

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        now = time.time()
        for recipient in envelope.rcpt_tos:
            content = envelope.original_content
            assert isinstance(content, bytes)
            self._delivered.append(Delivered(envelope.mail_from or "", recipient, content, now, now))
        return "250 2.0.0 taken"


def _authenticate(
    _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any
) -> AuthResult:
    good = isinstance(data, LoginPassword)
    good = good and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=good)
