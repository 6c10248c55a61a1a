"""
Hands an event to a URL: the bytes and the headers as the provider sent them.

The handler gets an event at least once: an answer that was lost is asked for again, and `webhook-id`,
the row's id, is the same every time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from time import time
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from postroom.errors import PermanentFailure, TemporaryFailure
from postroom.retry_after import retry_after_s
from postroom.version import VERSION
from postroom.webhooks.event import Event
from postroom.webhooks.schemes.standard import StandardWebhooks
from postroom.webhooks.source import Handler

DEADLINE_S = 15.0
REPLY_BYTES_MAX = 1_024
REPLY_CHARACTERS_MAX = 200

_GONE = 410
_NOT_PASSED_ON = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"),
        *("trailer", "transfer-encoding", "upgrade", "host", "content-length", "expect"),
    }
)
_OURS = frozenset({"webhook-id", "webhook-timestamp"})
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class UrlRunner:
    """Posts events to the handlers' addresses."""

    def __init__(self, *, connections: int) -> None:
        self._connections = connections
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def post(self, handler: Handler, event: Event) -> str:
        """
        Post an event; 2xx is done.

        Returns:
            The status.

        Raises:
            PermanentFailure: 410: the handler wants it never again.
            TemporaryFailure: Anything else; a redirect too.
        """
        assert handler.url is not None
        try:
            async with self._session(handler.allow_private).post(
                _address(handler.url, event),
                data=event.body,
                headers=_headers(handler, event),
                skip_auto_headers=("Content-Type", "Accept", "Accept-Encoding"),
                allow_redirects=False,
            ) as response:
                said = await _said(response)
                if 200 <= response.status < 300:
                    return str(response.status)
                if response.status == _GONE:
                    raise PermanentFailure(said, code=response.status)
                wait_s = retry_after_s(response.headers.get("Retry-After"))
                raise TemporaryFailure(said, code=response.status, retry_after_s=wait_s)
        except TimeoutError:
            raise TemporaryFailure(f"no answer within {DEADLINE_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            refused = _refusal(error)
            raise TemporaryFailure(str(refused or error) or type(error).__name__) from None

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def _session(self, allow_private: bool) -> aiohttp.ClientSession:
        if allow_private not in self._sessions:
            self._sessions[allow_private] = aiohttp.ClientSession(
                # A connection that is kept may be closed just when it is used: that would cost an attempt.
                connector=aiohttp.TCPConnector(
                    limit=self._connections,
                    resolver=_Pinned(allow_private=allow_private),
                    use_dns_cache=False,
                    force_close=True,
                ),
                timeout=aiohttp.ClientTimeout(total=DEADLINE_S),
                headers={"User-Agent": f"postroom/{VERSION}"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._sessions[allow_private]


class PrivateAddress(OSError):
    """A public name leads to a private address."""


class _Pinned(AbstractResolver):
    """
    Looks a name up once, and connects to what was looked at: a name cannot turn into another address between.

    An address that is written out in postroom.toml is never looked up, and is allowed as it stands.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        addresses = [(kind, str(address[0])) for kind, _, _, _, address in found]
        if not self._allow_private and not is_local_name(host):
            for _, address in addresses:
                if is_private(address):
                    raise PrivateAddress(
                        f"{host} leads to {address}, which is private: write the address out in "
                        "postroom.toml, or set allow_private = true"
                    )
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, address in addresses
        ]

    async def close(self) -> None:
        return None


def is_local_name(host: str) -> bool:
    """Whether a name means this machine, whatever a name server says."""
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def is_private(address: str) -> bool:
    """Whether an address is not one of the public internet."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        if (inner := ip.ipv4_mapped or ip.sixtofour) is not None:
            ip = inner
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_multicast or not ip.is_global


def _address(url: str, event: Event) -> URL:
    """The handler's; where the event came by GET, with the fields that it came with."""
    fields = event.target.partition("?")[2] if event.method == "GET" else ""
    return URL(f"{url}{'&' if '?' in url else '?'}{fields}" if fields else url, encoded=True)


def _headers(handler: Handler, event: Event) -> CIMultiDict[str]:
    """The provider's headers as they came, and ours."""
    dropped = _NOT_PASSED_ON | _OURS | ({"webhook-signature"} if handler.secret else set())
    named = [name.strip().lower() for value in event.headers.all("connection") for name in value.split(",")]
    passed = CIMultiDict(
        (name, _as_aiohttp_writes(value))
        for name, value in event.headers
        if name.lower() not in dropped
        and name.lower() not in named
        and _TOKEN.fullmatch(name)
        and not _CONTROL.search(value)
    )
    webhook_id, at = str(event.id), str(int(time()))
    passed["webhook-id"] = webhook_id
    passed["webhook-timestamp"] = at
    if handler.secret is not None:
        message = b".".join((webhook_id.encode(), at.encode(), event.body))
        passed["webhook-signature"] = StandardWebhooks().signature(handler.secret, message)
    return passed


def _as_aiohttp_writes(value: str) -> str:
    """aiohttp writes UTF-8, and a header is kept as one character a byte."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


async def _said(response: aiohttp.ClientResponse) -> str:
    """The status, and the first line of what it says; no more is read than is needed."""
    content = b""
    try:
        while len(content) < REPLY_BYTES_MAX:
            more = await response.content.read(REPLY_BYTES_MAX - len(content))
            if not more:
                break
            content += more
    except (aiohttp.ClientError, OSError):  # a TimeoutError too: the status has come
        pass
    line = next(iter(content.decode("utf-8", "replace").strip().splitlines()), "")
    shown = "".join(character for character in line if character.isprintable())[:REPLY_CHARACTERS_MAX]
    return f"{response.status} {shown or response.reason or ''}".strip()


def _refusal(error: BaseException) -> PrivateAddress | None:
    """The refusal that aiohttp has wrapped."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, PrivateAddress):
            return found
        found = getattr(found, "os_error", None) or found.__cause__ or found.__context__
    return None
