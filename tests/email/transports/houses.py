"""Each transport with a real other side, as the conformance suite wants to see it."""

from __future__ import annotations

import asyncio
import mailbox
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parseaddr
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from postroom.email.transports import Failover, Transport
from postroom.email.transports.maildir import MaildirTransport
from postroom.email.transports.resend import ResendTransport
from postroom.email.transports.smtp import SmtpServer, SmtpTransport
from tests.email.transports.servers.certificates import Authority
from tests.email.transports.servers.resend_api import KEY, ResendApi, drop, error
from tests.email.transports.servers.resend_api import hang as hang_request
from tests.email.transports.servers.scripted_smtp import CLOSE, HANG, ScriptedSmtp

USER, PASSWORD = "courier", "p@ss:w/rd é"


@dataclass(frozen=True)
class Arrived:
    """What came out on the other side."""

    sender: str
    to: str
    subject: str
    text: str
    html: str
    message_id: str
    headers: dict[str, str]
    files: list[tuple[str, str, str | None, object]]


@dataclass
class House:
    """
    A transport and its other side.

    Attributes:
        arrived: What has come out so far.
        ready: Whether the transport can hand over without further delay: its connection stands.
        begun: How many e-mails the other side has heard of.
        faults: By the name of the outcome: make the next e-mail end like that.
        hold: Make the next e-mail wait for ever in the middle, where that can be.
    """

    transport: Transport
    arrived: Callable[[], list[Arrived]]
    ready: Callable[[], bool]
    begun: Callable[[], int]
    faults: dict[str, Callable[[], None]] = field(default_factory=dict)
    hold: Callable[[], None] | None = None


OpenHouse = Callable[[Authority, Path], AbstractAsyncContextManager[House]]


def arrived_bytes(content: bytes) -> Arrived:
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)

    def part(subtype: str) -> str:
        found = message.get_body((subtype,))
        return "" if found is None else str(found.get_content()).replace("\r\n", "\n").removesuffix("\n")

    def files() -> Iterator[tuple[str, str, str | None, object]]:
        for each in message.walk():
            if each.get_content_disposition() is not None:
                content_id = each["Content-ID"]
                yield (
                    str(each.get_filename()),
                    each.get_content_type(),
                    str(content_id).strip("<>") if content_id else None,
                    each.get_payload(decode=True),
                )

    return Arrived(
        sender=str(message["From"]),
        to=parseaddr(str(message["To"]))[1],
        subject=str(message["Subject"]),
        text=part("plain"),
        html=part("html"),
        message_id=str(message["Message-ID"]),
        headers={name: str(value) for name, value in message.items() if name.startswith(("X-", "List-"))},
        files=sorted(files()),
    )


@asynccontextmanager
async def _scripted(extensions: list[str]) -> AsyncIterator[tuple[ScriptedSmtp, SmtpServer]]:
    server = ScriptedSmtp(extensions=extensions)
    await server.open()
    try:
        yield server, SmtpServer("127.0.0.1", server.port)
    finally:
        await server.close()


def _smtp_house(server: ScriptedSmtp, transport: Transport) -> House:
    return House(
        transport=transport,
        arrived=lambda: [arrived_bytes(mail) for mail in server.mails],
        ready=lambda: server.open_now > 0,
        begun=lambda: server.commands.count("MAIL"),
        faults={
            "temporary": lambda: server.on("RCPT", "450 4.2.0 greylisted"),
            "permanent": lambda: server.on("RCPT", "550 5.1.1 no such user"),
            "down": lambda: server.on("MAIL", "530 5.7.0 authenticate first"),
            "uncertain": lambda: server.on("CONTENT", CLOSE),
        },
        hold=lambda: server.on("CONTENT", HANG),
    )


@asynccontextmanager
async def smtp_at_once(_authority: Authority, _folder: Path) -> AsyncIterator[House]:
    async with _scripted(["PIPELINING", "CHUNKING", "SIZE 10000000"]) as (server, where):
        yield _smtp_house(server, SmtpTransport(where, connections=4))


@asynccontextmanager
async def smtp_pipelined(_authority: Authority, _folder: Path) -> AsyncIterator[House]:
    async with _scripted(["PIPELINING", "SIZE 10000000"]) as (server, where):
        yield _smtp_house(server, SmtpTransport(where, connections=4))


@asynccontextmanager
async def smtp_step_by_step(_authority: Authority, _folder: Path) -> AsyncIterator[House]:
    async with _scripted([]) as (server, where):
        yield _smtp_house(server, SmtpTransport(where, connections=4))


@asynccontextmanager
async def failover(_authority: Authority, _folder: Path) -> AsyncIterator[House]:
    """The first transport is down for good: the second one does the work, and nobody notices."""
    async with _scripted(["PIPELINING"]) as (server, where):
        nobody = SmtpTransport(SmtpServer("127.0.0.1", 1))
        house = _smtp_house(server, Failover([nobody, SmtpTransport(where, connections=4)]))
        del house.faults["down"]  # the failover's own tests say what becomes of it
        yield house


