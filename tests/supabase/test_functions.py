"""The exported functions under deno: called by supabase-js and by Stripe, they are postroom's own doors."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from postroom.errors import PermanentFailure
from tests.http.conftest import KEY, MAIL, Served
from tests.supabase.conftest import STRIPE_SECRET, Edge
from tests.support.node import Driver
from tests.support.postgres import free_port


async def invoke(js: Driver, edge: Edge, name: str, *, key: str = KEY, **what: Any) -> dict[str, Any]:
    """supabase.functions.invoke(name), by a client with that key."""
    said: dict[str, Any] = await asyncio.to_thread(
        js, "invoke", url="http://project.test", ports=edge.ports, key=key, name=name, **what
    )
    assert "thrown" not in said, said
    return said


async def test_the_callers_run_in_node_20_with_the_websocket_that_they_are_given(js: Driver) -> None:
    """It has none of its own: without the `ws` transport supabase-js makes no client there, and says so."""
    runtime = await asyncio.to_thread(js, "runtime")
    assert runtime["node"].startswith("v20.")
    assert runtime["hasWebSocket"] is False
    assert "WebSocket" in runtime["refused"]


async def test_supabase_js_queues_an_email(js: Driver, edge: Edge, house: Served) -> None:
    """invoke('send-email', {body: {…, use_queue: true}}) gives data, and a row with every field."""
    body = MAIL | {
        "use_queue": True,
        "replyTo": "help@example.com",
        "metadata": {"order": 17},
        "text": "Grüße",
    }
    with edge.serving("send-email", "process-email-queue"):
        said = await invoke(js, edge, "send-email", body=body)
        (row,) = await house.rows()
        assert said["error"] is None
        assert said["data"] == {
            "queued": True,
            "queue_id": str(row["id"]),
            "message": "Email queued for sending",
        }
        assert (row["reply_to"], row["text"], json.loads(row["metadata"])) == (
            "help@example.com",
            "Grüße",
            {"order": 17},
        )
        passed = await invoke(js, edge, "process-email-queue", body={})
        assert passed["data"] == {"processed": 1, "failed": 0, "rateLimited": 0, "total": 1}


async def test_supabase_js_sends_at_once_and_sees_each_error_as_it_is(
    js: Driver, edge: Edge, house: Served
) -> None:
    """200 comes out as data; 400, 401, 429 and 500 as FunctionsHttpError with status and body."""
    with edge.serving("send-email"):
        sent = await invoke(js, edge, "send-email", body=MAIL)
        (row,) = await house.rows()
        assert sent == {"data": {"id": str(row["id"])}, "error": None}

        wanting = await invoke(js, edge, "send-email", body={"to": "ada@example.com"})
        assert wanting["data"] is None
        assert wanting["error"] == {
            "name": "FunctionsHttpError",
            "message": "Edge Function returned a non-2xx status code",
            "status": 400,
            "retryAfter": None,
            "body": {"error": "Missing required fields: to, subject, html"},
        }
        stranger = await invoke(js, edge, "send-email", key="wrong", body=MAIL)
        assert (stranger["error"]["status"], stranger["error"]["body"]) == (
            401,
            {"error": "the key is not valid"},
        )

        async def refuse(_: object) -> str:
            raise PermanentFailure("no such user")

        house.recorder.behave = refuse
        refused = await invoke(js, edge, "send-email", body=MAIL)
        assert refused["error"]["status"] == 500
        assert set(refused["error"]["body"]) == {"error", "queue_id"}

        await house.set("email.limit.recipient", "1/60s")
        limited = await invoke(js, edge, "send-email", body=MAIL)
        assert limited["error"]["status"] == 429
        assert int(limited["error"]["retryAfter"]) > 0
        assert len(await house.rows()) == 2


async def test_stripes_event_is_stored_through_the_function(js: Driver, edge: Edge, house: Served) -> None:
    """Signed by Stripe's library: stored byte for byte, then a duplicate; a wrong or old signature is 400."""
    payload = '{"id":"evt_1","type":"checkout.session.completed", "data":{"object":{"name":"Zoë \\u00e9"}}}\n'

    async def post(secret: str = STRIPE_SECRET, at: float | None = None) -> Any:
        url = edge.url("stripe-webhook")
        stamp = int(time.time() if at is None else at)
        return await asyncio.to_thread(js, "stripe", url=url, secret=secret, payload=payload, timestamp=stamp)

    with edge.serving("stripe-webhook", "process-webhook-retries"):
        assert await post() == {"status": 200, "body": {"received": True}}
        assert await post() == {"status": 200, "body": {"received": True, "duplicate": True}}
        for wrong in (await post(secret="whsec_wrong"), await post(at=time.time() - 400)):
            assert wrong["status"] == 400
            assert set(wrong["body"]) == {"error"}
        stored = await house.room.database.fetch("SELECT body, headers FROM postroom.webhook_requests")
        assert [row["body"] for row in stored] == [payload.encode()]
        passed = await invoke(js, edge, "process-webhook-retries", body={})
        assert passed["data"] == {"processed": 1, "failed": 0, "total": 1}


