"""What holds at every door: keys, CORS, the size and form of bodies, and answers that give nothing away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from postroom.http import bodies
from tests.http.conftest import MAIL, PROCESS, SEND, Served


@pytest.mark.parametrize("path", [SEND, PROCESS])
async def test_without_the_key_it_is_401(served: Served, path: str) -> None:
    """No key, another key, another scheme: the body is not even looked at."""
    shown = ["", "Bearer", "Bearer wrong", "Basic c2VydmljZQ==", "Bearer a.b.c", "Bearer " + "x" * 9000]
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as stranger:
        answers = [await stranger.post(path, content=b"{")]
        answers += [await stranger.post(path, content=b"{", headers={"authorization": one}) for one in shown]
    assert {answer.status_code for answer in answers} == {401}
    assert all(set(answer.json()) == {"error"} for answer in answers)
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert await served.rows() == []


async def test_the_scheme_may_be_written_in_any_case(served: Served) -> None:
    """`bearer`, and more than one space before the key."""
    key = served.client.headers["authorization"].removeprefix("Bearer ")
    answer = await served.client.post(PROCESS, headers={"authorization": f"bEARER  {key}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/", "/dashboard/"])
async def test_who_follows_the_address_comes_to_the_dashboard(served: Served, path: str) -> None:
    """`ready http://…` is a link in many terminals."""
    answer = await served.client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")


async def test_a_preflight_is_answered_to_everybody(served: Served) -> None:
    """As browsers ask it: without a key, with the headers that Supabase's clients send."""
    asked = {
        "origin": "https://shop.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-region",
    }
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as browser:
        for path in (SEND, PROCESS, "/functions/v1/whatever"):
            answer = await browser.options(path, headers=asked)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "POST" in answer.headers["access-control-allow-methods"]
            allowed = {name.strip() for name in answer.headers["access-control-allow-headers"].split(",")}
            assert allowed >= {"authorization", "x-client-info", "apikey", "content-type", "x-region"}


async def test_browsers_may_read_every_answer(served: Served) -> None:
    """Errors too; outside of /functions/v1/ there is no CORS."""
    origin = {"origin": "https://shop.example.com"}
    answers = [
        await served.client.post(SEND, json=MAIL, headers=origin),
        await served.client.post(SEND, content=b"{", headers=origin),
        await served.client.post(SEND, json=MAIL, headers=origin | {"authorization": "Bearer wrong"}),
        await served.client.post("/functions/v1/nothing", headers=origin),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 401, 404]
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {"*"}
    healthz = await served.client.get("/healthz", headers=origin)
    assert "access-control-allow-origin" not in healthz.headers


async def test_answers_have_the_headers_that_browsers_obey(served: Served) -> None:
    """And none that tells what serves them."""
    for answer in (await served.client.get("/healthz"), await served.client.post(SEND, content=b"[")):
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_413(served: Served, announced: bool) -> None:
    """10 MiB and a byte, with its length told before or in chunks; 10 MiB are read."""
    frame = json.dumps(MAIL | {"use_queue": True, "html": ""}).encode()
    largest = json.dumps(
        MAIL | {"use_queue": True, "html": "x" * (bodies.BODY_BYTES_MAX - len(frame))}
    ).encode()
    assert len(largest) == bodies.BODY_BYTES_MAX

    async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    answers = []
    for body in (largest, largest + b" "):
        content: Any = body if announced else in_chunks(body)
        answers.append(await served.client.post(SEND, content=content))
    assert [answer.status_code for answer in answers] == [200, 413]
    assert set(answers[1].json()) == {"error"}
    # The connection is still good: what was too long has been read past.
    assert (await served.client.get("/healthz")).status_code == 200


BROKEN = [
    b"",
    b"  \n",
    b"{",
    b'{"to": "a@example.com",}',
    b"{'to': 'a@example.com'}",
    b'{"to": NaN}',
    b'{"to": "\xff\xfe"}',
    b'{"subject": "\\ud83d"}',
    b"[" * 100_000,
    b'{"metadata":' * 5_000,
    b"\xef\xbb\xbf{}x",
    b"[]",
    b'"text"',
    b"null",
    b"7",
]


async def test_broken_json_is_400(served: Served) -> None:
    """Whatever is no JSON object; a bomb of brackets too."""
    answers = [await served.client.post(SEND, content=body) for body in BROKEN]
    assert [answer.status_code for answer in answers] == [400] * len(BROKEN)
    assert all(set(answer.json()) == {"error"} for answer in answers)
    assert all(answer.json()["error"].startswith("the body ") for answer in answers)


MISSING: list[dict[str, Any]] = [
    {"to": ...},
    {"subject": ...},
    {"html": ...},
    {"to": None},
    {"to": ""},
    {"subject": ""},
    {"html": ""},
    {"html": ..., "text": "only text"},
]


