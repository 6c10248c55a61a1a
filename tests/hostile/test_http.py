"""What a stranger can send to the HTTP doors: nothing of it makes them grow, stop, or do what needs a key."""

from __future__ import annotations

import asyncio
import gzip
import json
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import httpx
import pytest

from postroom import Room
from postroom.http import bodies, server
from postroom.testing import signed
from tests.hostile.conftest import STRIPE_SECRET, connection, raw, taken_until_closed
from tests.http.conftest import KEY, MAIL, PROCESS, SEND, Served, serving, settings_of

TAKEN_BYTES_MAX = 48 * 1024 * 1024
"""A loopback's buffers hold some MB; without an end, this is reached within a second."""

HEAD = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

ENDLESS = {
    "header value": (HEAD + b"X-Long: ", b"x" * 65536),
    "header name": (HEAD, b"X" * 65536),
    "trailer": (CHUNKED + b"1\r\nx\r\n0\r\nX-Trailer: ", b"x" * 65536),
    "trailers": (CHUNKED + b"0\r\n", b"X-Trailer: x\r\n" * 4096),
    "chunk extension": (CHUNKED + b"1;", b"x" * 65536),
    "blank lines": (b"", b"\r\n" * 32768),
}


async def test_nothing_that_is_no_body_grows_without_an_end(served: Served) -> None:
    """Neither one header that never ends nor what may stand around a body."""
    for beginning, piece in ENDLESS.values():
        await taken_until_closed(served, beginning, piece, bytes_max=TAKEN_BYTES_MAX)
    assert (await served.client.get("/healthz")).status_code == 200


async def test_requests_that_wait_for_no_answer_do_not_pile_up(served: Served) -> None:
    """One client's requests, 14,000 to a read: beyond a few, the connection is cut."""
    piece = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    await taken_until_closed(served, b"", piece, bytes_max=TAKEN_BYTES_MAX)
    few = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 8
    answer = await raw(served, few + b"GET /healthz HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 9


async def test_connections_beyond_the_limit_are_closed_as_they_come(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would use up the files that the house needs for its database and its mail."""
    await served.client.aclose()
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 3)
    monkeypatch.setattr(server, "CONNECTIONS_CLOSED_BEYOND", 2)
    opened = [await connection(served) for _ in range(20)]
    ended = [asyncio.create_task(reader.read()) for reader, _ in opened]
    async with asyncio.timeout(20):
        while sum(task.done() for task in ended) < 15:
            await asyncio.sleep(0.01)
    assert sum(not task.done() for task in ended) == 5
    for _, writer in opened:
        writer.close()
    await asyncio.gather(*ended, return_exceptions=True)
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{served.url}/healthz")).status_code == 200


async def test_large_bodies_of_strangers_have_an_end_together(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it a large one gets 503; small events are stored all the same; room that is left is used."""
    monkeypatch.setattr(bodies, "STRANGERS_BYTES_MAX", 400_000)
    reader, writer = await connection(served)
    writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 400_000)

    async def large_until(status: int) -> httpx.Response:
        async with asyncio.timeout(20):
            while True:  # until the other one's bytes have arrived, or are given up
                answer = await served.client.post("/webhooks/stripe", content=b"x" * 200_000)
                if answer.status_code == status:
                    return answer

    assert (await large_until(503)).headers["retry-after"] == "5"
    small = signed("stripe", {"id": "evt_1", "type": "x"}, STRIPE_SECRET)
    answer = await served.client.post("/webhooks/stripe", content=small.body, headers=small.headers)
    assert answer.json() == {"received": True}
    writer.close()
    await reader.read()
    await large_until(400)  # it was read whole, and has no signature


async def test_a_send_without_a_key_is_refused_before_its_body_is_read(served: Served) -> None:
    """The answer comes although the body never does."""
    reader, writer = await connection(served)
    writer.write(b"POST " + SEND.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 20)).startswith(b"HTTP/1.1 401 ")
    writer.close()