BODIES = {
    "not ascii": '{"id":"evt_1","name":"Zo\u00eb \u2603 \U0001f600"}'.encode(),
    "not utf-8": b'{"id":"evt_2","name":"\xff\xfe"}',
    "with a mark of byte order": b'\xef\xbb\xbf{"id":"evt_3"}',
    "with line ends and a null": b'{"id":"evt_4",\r\n"a":1}\r\n\x00',
    "empty": b"",
    "of a megabyte": b'{"id":"evt_5","pad":"' + b"x" * 1_000_000 + b'"}',
    "compressed": gzip.compress(b'{"id":"evt_6"}'),
    "said to be compressed": b'{"id":"evt_7"}',
}


def signed(body: bytes) -> dict[str, str]:
    """The header that Stripe sends with a body, whatever is in it."""
    stamp = int(time.time())
    digest = hmac.new(STRIPE_SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"stripe-signature": f"t={stamp},v1={digest}", "content-type": "application/json"}


async def test_bytes_and_headers_pass_as_they_are(edge: Edge, house: Served) -> None:
    """Whatever the bytes are, in one piece or in many: what is stored is what was signed."""
    sent = []
    with edge.serving("stripe-webhook"):
        async with httpx.AsyncClient(trust_env=False) as client:

            async def post(body: bytes, *, in_pieces: bool = False, **headers: str) -> httpx.Response:
                async def pieces() -> AsyncIterator[bytes]:
                    for start in range(0, len(body), 7):
                        yield body[start : start + 7]

                return await client.post(
                    edge.url("stripe-webhook"),
                    content=pieces() if in_pieces else body,
                    headers={**signed(body), **headers},
                )

            for what, body in BODIES.items():
                encoding = {"content-encoding": "gzip"} if "compressed" in what else {}
                answer = await post(body, in_pieces="utf-8" in what, **encoding)
                assert (answer.status_code, answer.json()) == (200, {"received": True}), what
                sent.append((body, encoding.get("content-encoding")))
            too_large = await post(b"x" * 11_000_000)
            assert too_large.status_code == 413
            assert set(too_large.json()) == {"error"}
            for method in ("GET", "PUT", "DELETE"):
                answer = await client.request(method, edge.url("stripe-webhook"))
                assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
            assert (await client.head(edge.url("stripe-webhook"))).content == b""
    stored = await house.room.database.fetch(
        "SELECT body, headers FROM postroom.webhook_requests ORDER BY id"
    )
    found = [(row["body"], dict(json.loads(row["headers"])).get("content-encoding")) for row in stored]
    assert sorted(found, key=str) == sorted(sent, key=str)


