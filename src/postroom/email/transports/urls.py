"""
POSTROOM_TRANSPORT: URLs, separated by spaces, as transports.

Errors name the transport by its place and say what is allowed; they never repeat the URL, which
holds a password or a key.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from postroom.email.transports.base import Transport
from postroom.email.transports.failover import Failover, OnChange
from postroom.email.transports.maildir import MaildirTransport
from postroom.email.transports.resend import ResendTransport
from postroom.email.transports.smtp import SmtpServer, SmtpTransport
from postroom.email.transports.smtp.handshake import Starttls
from postroom.errors import ConfigError
from postroom.settings import Settings, SmtpTimeouts

FORMS = (
    "smtp://user:pass@host:587, smtps://host:465, resend://KEY, resend+http://KEY@host:port or maildir:FOLDER"
)
CONNECTIONS_MAX = 1_000

_SMTP_OPTIONS = ("starttls", "verify", "ca", "helo", "connections", "chunking")
_RESEND_OPTIONS = ("connections",)


def from_urls(urls: Sequence[str], settings: Settings, *, on_change: OnChange | None = None) -> Failover:
    """
    Make the transports that POSTROOM_TRANSPORT names.

    Args:
        urls: One for each transport, as Settings.transport_urls has them, defaults filled in.
        settings: How long to wait for SMTP servers.
        on_change: Told when a transport pauses and when it is up again.

    Raises:
        ConfigError: A URL is wrong; the text says what is allowed and holds no secret.
    """
    if not urls:
        raise ConfigError(f"POSTROOM_TRANSPORT is empty; allowed are {FORMS}")
    transports = [
        _Url(place if len(urls) > 1 else 0, url).transport(settings.smtp) for place, url in enumerate(urls, 1)
    ]
    names = [transport.name for transport in transports]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"POSTROOM_TRANSPORT: {twice} is named twice; name each transport once")
    return Failover(transports, on_change=on_change)


def maildir_of(url: str) -> Path | None:
    """The folder of a maildir's URL; None of another transport's."""
    return _path(_folder(url)) if _scheme(url) == "maildir" else None


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower() if ":" in url else ""


def _folder(url: str) -> str:
    return unquote(url.partition(":")[2]).removeprefix("//")


def _path(folder: str) -> Path:
    return Path(folder).expanduser().absolute()


class _Url:
    """One of the URLs; `place` counts from 1, 0 where it is the only one."""

    def __init__(self, place: int, url: str) -> None:
        self._where = f"POSTROOM_TRANSPORT, transport {place}" if place else "POSTROOM_TRANSPORT"
        self._text = url
        self._scheme = _scheme(url)

    def transport(self, timeouts: SmtpTimeouts) -> Transport:
        match self._scheme:
            case "smtp" | "smtps":
                return self._smtp(timeouts)
            case "resend" | "resend+http" | "resend+https":
                return self._resend()
            case "maildir":
                return self._maildir()
            case _:
                raise self._wrong(f"begins with no known scheme; allowed are {FORMS}")

    def _smtp(self, timeouts: SmtpTimeouts) -> Transport:
        url = self._split()
        options = self._options(url, _SMTP_OPTIONS)
        implicit = self._scheme == "smtps"
        username = unquote(url.username) if url.username else None
        if url.password and not username:
            raise self._wrong("has a password without a user; write smtp://user:pass@host:587")
        starttls = options.get("starttls", "required" if username is not None else "optional")
        if starttls not in ("never", "optional", "required"):
            raise self._wrong("has a wrong starttls; allowed are never, optional, required")
        if implicit and "starttls" in options:
            raise self._wrong("has starttls with smtps, which is TLS from its first byte; leave it out")
        port = self._port(url)
        if port == 465 and not implicit and "starttls" not in options:
            # It would wait 5 minutes for a greeting that such a server says within TLS (RFC 8314, 7.3).
            raise self._wrong(
                "has port 465, where a server begins with TLS; write smtps://, or name starttls"
            )
        server = SmtpServer(
            host=self._host(url),
            port=port or (465 if implicit else 587 if username is not None else 25),
            tls=implicit,
            starttls=cast(Starttls, starttls),
            username=username,
            password=unquote(url.password) if url.password else None,
            verify=self._yes_or_no(options, "verify"),
            ca_file=options.get("ca"),
            helo=self._helo(options),
            chunking=self._yes_or_no(options, "chunking") is not False,
            timeouts=timeouts,
        )
        if server.ca_file is not None:
            self._check_ca(server)
        return SmtpTransport(server, connections=self._connections(options, default=50))

    def _resend(self) -> Transport:
        url = self._split()
        options = self._options(url, _RESEND_OPTIONS)
        connections = self._connections(options, default=20)
        if self._scheme == "resend":
            key = unquote(url.netloc)
            if not key or "@" in key or ":" in key or url.path.strip("/"):
                raise self._wrong("needs the key and nothing else; write resend://KEY")
            return ResendTransport(self._check_key(key), connections=connections)
        key = unquote(url.username or "")
        if not key or url.password:
            raise self._wrong(f"needs a key; write {self._scheme}://KEY@host:port")
        host, port = self._host(url), self._port(url)
        address = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        base_url = f"{self._scheme.removeprefix('resend+')}://{address}{url.path.rstrip('/')}"
        return ResendTransport(self._check_key(key), base_url=base_url, connections=connections)

    def _maildir(self) -> Transport:
        folder = _folder(self._text)
        if not folder or "\0" in folder or "?" in self._text:
            raise self._wrong("needs a folder and nothing else; write maildir:FOLDER (a space is %20)")
        return MaildirTransport(_path(folder))

    def _split(self) -> SplitResult:
        try:
            return urlsplit(self._text)
        except ValueError:
            raise self._wrong(f"is no URL; allowed are {FORMS}") from None

    def _host(self, url: SplitResult) -> str:
        if not url.hostname or any(not c.isprintable() or c in ' <>"@' for c in url.hostname):
            raise self._wrong("names no host; a @, / or : in a user or password is written %40, %2F, %3A")
        if self._scheme in ("smtp", "smtps") and (url.path.strip("/") or url.fragment):
            raise self._wrong(
                "has something behind its host; a /, # or ? in a password is written %2F, %23, %3F"
            )
        return url.hostname

    def _port(self, url: SplitResult) -> int | None:
        try:
            port = url.port
        except ValueError:
            raise self._wrong("has a wrong port; allowed are 1 to 65535") from None
        if port == 0:
            raise self._wrong("has a wrong port; allowed are 1 to 65535")
        return port

    def _options(self, url: SplitResult, allowed: tuple[str, ...]) -> dict[str, str]:
        pairs = parse_qsl(url.query, keep_blank_values=True)
        if any(name not in allowed for name, _ in pairs):
            # The unknown name is not shown: behind an unquoted ? it may be half a password.
            raise self._wrong(f"has an option that is not known; allowed are {', '.join(allowed)}")
        return dict(pairs)

    def _yes_or_no(self, options: Mapping[str, str], name: str) -> bool | None:
        if name not in options:
            return None
        if options[name].lower() not in ("yes", "no"):
            raise self._wrong(f"has a wrong {name}; allowed are yes, no")
        return options[name].lower() == "yes"

    def _connections(self, options: Mapping[str, str], default: int) -> int:
        value = options.get("connections", str(default))
        if not (value.isascii() and value.isdecimal() and 1 <= int(value[:9]) <= CONNECTIONS_MAX):
            raise self._wrong(f"has a wrong connections; allowed are 1 to {CONNECTIONS_MAX:,}")
        return int(value)

    def _helo(self, options: Mapping[str, str]) -> str | None:
        name = options.get("helo")
        if name is not None and (not name or not name.isascii() or not name.isprintable() or " " in name):
            raise self._wrong("has a wrong helo; allowed is a host name")
        return name

    def _check_key(self, key: str) -> str:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise self._wrong("has a key with characters that no key has")
        return key

    def _check_ca(self, server: SmtpServer) -> None:
        try:
            server.tls_context()
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or type(error).__name__
            raise self._wrong(f"names with ca a file that holds no certificates: {reason}") from None

    def _wrong(self, problem: str) -> ConfigError:
        return ConfigError(f"{self._where} {problem}")