SMUGGLED = b"POST " + PROCESS.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"
AMBIGUOUS = {
    "both lengths": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": b"Content-Length: 0, 4\r\n\r\n",
    "a length with a sign": b"Content-Length: +4\r\n\r\n",
    "a length in hex": b"Content-Length: 0x4\r\n\r\n",
    "chunked not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Content-Length : 4\r\n\r\n",
    "a NUL in a header": b"X-A: b\0c\r\n\r\n",
    "a bare CR in a header": b"X-A: b\rContent-Length: 4\r\n\r\n",
    "a chunk with a sign": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a chunk of 2^64": b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n",
    "a length of 2^64": b"Content-Length: 18446744073709551616\r\n\r\n",
}


async def test_a_request_that_two_readers_could_read_in_two_ways_ends_the_connection(served: Served) -> None:
    """Nothing behind it is taken for a request of its own."""
    answers = await asyncio.gather(
        *(raw(served, HEAD + rest + SMUGGLED + SMUGGLED, limit_s=3) for rest in AMBIGUOUS.values())
    )
    for name, answer in zip(AMBIGUOUS, answers, strict=True):
        assert answer.count(b"HTTP/1.1 ") <= 1, name
        assert answer[9:12] in (b"", b"400", b"413"), name
        assert b"HTTP/1.1 401 " not in answer, name  # that is what process-email-queue says to strangers


START = json.dumps(MAIL)[:-1].encode()
JSON: dict[str, tuple[bytes, int]] = {
    "100,000 levels": (b'{"to":' * 100_000, 400),
    "100,000 lists": (b"[" * 100_000, 400),
    "900 levels in metadata": (START + b',"metadata":{"a":' + b"[" * 900 + b"]" * 900 + b"}}", 200),
    "a number of a million digits": (START + b',"metadata":{"a":' + b"9" * 10**6 + b"}}", 400),
    "1e999": (START + b',"metadata":{"a":1e999}}', 400),
    "NaN": (START + b',"metadata":{"a":NaN}}', 400),
    "the same key twice": (b'{"to":"ada@example.com,eve@example.com",' + json.dumps(MAIL)[1:].encode(), 200),
    "100,000 keys": (START + b"," + b",".join(b'"k%d":1' % n for n in range(10**5)) + b"}", 400),
    "bytes that are no UTF-8": (b'{"to":"\xff\xfe"}', 400),
    "an overlong slash": (b'{"to":"\xc0\xaf@example.com"}', 400),
    "half a character": (json.dumps(MAIL | {"subject": "\ud800"}).encode(), 400),
    "UTF-16": (json.dumps(MAIL).encode("utf-16"), 400),
    "a byte order mark": (b"\xef\xbb\xbf" + json.dumps(MAIL).encode(), 400),
    "gzip": (gzip.compress(json.dumps(MAIL).encode()), 400),
    "a gzip bomb": (gzip.compress(b"0" * 10**8, 1), 400),
    "nothing": (b"", 400),
    "null": (b"null", 400),
}


async def test_whatever_the_body_is_the_answer_is_a_clear_one(served: Served) -> None:
    """Never a 500: also with the key, and with a coding that says it is compressed."""
    headers = {"authorization": f"Bearer {KEY}", "content-encoding": "gzip"}
    for name, (body, status) in JSON.items():
        answer = await served.client.post(SEND, content=body, headers=headers)
        assert answer.status_code == status, (name, answer.text)
        assert len(answer.content) < 1000, name
        assert status == 200 or set(answer.json()) == {"error"}, name
    assert {row["to_email"] for row in await served.rows()} == {"ada@example.com"}


PATHS = {
    b"/functions/v1/../v1/process-email-queue": (404,),
    b"//functions/v1/process-email-queue": (404,),
    b"/functions/v1/process-email-queue/": (404,),
    b"/functions/v1/process-email-queue%00": (404,),
    b"/functions/v1/%70rocess-email-queue": (401,),
    b"/FUNCTIONS/V1/process-email-queue": (404,),
    b"/webhooks/..%2f..%2fetc%2fpasswd": (404,),
    b"/webhooks/%2e%2e": (404,),
    b"/webhooks/stripe%00": (404,),
    b"/webhooks/stripe%0d%0aX: y": (400, 404),
    b"/webhooks/\xff": (400, 404),
    b"/webhooks/%ff": (404,),
    b"http://elsewhere/webhooks/nobody": (404,),
    b"*": (400, 404),
}


