"""Reading a request's body, with an end to how much."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request

from postroom.email.address import kind_of
from postroom.http.answers import Refused

BODY_BYTES_MAX = 10 * 1024 * 1024


async def read_body(request: Request, *, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """
    The body as it came.

    Raises:
        Refused: It is longer than `bytes_max` (413); no more than that is ever kept.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > bytes_max:
        raise _too_long(bytes_max)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise _too_long(bytes_max)
    return bytes(body)


async def read_json_object(request: Request) -> dict[str, Any]:
    """
    The body, which must be a JSON object; nesting is bounded by the parser.

    Raises:
        Refused: It is too long (413), no JSON, or no object (400).
    """
    body = await read_body(request)
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
