"""From nothing to a connection that takes e-mail: DNS, TCP, TLS, EHLO, AUTH."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
from dataclasses import dataclass, field
from typing import Literal, cast
from urllib.parse import quote

import aiosmtplib
from aiohappyeyeballs import start_connection

from postroom.email.transports.said import printable
from postroom.email.transports.smtp.connection import SmtpConnection
from postroom.email.transports.smtp.reply import make_reply
from postroom.errors import TransportDown
from postroom.settings import SmtpTimeouts

Starttls = Literal["never", "optional", "required"]


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """
    A server and how to speak to it.

    Attributes:
        tls: Whether the connection is TLS from its first byte (smtps).
        starttls: Whether a plain connection becomes TLS. `optional` takes what is offered and
            checks no certificate: who could forge one could as well hide the offer.
        verify: Whether the server's certificate must be good; None for the default, which is
            yes where TLS is required.
        ca_file: Certificates to trust instead of the system's.
        helo: The name to say in EHLO; by default the host's, or the connection's own address.
        chunking: Whether CHUNKING is used where the server offers it.
    """

    host: str
    port: int
    tls: bool = False
    starttls: Starttls = "optional"
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    verify: bool | None = None
    ca_file: str | None = None
    helo: str | None = None
    chunking: bool = True
    timeouts: SmtpTimeouts = field(default_factory=SmtpTimeouts)

    @property
    def name(self) -> str:
        """Scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'smtps' if self.tls else 'smtp'}://{host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext:
        """
        What a certificate of the server must prove. Reads files.

        Raises:
            OSError: ca_file cannot be read, or holds no certificates.
        """
        context = ssl.create_default_context(cafile=self.ca_file)
        must_verify = self.tls or self.starttls == "required"
        if not (must_verify if self.verify is None else self.verify):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class TooManyConnections(TransportDown):
    """The server greets with 4xx, or ends the handshake with 421: it takes no further connection for now."""


async def connect(server: SmtpServer, context: ssl.SSLContext) -> SmtpConnection:
    """
    Open a connection and make it ready for e-mail.

    Raises:
        TransportDown: Whatever went wrong, since no e-mail was spoken of yet.
    """
    try:
        return await _connect(server, context)
    except (aiosmtplib.SMTPException, OSError, ValueError, RuntimeError, EOFError) as error:
        raise _down(server, error) from None


async def _connect(server: SmtpServer, context: ssl.SSLContext) -> SmtpConnection:
    ehlo_s = server.timeouts.ehlo_timeout_s
    sock = await _open_socket(server)
    client = aiosmtplib.SMTP(
        hostname=server.host,
        sock=sock,
        use_tls=server.tls,
        start_tls=False,
        tls_context=context,
        local_hostname=server.helo or _helo_name(sock),
        timeout=server.timeouts.greeting_timeout_s,
    )
    try:
        await client.connect()
        await _hello(client, ehlo_s)
        if not server.tls and server.starttls != "never":
            if client.supports_extension("starttls"):
                # aiosmtplib drops what came in plain behind the 220, and what EHLO had said.
                await client.starttls(timeout=ehlo_s)
                await _hello(client, ehlo_s)
            elif server.starttls == "required":
                raise aiosmtplib.SMTPException(
                    "it offers no STARTTLS; without it neither password nor e-mail is sent "
                    "(starttls=optional or never would allow that)"
                )
        if server.username is not None:
            await client.login(server.username, server.password or "", timeout=ehlo_s)
        stream = client.transport
        if stream is None or stream.is_closing():
            raise aiosmtplib.SMTPServerDisconnected("it closed the connection")
        extensions = dict(client.esmtp_extensions)
        if not server.chunking:
            extensions.pop("chunking", None)
        return SmtpConnection(cast(asyncio.Transport, stream), extensions, server.timeouts)
    except BaseException:
        if client.transport is not None:
            cast(asyncio.Transport, client.transport).abort()
        client.close()
        sock.close()
        raise


async def _open_socket(server: SmtpServer) -> socket.socket:
    try:
        async with asyncio.timeout(server.timeouts.connect_timeout_s):
            found = await asyncio.get_running_loop().getaddrinfo(
                server.host, server.port, type=socket.SOCK_STREAM
            )
            return await start_connection(found, happy_eyeballs_delay=0.25)
    except TimeoutError:
        raise OSError(f"no connection within {server.timeouts.connect_timeout_s:g} s") from None


async def _hello(client: aiosmtplib.SMTP, wait_s: float) -> None:
    try:
        await client.ehlo(timeout=wait_s)
    except aiosmtplib.SMTPHeloError as error:
        if error.code < 500:
            raise
        await client.helo(timeout=wait_s)


def _helo_name(sock: socket.socket) -> str:
    """The host's name where it is a whole one, else the address, as RFC 5321 (4.1.3) writes it."""
    name = socket.gethostname()
    if "." in name.strip(".") and name.isascii() and not any(character.isspace() for character in name):
        return name
    address = str(sock.getsockname()[0]).partition("%")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


_OF_AN_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""X509_V_ERR_… of OpenSSL: signed by itself, by an authority that signs itself, by one that is not here."""


_OF_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""What OpenSSL says of a greeting in plain; the second one from 3.2 on."""


def _down(server: SmtpServer, error: Exception) -> TransportDown:
    """One line that says what failed and never holds a secret, even where the server repeats it."""
    code = None
    advice = ""
    kind: type[TransportDown] = TransportDown
    if isinstance(error, aiosmtplib.SMTPResponseException):
        reply = make_reply(error.code, error.message) if 200 <= error.code < 600 else None
        text = f"the server says {reply}" if reply else f"the server says {error.message}"
        code = reply.code if reply else None
        if error.code == 421:
            kind = TooManyConnections
        elif isinstance(error, aiosmtplib.SMTPAuthenticationError):
            text = f"authentication refused: {text}"
            advice = "; check user and password in POSTROOM_TRANSPORT"
        elif isinstance(error, aiosmtplib.SMTPConnectResponseError) and 400 <= error.code < 500:
            kind = TooManyConnections
    elif isinstance(error, ssl.SSLCertVerificationError):
        text = f"its certificate is not trusted: {error.verify_message}"
        if error.verify_code in _OF_AN_UNKNOWN_AUTHORITY:
            advice = "; name the file of your own authority by ?ca=FILE in POSTROOM_TRANSPORT"
    elif isinstance(error, ssl.SSLError) and error.reason in _OF_NO_TLS and server.tls:
        text = "it does not begin with TLS"
        advice = "; write smtp:// in POSTROOM_TRANSPORT, which begins it by STARTTLS, as on port 587"
    elif isinstance(error, socket.gaierror):
        text = f"its name is not found: {error.strerror}"
    elif isinstance(error, aiosmtplib.SMTPException):
        cause = error.__cause__
        if isinstance(cause, ssl.SSLError):
            return _down(server, cause)
        text = str(error.message)
    elif isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        text = os.strerror(error.errno)
    else:
        text = str(error) or type(error).__name__
    return kind(f"{server.name}: {_without_secrets(server, printable(text))}{advice}", code=code)


def _without_secrets(server: SmtpServer, text: str) -> str:
    for secret in filter(None, (server.password, server.username)):
        plain = secret.encode("utf-8", "surrogateescape")
        login = (server.username or "").encode("utf-8", "surrogateescape")
        forms = [secret, quote(secret, safe=""), base64.b64encode(plain).decode()]
        forms.append(base64.b64encode(b"\0" + login + b"\0" + plain).decode())
        for form in forms:
            text = text.replace(form, "***")
    return text