async def test_stripes_retry_after_a_503_ends_in_one_row(js: Driver, edge: Edge, house: Served) -> None:
    """The house had stored it and its answer was lost: Stripe comes again, and it is one event."""
    payload = '{"id":"evt_1","type":"checkout.session.completed"}'
    lose = True

    async def lossy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """To the house, whose answers are lost as long as `lose` holds."""
        there, back = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))

        async def pass_on() -> None:
            while data := await reader.read(65_536):
                back.write(data)

        passing = asyncio.create_task(pass_on())
        while answer := await there.read(65_536):
            if lose:
                break
            writer.write(answer)
        passing.cancel()
        back.close()
        writer.close()

    async def post() -> Any:
        url, stamp = edge.url("stripe-webhook"), int(time.time())
        return await asyncio.to_thread(
            js, "stripe", url=url, secret=STRIPE_SECRET, payload=payload, timestamp=stamp
        )

    async with await asyncio.start_server(lossy, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with edge.serving("stripe-webhook", house_url=f"http://127.0.0.1:{port}"):
            lost = await post()
            lose = False
            again = await post()
    assert lost == {"status": 503, "body": {"error": "postroom cannot be reached", "uncertain": True}}
    assert again == {"status": 200, "body": {"received": True, "duplicate": True}}
    assert await house.room.database.fetchval("SELECT count(*) FROM webhook_retry_queue") == 1


async def test_a_house_that_is_away_is_a_503(js: Driver, edge: Edge, tmp_path: Path) -> None:
    """Nobody listens, no address is set, or no answer comes in time: {"error"}, and Stripe comes again."""
    nobody = f"http://127.0.0.1:{free_port()}"
    with edge.serving("send-email", "stripe-webhook", house_url=nobody):
        away = await invoke(js, edge, "send-email", body=MAIL)
        assert (away["error"]["status"], away["error"]["retryAfter"]) == (503, "5")
        assert away["error"]["body"] == {"error": "postroom cannot be reached"}
        url = edge.url("stripe-webhook")
        event = await asyncio.to_thread(js, "stripe", url=url, secret=STRIPE_SECRET, payload="{}")
        assert event == {"status": 503, "body": {"error": "postroom cannot be reached"}}
    with edge.serving("send-email", house_url=None):
        unset = await invoke(js, edge, "send-email", body=MAIL)
        assert unset["error"]["status"] == 503
        assert "POSTROOM_PUBLIC_URL is not set" in unset["error"]["body"]["error"]

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    index = edge.folder / "send-email" / "index.ts"
    index.write_text(index.read_text().replace("60_000", "300"))
    for behave, error in (
        (hold, "postroom did not answer within 0.3 s: it may still do what was asked"),
        (cut, "postroom cannot be reached"),
    ):
        async with await asyncio.start_server(behave, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with edge.serving("send-email", house_url=f"http://127.0.0.1:{port}"):
                lost = await invoke(js, edge, "send-email", body=MAIL)
        assert lost["error"]["status"] == 503
        assert lost["error"]["body"] == {"error": error, "uncertain": True}


async def test_a_preflight_is_answered_as_the_house_does(edge: Edge, house: Served) -> None:
    """By the function itself, whether the house is there or not; and a browser may read every answer."""
    asked = {
        "origin": "https://shop.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-region",
    }
    with edge.serving("send-email", house_url=None):
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.options(edge.url("send-email"), headers=asked)
            own = await client.options(f"{house.url}/functions/v1/send-email", headers=asked)
            away = await client.post(edge.url("send-email"), json=MAIL)
    cors = [name for name in own.headers if name.startswith("access-control-")]
    assert len(cors) == 5
    assert answer.status_code == own.status_code == 200
    assert {name: answer.headers[name] for name in cors} == {name: own.headers[name] for name in cors}
    assert away.status_code == 503
    assert away.headers["access-control-allow-origin"] == "*"


def test_the_functions_are_typescript_without_an_error(edge: Edge) -> None:
    """As `supabase functions deploy` and editors look at them; and formatted as deno does."""
    scripts = sorted(edge.folder.rglob("*.ts"))
    assert len(scripts) == 5
    for command in (["check", "--no-remote"], ["fmt", "--check", "--line-width=110"], ["lint"]):
        done = subprocess.run(
            [str(edge.tools.deno), *command, *map(str, scripts)],
            env=edge.tools.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


async def test_an_event_that_an_old_function_has_noted_is_known_at_the_door(
    js: Driver, edge: Edge, house: Served
) -> None:
    """
    Old and new side by side: the old one wrote it into the queue and answered 500, so Stripe comes again.

    By a plain INSERT of whoever may insert there.
    """
    payload = '{"id":"evt_1","type":"checkout.session.completed"}'
    note = """
        INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload) VALUES ('stripe', $1, '{}')
    """
    for event in ("evt_1", "evt_2", "x" * 300, None):
        async with house.room.database.transaction() as connection:
            await connection.execute("SET LOCAL ROLE service_role")
            await connection.execute(note, event)

    async def post(event: str) -> Any:
        url, stamp = edge.url("stripe-webhook"), int(time.time())
        said = payload.replace("evt_1", event)
        return await asyncio.to_thread(
            js, "stripe", url=url, secret=STRIPE_SECRET, payload=said, timestamp=stamp
        )

    with edge.serving("stripe-webhook"):
        for event, body in (
            ("evt_1", {"received": True, "duplicate": True}),
            ("evt_3", {"received": True}),
            ("evt_3", {"received": True, "duplicate": True}),
        ):
            assert await post(event) == {"status": 200, "body": body}
    count = "SELECT count(*) FROM webhook_retry_queue WHERE webhook_event_id = $1"
    for event in ("evt_1", "evt_2", "evt_3"):
        assert await house.room.database.fetchval(count, event) == 1