async def test_missing_fields_are_named(served: Served) -> None:
    """Absent, null or empty: the contract's own words."""
    answers = [await served.send(use_queue=queue, **fields) for fields in MISSING for queue in (True, False)]
    expected = (400, {"error": "Missing required fields: to, subject, html"})
    assert [(answer.status_code, answer.json()) for answer in answers] == [expected] * 2 * len(MISSING)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"to": "nobody"}, "to"),
    ({"to": "a@b@example.com"}, "to"),
    ({"to": "a@example.com, b@example.com"}, "to"),
    ({"to": ["a@example.com", "b@example.com"]}, "to"),
    ({"to": {"email": "a@example.com"}}, "to"),
    ({"to": 7}, "to"),
    ({"to": "Ada <a@example.com>"}, "to"),
    ({"to": "a@example.com\r\nRCPT TO:<b@example.com>"}, "to"),
    ({"to": "a\0@example.com"}, "to"),
    ({"to": "a" * 400 + "@example.com"}, "to"),
    ({"subject": "x" * 10_000_000}, "subject"),
    ({"subject": "a\r\nBcc: b@example.com"}, "subject"),
    ({"subject": "a\nb"}, "subject"),
    ({"subject": "a\0b"}, "subject"),
    ({"subject": 5}, "subject"),
    ({"subject": True}, "subject"),
    ({"html": "a\0b"}, "html"),
    ({"html": ["<p>"]}, "html"),
    ({"text": "a\0b"}, "text"),
    ({"text": 5}, "text"),
    ({"from": "nobody"}, "from"),
    ({"from": "Shop\r\nBcc: b@example.com <shop@example.org>"}, "from"),
    ({"from": "a@example.com, b@example.com"}, "from"),
    ({"from": 5}, "from"),
    ({"replyTo": "nobody"}, "replyTo"),
    ({"replyTo": "a@example.com\r\nX: y"}, "replyTo"),
    ({"reply_to": "a@example.com\0"}, "reply_to"),
    ({"replyTo": []}, "replyTo"),
    ({"use_queue": "yes"}, "use_queue"),
    ({"use_queue": 1}, "use_queue"),
    ({"email_type": "a\r\nb"}, "email_type"),
    ({"email_type": {}}, "email_type"),
    ({"email_type": "x" * 1000}, "email_type"),
    ({"metadata": "text"}, "metadata"),
    ({"metadata": [1]}, "metadata"),
    ({"metadata": {"a": "b\0c"}}, "metadata"),
    ({"metadata": {"a\0": 1}}, "metadata"),
    ({"metadata": {"a": "x" * 2_000_000}}, "metadata"),
    ({"idempotency_key": 5}, "idempotency_key"),
    ({"idempotency_key": ""}, "idempotency_key"),
    ({"idempotency_key": "a\0b"}, "idempotency_key"),
    ({"idempotency_key": "x" * 1000}, "idempotency_key"),
    ({"headers": []}, "headers"),
    ({"headers": {"X-A": "a\r\nBcc: b@example.com"}}, "headers"),
    ({"headers": {"X-A\r\nBcc": "b@example.com"}}, "headers"),
    ({"headers": {"Bcc": "b@example.com"}}, "headers"),
    ({"headers": {"X-A": 5}}, "headers"),
    ({"headers": {"X-A": "a\0"}}, "headers"),
    ({"cc": "b@example.com"}, "'cc'"),
    ({"status": "sent"}, "'status'"),
    ({"id": "6f1c"}, "'id'"),
    ({"x\r\ny" * 1000: 1}, "'x"),
]


@pytest.mark.parametrize("use_queue", [True, False])
async def test_bad_input_is_400_and_the_field_is_named(served: Served, use_queue: bool) -> None:
    """What can never be sent or stored is refused at the door; nothing is stored and nothing sent."""
    for fields, named in BAD:
        answer = await served.send(**({"use_queue": use_queue} | fields))
        error = answer.json()["error"]
        assert (answer.status_code, error[: len(named)]) == (400, named), str(fields)[:200]
        assert len(error) < 1000
        assert "\n" not in error
    assert await served.rows() == []
    assert served.recorder.handed_over == []


async def test_fields_that_are_null_are_not_given(served: Served) -> None:
    """As programs write what they do not have."""
    answer = await served.send(
        **{"from": None}, replyTo=None, use_queue=None, email_type=None, metadata=None, headers=None
    )
    assert answer.status_code == 200
    (row,) = await served.rows()
    assert (row["reply_to"], row["metadata"], row["headers"]) == (None, "{}", None)


async def test_a_mistake_of_ours_is_500_without_a_trace(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer says nothing of the inside; the log has the place, and not the error's text."""

    async def fail() -> None:
        raise ZeroDivisionError("holds a secret")

    monkeypatch.setattr("postroom.http.passes.Passes.run", lambda _: fail())
    answer = await served.client.post(PROCESS)
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error; the log says more"})
    logged = capsys.readouterr().err
    assert "ZeroDivisionError" in logged
    assert "test_doors.py" in logged
    assert "holds a secret" not in logged
    assert "Traceback" not in logged


async def test_a_request_is_one_line_in_the_log(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """Method, path, status and time, and the e-mail's id: no query, no header, no body."""
    answer = await served.client.post(
        f"{SEND}?token=a-query", json=MAIL | {"use_queue": True, "html": "a-body", "subject": "a-subject"}
    )
    await served.client.post("/functions/v1/x%0a%1b[31m", json={})
    logged = capsys.readouterr().err
    lines = [json.loads(line) for line in logged.splitlines()]
    line = next(line for line in lines if line.get("id") == answer.json()["queue_id"])
    assert (line["event"], line["method"], line["path"], line["status"]) == (
        "http.request",
        "POST",
        SEND,
        200,
    )
    assert line["ms"] > 0
    assert not any(word in logged for word in ("a-query", "a-body", "a-subject", "service-key-of-the-tests"))
    assert len([line for line in lines if line["event"] == "http.request"]) == 2


async def test_a_request_that_is_cut_off_is_forgotten(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client that hangs up in the middle of its body: nothing is stored, and nothing is an error."""
    host, port = served.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    key = served.client.headers["authorization"]
    writer.write(
        f"POST {SEND} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 500\r\n\r\n{{".encode()
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await served.client.get("/healthz")).status_code == 200
    assert await served.rows() == []
    assert "http.failed" not in capsys.readouterr().err
