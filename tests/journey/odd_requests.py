"""Requests that no provider sends, or almost: a seeded source of them, as bytes for a socket."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.webhooks.samples import SIGNED_SCHEMES, Sample, sample

PUBLIC_URL = "https://hooks.example.com"
LARGE_BYTES = (100_000, 12 * 1024 * 1024)
ALPHABETS = (b"0123456789abcdef", b"ABCDEFGHijklmnop0123456789+/=", bytes(range(256)), b"t=v1,;. \t")
PATHS = ("/", "/webhooks/", "/webhooks/nobody", "/functions/v1/stripe-webhook", "/functions/v1/send-email")
METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "BREW", "post")
TEXTS = ("\0", "\ud800", "Zoë", "v0:", "1700000000", "url_verification", "endpoint.url_validation", "x" * 300)
FIELDS = ("id", "type", "event", "payload", "challenge", "signature", "timestamp", "token", "data", "events")
BODIES = (
    b"",
    b"null",
    b"[" * 50_000,
    b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    b'{"id":"big","n":1e200000}',
    b"a=b&" * 2_000,
    b"a=%ed%a0%80&timestamp=%00&token=%ff&signature=1",
    b'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\n1\r\n--x--\r\n',
)
BROKEN = (
    b"\r\n\r\n\r\n",
    b"GET\r\n\r\n",
    b"POST /webhooks/stripe HTTP/9.9\r\n\r\n",
    b"POST /webhooks/stripe HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /webhooks/stripe HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST /webhooks/stripe HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    b"POST /webhooks/stripe HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"POST http://[::1 HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


@dataclass(frozen=True)
class OddRequest:
    """
    What goes over a connection.

    Attributes:
        last: The connection cannot be used again.
        patience_s: How long an answer is waited for; None where there must be one.
    """

    data: bytes = field(repr=False)
    method: str = "POST"
    last: bool = False
    patience_s: float | None = None


class OddRequests:
    """
    Requests of many kinds, and the sources that they are for.

    Args:
        seed: The same one makes the same requests, but for the secrets and the time.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._samples = [sample(name) for name in SIGNED_SCHEMES]
        self._kinds: dict[Callable[[], OddRequest], int] = {
            self._noise: 30,
            self._spoilt: 30,
            self._signed: 20,
            self._elsewhere: 10,
            self._broken: 5,
            self._cut_off: 5,
        }

    def write_settings(self, folder: Path) -> None:
        """A postroom.toml with a source of each scheme."""
        lines = ["[webhooks.none]", 'scheme = "none"']
        for one in self._samples:
            name = one.scheme.name
            lines += [f"[webhooks.{name}]", f'scheme = "{name}"', f"secrets = [{json.dumps(one.verifies)}]"]
            lines += ['header = "X-Acme"'] if name == "hmac" else []
            lines += ['verify_token = "t"'] if one.scheme.takes_verify_token else []
        (folder / "postroom.toml").write_text("\n".join(lines))

    def small(self) -> OddRequest:
        """One of any kind but the large."""
        (kind,) = self._random.choices(list(self._kinds), list(self._kinds.values()))
        return kind()

    def large(self) -> OddRequest:
        """A body of megabytes: some hold, some do not, some are too long; some come in pieces."""
        one = self._random.choice(self._samples)
        method, path, headers, body = self._good(one, None)
        body += b" " * self._random.randint(*LARGE_BYTES)
        if self._random.random() < 0.5:
            return OddRequest(self._as_bytes(method, path, headers, body).data, last=True)
        pieces = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]
        chunked = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        return OddRequest(
            _head(method, path, [*headers, ("Transfer-Encoding", b"chunked")]) + chunked, last=True
        )

    def _noise(self) -> OddRequest:
        """Headers that a scheme looks for, and anything in them."""
        one = self._random.choice(self._samples)
        names = [
            *one.scheme.signature_headers,
            "webhook-id",
            "X-Request-Timestamp",
            "Content-Type",
            "X-" * 20,
        ]
        headers = [(self._random.choice(names), self._bytes(200)) for _ in range(self._random.randrange(8))]
        return self._as_bytes("POST", f"/webhooks/{one.scheme.name}", headers, self._body())

    def _spoilt(self) -> OddRequest:
        """A good request with one thing changed."""
        one = self._random.choice(self._samples)
        method, path, headers, body = self._good(one, None)
        place = self._random.randrange(len(headers))
        name, value = headers[place]
        at = self._random.randrange(len(value) + 1)
        match self._random.randrange(6):
            case 0:
                headers[place] = (name, value[:at])
            case 1:
                headers[place] = (name, value[:at] + self._bytes(5) + value[at:])
            case 2:
                headers.append((name, self._bytes(100)))
            case 3:
                del headers[place]
            case 4:
                body = self._body()
            case _:
                path += "?" + self._bytes(30).hex()
        return self._as_bytes(method, path, headers, body)

    def _signed(self) -> OddRequest:
        """A request that holds, whatever is in it."""
        one = self._random.choice(self._samples)
        content = json.dumps(self._json(3)).encode()
        return self._as_bytes(*self._good(one, self._random.choice([None, content, *BODIES])))

    def _elsewhere(self) -> OddRequest:
        """Other methods, other paths."""
        path = self._random.choice([*PATHS, f"/webhooks/{self._bytes(20).hex()}", "/" + "a" * 3_000])
        headers = [("Authorization", b"Bearer " + self._bytes(300))] if self._random.random() < 0.5 else []
        return self._as_bytes(self._random.choice((*METHODS, "POST")), path, headers, self._body())

    def _broken(self) -> OddRequest:
        """No HTTP."""
        huge = b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"
        return OddRequest(
            self._random.choice((*BROKEN, huge, self._bytes(500) + b"\r\n\r\n")), last=True, patience_s=0.1
        )

    def _cut_off(self) -> OddRequest:
        """A request whose sender hangs up in the middle, or does not wait for the answer."""
        data = self._random.choice((self._noise, self._signed))().data
        return OddRequest(data[: self._random.randrange(len(data) + 1)], last=True, patience_s=0)

    def _good(self, one: Sample, payload: Any) -> tuple[str, str, list[tuple[str, bytes]], bytes]:
        path = f"/webhooks/{one.scheme.name}"
        request = one.request(payload, at_s=time.time(), url=f"{PUBLIC_URL}{path}")
        headers = [(name, value.encode("latin-1")) for name, value in request.headers]
        return request.method, request.url.removeprefix(PUBLIC_URL), headers, request.body

    def _as_bytes(self, method: str, path: str, headers: list[tuple[str, bytes]], body: bytes) -> OddRequest:
        clean = [(name, value.translate(None, b"\r\n\0")) for name, value in headers]
        length = ("Content-Length", b"%d" % len(body))
        return OddRequest(_head(method, path, [*clean, length]) + body, method)

    def _body(self) -> bytes:
        content = json.dumps(self._json(3)).encode()
        return self._random.choice([content, content, self._bytes(300), *BODIES])

    def _json(self, depth: int) -> Any:
        match self._random.randrange(6 if depth else 4):
            case 0:
                return self._random.choice(TEXTS)
            case 1:
                return self._random.choice((0, -1, 2**70, 1.5, float("inf"), True, None))
            case 2 | 3:
                return self._bytes(30).decode("latin-1")
            case 4:
                return [self._json(depth - 1) for _ in range(self._random.randrange(4))]
            case _:
                names = self._random.sample(FIELDS, self._random.randrange(5))
                return {name: self._json(depth - 1) for name in names}

    def _bytes(self, length_max: int) -> bytes:
        alphabet = self._random.choice(ALPHABETS)
        return bytes(self._random.choices(alphabet, k=self._random.randrange(length_max)))


def _head(method: str, path: str, headers: list[tuple[str, bytes]]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: hooks.example.com"]
    return b"\r\n".join([*lines, *(name.encode() + b": " + value for name, value in headers), b"", b""])
