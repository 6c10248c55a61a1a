"""
Clients in a crowd: post over kept connections, each of which sends when it has its answer.

Settings (JSON, first argument): port, what (`webhook`: events, signed as Stripe does; `email`: e-mails to be
queued), secret (that signs, or the bearer key), prefix (of the ids), count, connections. Requests are made
before `ready`; at the word they are sent, and it says how long each answer took and what that cost this
process.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import sys
import time
from functools import partial
from typing import Any, cast

import uvloop

_ANSWERED = b"HTTP/1.1 200"
_HEAD_END = b"\r\n\r\n"


class Client(asyncio.Protocol):
    """
    One connection.

    Args:
        requests: What it sends, one after the other.
    """

    def __init__(self, requests: list[bytes]) -> None:
        self._requests = iter(requests)
        self._transport: asyncio.Transport | None = None
        self._answer = b""
        self._sent_at = 0.0
        self.waits_ms: list[float] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)

    def send_next(self) -> None:
        """Send one, or end."""
        assert self._transport is not None
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            self.ended.set_result(None)
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._answer += data
        head_end = self._answer.find(_HEAD_END)
        if head_end < 0:
            return
        head = self._answer[:head_end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._answer) < head_end + len(_HEAD_END) + length:
            return
        if not self._answer.startswith(_ANSWERED):
            self.ended.set_exception(RuntimeError(f"answered {self._answer[:80]!r}"))
            return
        self.waits_ms.append((time.perf_counter() - self._sent_at) * 1000)
        self._answer = b""
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See asyncio."""
        if not self.ended.done():
            self.ended.set_exception(RuntimeError("the server has closed a connection"))


def _itself(client: Client) -> Client:
    return client


def _webhook(event_id: str, secret: str) -> bytes:
    body = b'{"id":"%s","type":"charge.succeeded","data":"%s"}' % (event_id.encode(), b"x" * 2_000)
    stamp = int(time.time())
    signature = hmac.new(secret.encode(), b"%d.%s" % (stamp, body), hashlib.sha256).hexdigest()
    return _post(
        "/webhooks/stripe",
        body,
        "User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        "Accept: */*; q=0.5, application/xml",
        "Cache-Control: no-cache",
        f"Stripe-Signature: t={stamp},v1={signature}",
    )


def _email(name: str, key: str) -> bytes:
    fields = {"to": f"{name}@example.com", "subject": "Your order", "html": "x" * 2_000, "use_queue": True}
    return _post("/functions/v1/send-email", json.dumps(fields).encode(), f"Authorization: Bearer {key}")


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: shop.example.com",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


MAKERS = {"webhook": _webhook, "email": _email}


async def main(settings: dict[str, Any]) -> None:
    """Post at the word."""
    count, connections = settings["count"], settings["connections"]
    make = MAKERS[settings["what"]]
    requests = [make(f"{settings['prefix']}_{n}", settings["secret"]) for n in range(count)]
    clients = [Client(requests[first::connections]) for first in range(connections)]
    loop = asyncio.get_running_loop()
    for one in clients:
        await loop.create_connection(partial(_itself, one), "127.0.0.1", settings["port"])
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    cpu_s, began = time.process_time(), time.perf_counter()
    for one in clients:
        one.send_next()
    await asyncio.gather(*(one.ended for one in clients))
    took_s = time.perf_counter() - began
    print(
        json.dumps(
            {
                "took_s": took_s,
                "cpu_s": time.process_time() - cpu_s,
                "waits_ms": [round(wait, 3) for one in clients for wait in one.waits_ms],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