async def test_no_path_leads_round_the_key(served: Served) -> None:
    """Neither dots nor slashes, escapes or bytes of no text."""
    end = b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answers = await asyncio.gather(*(raw(served, b"POST " + path + end) for path in PATHS))
    for (path, statuses), answer in zip(PATHS.items(), answers, strict=True):
        assert int(answer[9:12]) in statuses, (path, answer)


async def test_browsers_are_told_nothing_that_needs_a_cookie(served: Served) -> None:
    """No origin is given back, no credentials are allowed, and other doors have no CORS at all."""
    asked = {
        "origin": "https://evil.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-region, " + "x" * 5000,
    }
    preflight = await served.client.options(SEND, headers=asked)
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in preflight.headers
    assert len(preflight.headers["access-control-allow-headers"]) < 1200
    for path in ("/webhooks/stripe", "/healthz", "/readyz"):
        answer = await served.client.get(path, headers=asked)
        assert not [name for name in answer.headers if name.startswith("access-control")]


TOKENS = (
    b"[" * 12_000,
    b'{"a":' * 2_000,
    b"\xff" * 100,
    b'{"alg":["HS256"]}',
    b'{"alg":{}}',
    b'{"alg":"none"}',
)


async def test_a_token_of_any_form_is_a_401(database_url: str, tmp_path: Path) -> None:
    """Also one whose header no parser takes: it is no mistake of ours."""
    settings = settings_of(database_url, tmp_path, jwt_secret="a-secret-of-the-project-that-is-long-enough")
    async with Room(**settings) as room, serving(room, key=None) as served:
        for header in TOKENS:
            token = b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in (header, b"{}", b"x")).decode()
            answer = await served.client.post(PROCESS, headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 401, header[:20]


LANES: dict[str, Any] = {
    "half a character": {"id": "\ud800", "at": "1"},
    "more than 255 of the widest characters": {"id": "🚢" * 300, "at": "1"},
    "a NUL": {"id": "a\0b", "at": "1"},
    "a number far below 0.1": {"id": "a", "at": "1e-999999999"},
    "a small number of 20,000 digits": {"id": "a", "at": "1e-20000"},
    "a number far above": {"id": "a", "at": "1e999999999"},
    "no number": {"id": "a", "at": "NaN"},
    "an endless one": {"id": "a", "at": "-Infinity"},
    "a year that is none": {"id": "a", "at": "9999-12-31T23:59:59-23:59"},
    "the first year": {"id": "a", "at": "0001-01-01"},
}


def _ours(payload: object) -> bytes:
    return json.dumps(payload).encode()  # half characters as escapes


async def test_no_lane_keeps_an_event_from_being_stored(served: Served) -> None:
    """Whatever an object's name and its place are: the event is kept, and nothing is computed for long."""
    for name, order in LANES.items():
        event = signed("github", _ours({"order": order}), "a secret")
        answer = await served.client.post("/webhooks/orders", content=event.body, headers=event.headers)
        assert (answer.status_code, answer.json()) == (200, {"received": True}), name


IDS: tuple[Any, ...] = (
    "x" * 100_000,
    "🚢" * 250,
    "a\0b",
    "\ud800",
    9**4000,
    ["a"],
    {"a": 1},
    True,
    "",
    2**70,
)


async def test_an_event_s_id_of_any_size_and_kind_is_known_again(served: Served) -> None:
    """An index entry of PostgreSQL holds 2,704 bytes: longer ids are told by their digest."""
    for event_id in IDS:
        event = signed("stripe", _ours({"id": event_id, "type": "x" * 100_000}), STRIPE_SECRET)
        answers = [
            await served.client.post("/webhooks/stripe", content=event.body, headers=event.headers)
            for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        if isinstance(event_id, str) and event_id:
            assert answers[1].json().get("duplicate"), event_id[:20]
