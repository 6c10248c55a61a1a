"""What the door answers, by provider: status, body and whether it stores, as their documents say."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from postroom import Room
from postroom.testing import new_secret, signed
from tests.http.conftest import Served, serving, settings_of

PUBLIC_URL = "https://shop.example.com"
NAMES = (
    *("adyen", "discord", "github", "hubspot", "line", "linear", "mailgun", "meta", "paddle", "postmark"),
    *("resend", "sendgrid", "shopify", "slack", "square", "standard-webhooks", "stripe", "svix", "twilio"),
    "zoom",
)
SECRETS = {name: new_secret(name) for name in NAMES}
SOURCES: dict[str, Any] = {
    name: {"scheme": name, "secrets": [verifies]} for name, (_, verifies) in SECRETS.items()
}
SOURCES["meta"]["verify_token"] = "both know it"
SOURCES["open"] = {"scheme": "none"}
RECEIVED = b'{"received":true}'
TWIML = b"<Response/>"
EVENT = {"id": "evt_1", "type": "x"}
ADYEN = {"notificationItems": [{"NotificationRequestItem": {"pspReference": "1", "eventCode": "CAPTURE"}}]}


@pytest.fixture
async def door(database_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    """A door for all of them."""
    settings = settings_of(database_url, tmp_path, webhooks=SOURCES, public_url=PUBLIC_URL)
    async with Room(**settings) as room, serving(room, key=None) as one:
        yield one


async def send(door: Served, name: str, payload: Any, secret: str | None = None) -> httpx.Response:
    """A request as the provider sends it."""
    path = f"/webhooks/{name}"
    request = signed(name, payload, secret or SECRETS[name][0], url=PUBLIC_URL + path)
    target = request.url.removeprefix(PUBLIC_URL)
    return await door.client.post(target, content=request.body, headers=request.headers)


async def count(door: Served) -> int:
    """How many events are stored."""
    stored: int = await door.room.database.fetchval("SELECT count(*) FROM webhook_retry_queue")
    return stored


@pytest.mark.parametrize(
    ("name", "payload", "status", "body"),
    [
        *(
            (name, EVENT, 200, RECEIVED)
            for name in ("github", "stripe", "standard-webhooks", "svix", "resend")
        ),
        *((name, EVENT, 200, RECEIVED) for name in ("paddle", "shopify", "square", "linear", "zoom", "meta")),
        *((name, EVENT, 200, RECEIVED) for name in ("mailgun", "postmark")),
        *((name, [EVENT], 200, RECEIVED) for name in ("hubspot", "sendgrid")),
        ("line", {"events": [{"webhookEventId": "1"}]}, 200, RECEIVED),
        ("adyen", ADYEN, 200, b"[accepted]"),
        ("slack", {"event_id": "1", "type": "event_callback"}, 200, b""),
        ("twilio", {"MessageSid": "1"}, 200, TWIML),
        ("discord", {"type": 2, "id": "1", "token": "t"}, 200, b'{"type":5}'),
        ("discord", {"type": 1, "event": {"type": "APPLICATION_AUTHORIZED"}}, 204, b""),
    ],
)
async def test_a_stored_event_is_answered_as_the_document_says(
    door: Served, name: str, payload: Any, status: int, body: bytes
) -> None:
    """2xx, and the body that the provider looks for; a repeated one is answered with success, too."""
    answer = await send(door, name, payload)
    assert (answer.status_code, answer.content) == (status, body)
    assert await count(door) == 1


@pytest.mark.parametrize(
    ("name", "payload", "status", "body"),
    [
        ("slack", {"type": "url_verification", "challenge": "3eZbrw1a"}, 200, b"3eZbrw1a"),
        ("discord", {"type": 1, "id": "1", "token": "t"}, 200, b'{"type":1}'),
        ("discord", {"type": 0, "application_id": "1"}, 204, b""),
        ("line", {"destination": "U1", "events": []}, 200, b""),
    ],
)
async def test_a_handshake_is_answered_and_stores_nothing(
    door: Served, name: str, payload: Any, status: int, body: bytes
) -> None:
    """It is signed like an event."""
    answer = await send(door, name, payload)
    assert (answer.status_code, answer.content) == (status, body)
    assert await count(door) == 0


async def test_zoom_gets_its_token_and_the_tokens_hmac(door: Served) -> None:
    """And nothing is stored."""
    answer = await send(door, "zoom", {"event": "endpoint.url_validation", "payload": {"plainToken": "q"}})
    assert answer.json()["plainToken"] == "q"
    assert len(answer.json()["encryptedToken"]) == 64
    assert await count(door) == 0


async def test_meta_gets_its_challenge_by_get_and_a_stranger_403(door: Served) -> None:
    """By the word that both sides know."""
    asked = {"hub.mode": "subscribe", "hub.challenge": "1158201444", "hub.verify_token": "both know it"}
    answer = await door.client.get("/webhooks/meta", params=asked)
    assert (answer.status_code, answer.text) == (200, "1158201444")
    answer = await door.client.get("/webhooks/meta", params=asked | {"hub.verify_token": "guessed"})
    assert answer.status_code == 403
    assert await count(door) == 0


@pytest.mark.parametrize("name", NAMES)
async def test_a_wrong_secret_is_refused_with_the_status_that_the_document_says(
    door: Served, name: str
) -> None:
    """400; Discord, Shopify and Postmark want 401. One line of JSON, and nothing is stored."""
    answer = await send(door, name, ADYEN if name == "adyen" else EVENT, secret=new_secret(name)[0])
    assert answer.status_code == (401 if name in ("discord", "shopify", "postmark") else 400)
    assert list(answer.json()) == ["error"]
    assert await count(door) == 0


async def test_probes_by_head_are_answered_and_a_get_that_no_document_knows_is_405(door: Served) -> None:
    """With what is allowed; nothing is stored."""
    for name in NAMES:
        assert (await door.client.head(f"/webhooks/{name}")).status_code == 200
        got = await door.client.get(f"/webhooks/{name}")
        assert got.status_code == {"meta": 403, "twilio": 400}.get(name, 405)
        assert got.status_code != 405 or got.headers["allow"] == "POST"
    assert (await door.client.get("/webhooks/open")).status_code == 200
    assert await count(door) == 0


async def test_twilios_event_by_get_has_its_fields_as_payload(door: Served) -> None:
    """They are in the address."""
    url = f"{PUBLIC_URL}/webhooks/twilio?MessageSid=SM1&MessageStatus=sent"
    request = signed("twilio", b"", SECRETS["twilio"][0], url=url)
    answer = await door.client.get(request.url.removeprefix(PUBLIC_URL), headers=request.headers)
    assert (answer.status_code, answer.content) == (200, TWIML)
    row = await door.room.database.fetchrow("SELECT * FROM webhook_retry_queue")
    assert row is not None
    assert json.loads(row["payload"]) == {"MessageSid": "SM1", "MessageStatus": "sent"}
    assert row["event_type"] == "sent"


async def test_a_time_of_more_than_300_s_is_refused_in_both_directions(door: Served) -> None:
    """At the door, as a contract that says so demands."""
    for off_s, status in ((-290, 200), (290, 200), (-310, 400), (310, 400)):
        request = signed("stripe", {"id": f"evt_{off_s}"}, SECRETS["stripe"][0], at=time.time() + off_s)
        answer = await door.client.post("/webhooks/stripe", content=request.body, headers=request.headers)
        assert answer.status_code == status
    assert await count(door) == 2


async def test_a_body_over_10_mib_is_413_and_one_below_is_stored(door: Served) -> None:
    """Announced or not."""
    for size, status in ((10 * 1024 * 1024 + 1, 413), (10 * 1024 * 1024, 200)):
        request = signed("stripe", b'{"id":"evt_1"}'.ljust(size), SECRETS["stripe"][0])

        async def pieces(body: bytes = request.body) -> AsyncIterator[bytes]:
            for at in range(0, len(body), 1 << 20):
                yield body[at : at + (1 << 20)]

        for content in (request.body, pieces()):
            answer = await door.client.post("/webhooks/stripe", content=content, headers=request.headers)
            assert answer.status_code == status
    assert await count(door) == 1


async def test_browsers_may_ask_for_the_door_below_functions(door: Served) -> None:
    """CORS is answered on /functions/v1/*, and not on /webhooks/*."""
    asking = {"origin": "https://a.example", "access-control-request-method": "POST"}
    answer = await door.client.options("/functions/v1/stripe-webhook", headers=asking)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    assert (
        "access-control-allow-origin"
        not in (await door.client.options("/webhooks/stripe", headers=asking)).headers
    )


async def test_repeated_headers_and_odd_bytes_are_stored_as_they_came(door: Served) -> None:
    """The column joins what is repeated; the request beside it keeps each. ASGI gives small letters."""
    request = signed("stripe", EVENT, SECRETS["stripe"][0])
    odd = [(b"X-Odd", b"\xff"), (b"X-Two", b"1"), (b"x-two", b"2")]
    fields = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    answer = await door.client.post("/webhooks/stripe", content=request.body, headers=[*fields, *odd])
    assert answer.status_code == 200
    row = await door.room.database.fetchrow(
        """
        SELECT queued.headers, request.headers AS raw
        FROM webhook_retry_queue AS queued JOIN postroom.webhook_requests AS request USING (id)
        """
    )
    assert row is not None
    assert {"x-odd": "\xff", "x-two": "1, 2"}.items() <= json.loads(row["headers"]).items()
    raw = [field for field in json.loads(row["raw"]) if field[0] in ("x-odd", "x-two")]
    assert raw == [["x-odd", "\xff"], ["x-two", "1"], ["x-two", "2"]]


@pytest.mark.parametrize("variable", ["POSTROOM_STRIPE_WEBHOOK_SECRET", "STRIPE_WEBHOOK_SECRET"])
async def test_a_variable_alone_opens_stripes_door_also_with_two_secrets(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """With commas between them, during a rotation: each of them holds."""
    monkeypatch.setenv(variable, "whsec_new, whsec_old")
    async with Room(**settings_of(database_url, tmp_path)) as room, serving(room, key=None) as one:
        for secret, status in (("whsec_new", 200), ("whsec_old", 200), ("whsec_other", 400)):
            request = signed("stripe", {"id": secret}, secret)
            answer = await one.client.post(
                "/functions/v1/stripe-webhook", content=request.body, headers=request.headers
            )
            assert answer.status_code == status
        assert await count(one) == 2