class _Inbox:
    """What a handler of aiosmtpd is: it keeps the contents, and refuses as it is told."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.begun = 0
        self.refusals: list[str] = []
        self.hold_next = False
        self.held: Envelope | None = None

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.begun += 1
        if self.hold_next:  # this one, also where it never comes to its content
            self.hold_next, self.held = False, envelope
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.held is envelope:
            await asyncio.Event().wait()
        if self.refusals:
            return self.refusals.pop(0)
        assert isinstance(envelope.original_content, bytes)
        self.contents.append(envelope.original_content)
        return "250 2.0.0 taken"


def _authenticate(
    _server: SMTP, _session: Session, _envelope: Envelope, mechanism: str, data: Any
) -> AuthResult:
    good = (
        isinstance(data, LoginPassword) and data.login == USER.encode() and data.password == PASSWORD.encode()
    )
    return AuthResult(success=good)


@asynccontextmanager
async def _aiosmtpd(authority: Authority, *, implicit: bool) -> AsyncIterator[House]:
    inbox = _Inbox()
    context = authority.server_context()
    open_now: set[SMTP] = set()

    class Counted(SMTP):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            open_now.add(self)
            super().connection_made(transport)

    def protocol() -> SMTP:
        return Counted(
            inbox,
            tls_context=None if implicit else context,
            require_starttls=not implicit,
            auth_require_tls=not implicit,
            authenticator=_authenticate,
            auth_required=True,
            enable_SMTPUTF8=True,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=context if implicit else None)
    port = server.sockets[0].getsockname()[1]
    where = SmtpServer(
        "127.0.0.1",
        port,
        tls=implicit,
        starttls="required",
        username=USER,
        password=PASSWORD,
        ca_file=str(authority.ca_file),
    )

    def hold() -> None:
        inbox.hold_next = True

    try:
        yield House(
            transport=SmtpTransport(where, connections=4),
            arrived=lambda: [arrived_bytes(content) for content in inbox.contents],
            ready=lambda: bool(open_now),
            begun=lambda: inbox.begun,
            faults={
                "temporary": lambda: inbox.refusals.append("451 4.3.0 later"),
                "permanent": lambda: inbox.refusals.append("554 5.6.0 never"),
            },
            hold=hold,
        )
    finally:
        server.close()
        for session in open_now:
            if session.transport is not None:
                session.transport.close()


def smtp_starttls_auth(authority: Authority, _folder: Path) -> AbstractAsyncContextManager[House]:
    return _aiosmtpd(authority, implicit=False)


def smtps_auth(authority: Authority, _folder: Path) -> AbstractAsyncContextManager[House]:
    return _aiosmtpd(authority, implicit=True)


@asynccontextmanager
async def resend(_authority: Authority, _folder: Path) -> AsyncIterator[House]:
    server = ResendApi()
    await server.open()

    def arrived(body: dict[str, Any]) -> Arrived:
        return Arrived(
            sender=body["from"],
            to=body["to"][0],
            subject=body["subject"],
            text=body["text"],
            html=body["html"],
            message_id=body["headers"]["Message-ID"],
            headers={name: value for name, value in body["headers"].items() if name != "Message-ID"},
            files=sorted(
                (
                    file["filename"],
                    file["content_type"],
                    file.get("content_id"),
                    b64decode(file["content"], validate=True),
                )
                for file in body.get("attachments", ())
            ),
        )

    try:
        yield House(
            transport=ResendTransport(KEY, base_url=f"http://127.0.0.1:{server.port}"),
            arrived=lambda: [arrived(body) for body in server.sent],
            ready=lambda: server.open_now > 0,
            begun=lambda: len(server.requests),
            faults={
                "temporary": lambda: server.faults.append(error(500, "internal_server_error")),
                "permanent": lambda: server.faults.append(error(422, "missing_required_field")),
                "down": lambda: server.faults.append(error(401, "missing_api_key")),
                "uncertain": lambda: server.faults.extend([drop, drop]),
            },
            hold=lambda: server.faults.append(hang_request),
        )
    finally:
        await server.close()


@asynccontextmanager
async def maildir(_authority: Authority, folder: Path) -> AsyncIterator[House]:
    def contents() -> list[bytes]:
        return [message.as_bytes() for message in mailbox.Maildir(folder, create=False)]

    def down() -> None:
        (folder / "tmp").rmdir()
        (folder / "tmp").write_text("in the way")

    yield House(
        transport=MaildirTransport(folder),
        arrived=lambda: [arrived_bytes(content) for content in contents()],
        ready=lambda: (folder / "new").is_dir(),
        begun=lambda: sum(len(list((folder / each).iterdir())) for each in ("tmp", "new")),
        faults={"down": down},
    )


HOUSES: dict[str, OpenHouse] = {
    "smtp-at-once": smtp_at_once,
    "smtp-pipelined": smtp_pipelined,
    "smtp-step-by-step": smtp_step_by_step,
    "smtp-starttls-auth": smtp_starttls_auth,
    "smtps-auth": smtps_auth,
    "resend": resend,
    "maildir": maildir,
    "failover": failover,
}
