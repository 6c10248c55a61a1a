"""Reading a request's body, with an end to how much."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from postroom.email.address import kind_of
from postroom.http.answers import Refused

BODY_BYTES_MAX = 10 * 1024 * 1024

SMALL_BYTES = 64 * 1024
STRANGERS_BYTES_MAX = 128 * 1024 * 1024


class Share:
    """What one request takes of StrangersBodies, until it gives it back."""

    def __init__(self, bodies: StrangersBodies) -> None:
        self._bodies = bodies
        self._bytes = 0

    def grow(self, body_bytes: int) -> None:
        """
        Take room for so much of a body.

        Raises:
            Refused: There is none (503).
        """
        more = max(body_bytes - SMALL_BYTES, 0) - self._bytes
        if self._bodies.held_bytes + more > STRANGERS_BYTES_MAX:
            raise Refused(503, "too many large requests at once: send it again", {"retry-after": "5"})
        self._bytes += more
        self._bodies.held_bytes += more

    def give_back(self) -> None:
        """The body is gone."""
        self._bodies.held_bytes -= self._bytes
        self._bytes = 0


class StrangersBodies:
    """
    How much of their bodies may be held at once for requests that show no key before they are read.

    Only what is beyond SMALL_BYTES counts: nearly all events are smaller, so whoever fills the room with
    large ones keeps no small one out.
    """

    def __init__(self) -> None:
        self.held_bytes = 0


async def read_body(
    receive: Receive, announced: str | None, *, bytes_max: int = BODY_BYTES_MAX, share: Share | None = None
) -> bytes:
    """
    The body as it came.

    Args:
        announced: The header content-length.
        share: Where its sender has shown no key.

    Raises:
        Refused: It is longer than `bytes_max` (413), of which no more is ever kept; or there is no room
            for it (503).
        ClientDisconnect: The rest of it will not come.
    """
    if announced is not None and announced.isdecimal() and int(announced[:20]) > bytes_max:
        raise _too_long(bytes_max)
    gathered = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        size = len(gathered) + len(chunk)
        if size > bytes_max:
            raise _too_long(bytes_max)
        if share is not None:
            share.grow(size)
        if not message.get("more_body"):
            return bytes(gathered + chunk) if gathered else chunk
        gathered += chunk


async def read_json_object(request: Request) -> dict[str, Any]:
    """
    The body, which must be a JSON object; nesting is bounded by the parser.

    Raises:
        Refused: It is too long (413), no JSON, or no object (400).
    """
    body = await read_body(request.receive, request.headers.get("content-length"))
    if not body.strip():
        raise Refused(400, "the body is empty; send a JSON object")
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refused(400, f"the body must be a JSON object, not {kind_of(found)}")
    return found


def _too_long(bytes_max: int) -> Refused:
    return Refused(413, f"the body is longer than {bytes_max:,} bytes")
