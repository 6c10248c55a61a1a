"""The webhook door: what is answered 200 is stored, byte for byte and once; what is not, is not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe

from postroom import Room
from postroom.jobs import CLEANUP
from postroom.queue import line
from postroom.schedule.cleanup import cleanup
from postroom.testing import signed
from tests.http.conftest import Served, serving, settings_of
from tests.support.waiting import until

SECRET = "whsec_of_the_tests"
DOOR = "/webhooks/stripe"
PROCESS = "/functions/v1/process-webhook-retries"
SOURCES = {
    "github": {"scheme": "github", "secrets": ["a secret of github"]},
    "twilio": {"scheme": "twilio", "secrets": ["a token of twilio"]},
    "orders": {
        "scheme": "github",
        "secrets": ["a secret of orders"],
        "lane": "order.id",
        "lane_order": "order.at",
    },
    "small": {"scheme": "github", "secrets": ["a secret of small"], "body_limit": 100},
}


@pytest.fixture
async def door(database_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    """The doors, with some sources; a provider shows no bearer key."""
    settings = settings_of(
        database_url,
        tmp_path,
        stripe_webhook_secret=SECRET,
        webhooks=SOURCES,
        public_url="https://shop.example.com",
    )
    async with Room(**settings) as room, serving(room, key=None) as one:
        yield one


def by_stripe(body: bytes, *, at: float | None = None, secret: str = SECRET) -> dict[str, str]:
    """The header as stripe's own library makes it."""
    stamp = int(time.time() if at is None else at)
    signature = stripe.WebhookSignature._compute_signature(f"{stamp}.{body.decode()}", secret)
    return {"stripe-signature": f"t={stamp},v1={signature}", "content-type": "application/json"}


async def post(door: Served, body: bytes, *, path: str = DOOR, **how: Any) -> httpx.Response:
    """An event of stripe's."""
    return await door.client.post(path, content=body, headers=by_stripe(body, **how))


async def stored(door: Served) -> list[Any]:
    """Every event with its request."""
    return await door.room.database.fetch(
        """
        SELECT queued.*, request.method, request.target, request.headers AS raw_headers, request.body
        FROM webhook_retry_queue AS queued
        LEFT JOIN postroom.webhook_requests AS request ON request.id = queued.id
        ORDER BY queued.created_at, queued.webhook_event_id
        """
    )


@pytest.mark.parametrize("path", [DOOR, "/functions/v1/stripe-webhook"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"evt_1","type":"charge.succeeded"}',
        b'  {"id" :\t"evt_1",\r\n "type":"x", "url":"https:\\/\\/a.example\\/"}  ',
        '{"id":"evt_1","name":"Ærøskøbing 🚢 \\u00e6","type":"x"}'.encode(),
        b'{"id":"evt_1","type":"x","big":1e400,"deep":[[[[]]]],"n":0.10000000000000000555}',
    ],
)
async def test_what_stripe_signs_is_stored_byte_for_byte(door: Served, path: str, body: bytes) -> None:
    """Whatever its spaces, escapes and numbers are; the payload is the same as JSON."""
    answer = await post(door, body, path=path)
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    (row,) = await stored(door)
    assert bytes(row["body"]) == body
    assert (row["webhook_type"], row["webhook_event_id"], row["status"]) == ("stripe", "evt_1", "pending")
    assert (row["method"], row["target"], row["attempts"]) == ("POST", path, 0)
    assert await door.room.database.fetchval(
        "SELECT payload = $1::text::jsonb FROM webhook_retry_queue", body.decode()
    )
    assert json.loads(row["headers"])["stripe-signature"].startswith("t=")


async def test_events_have_ids_in_the_order_in_which_they_came(door: Served) -> None:
    """UUIDs of version 7, so that they stand side by side in the primary key."""
    for number in range(5):
        await post(door, b'{"id":"evt_%d"}' % number)
    ids = [row["id"] for row in sorted(await stored(door), key=lambda row: str(row["webhook_event_id"]))]
    assert ids == sorted(ids)
    assert [one.version for one in ids] == [7] * 5


@pytest.mark.parametrize(
    "body",
    [b'{"id":"evt_1","name":"\\u0000"}', b'{"id":"evt_1","half":"\\ud800"}', b'{"id":"evt_1","n":1e200000}'],
)
async def test_what_jsonb_cannot_hold_is_stored_all_the_same(door: Served, body: bytes) -> None:
    """Also beside others in the same insert: their payloads are what they are."""
    good = [b'{"id":"evt_good_%d"}' % n for n in range(20)]
    answers = await asyncio.gather(*(post(door, one) for one in [*good, body]))
    assert [answer.status_code for answer in answers] == [200] * 21
    rows = {row["webhook_event_id"]: row for row in await stored(door)}
    assert json.loads(rows["evt_1"]["payload"]) == {"_raw": True}
    assert bytes(rows["evt_1"]["body"]) == body
    assert all(json.loads(rows[f"evt_good_{n}"]["payload"]) == {"id": f"evt_good_{n}"} for n in range(20))


async def test_a_form_is_an_object(door: Served) -> None:
    """Twilio signs the fields and the address."""
    request = signed(
        "twilio",
        {"MessageSid": "SM1", "Body": "Hi & bye", "From": "+4512345678"},
        "a token of twilio",
        url="https://shop.example.com/webhooks/twilio?x=1",
    )
    answer = await door.client.post("/webhooks/twilio?x=1", content=request.body, headers=request.headers)
    assert answer.status_code == 200, answer.text
    (row,) = await stored(door)
    assert json.loads(row["payload"])["Body"] == "Hi & bye"
    assert row["target"] == "/webhooks/twilio?x=1"


async def test_twenty_identical_posts_at_once_are_one_event(door: Served) -> None:
    """One is received, nineteen are duplicates."""
    body = b'{"id":"evt_1","type":"x"}'
    answers = await asyncio.gather(*(post(door, body) for _ in range(20)))
    assert sorted(answer.json().get("duplicate", False) for answer in answers) == [False] + [True] * 19
    assert len(await stored(door)) == 1


async def test_an_event_is_known_for_30_days_whatever_cleanup_did(door: Served) -> None:
    """Its row is gone, and what was kept beside it; it is a duplicate all the same. Then it is new."""
    body = b'{"id":"evt_1"}'
    await post(door, body)
    await door.room.database.execute("DELETE FROM webhook_retry_queue")
    assert await door.room.database.fetchval("SELECT count(*) FROM postroom.webhook_requests") == 0
    assert (await post(door, body)).json() == {"received": True, "duplicate": True}
    await door.room.database.execute(
        "UPDATE postroom.seen_webhooks SET seen_at = seen_at - interval '31 days'"
    )
    assert (await post(door, body)).json() == {"received": True}
    assert len(await stored(door)) == 1


async def test_an_event_without_an_id_is_never_a_duplicate(door: Served) -> None:
    """Two are two."""
    for _ in range(2):
        assert (await post(door, b'{"type":"x"}')).json() == {"received": True}
    assert len(await stored(door)) == 2


@pytest.mark.parametrize(
    "how", [{"secret": "whsec_another"}, {"at": time.time() - 3_600}, {"at": time.time() + 3_600}]
)
async def test_a_signature_that_does_not_hold_stores_nothing(
    door: Served, how: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """400; the reason is in the log, and no secret."""
    answer = await post(door, b'{"id":"evt_1"}', **how)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert await stored(door) == []
    said = capsys.readouterr().err
    assert SECRET not in said


async def test_a_source_that_nobody_named_is_not_found(door: Served) -> None:
    """404 and one line of JSON."""
    answer = await door.client.post("/webhooks/nobody", content=b"{}")
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


async def test_a_body_longer_than_the_source_allows_is_refused(door: Served) -> None:
    """413, and nothing is stored."""
    request = signed("github", {"padding": "x" * 200}, "a secret of small")
    answer = await door.client.post("/webhooks/small", content=request.body, headers=request.headers)
    assert answer.status_code == 413
    assert await stored(door) == []


async def test_events_of_one_object_have_its_lane_and_their_order(door: Served) -> None:
    """A time is read as a number; an order that cannot be read is the order of arrival."""
    for at in ("2026-11-24T01:00:01+00:00", "2026-11-24T01:00:00+00:00", "soon"):
        request = signed("github", {"order": {"id": 17, "at": at}}, "a secret of orders")
        await door.client.post("/webhooks/orders", content=request.body, headers=request.headers)
    rows = await stored(door)
    assert {row["lane"] for row in rows} == {"17"}
    assert all(row["lane_holds"] for row in rows)
    places = sorted(row["lane_place"] for row in rows)
    assert places[1] - places[0] == 1
    assert places[2] > places[1]


async def test_a_probe_stores_nothing(door: Served) -> None:
    """HEAD and GET are no events."""
    for method in ("HEAD", "GET"):
        assert (await door.client.request(method, DOOR)).status_code < 500
    assert await stored(door) == []


async def test_an_event_that_the_database_refuses_stops_no_other(door: Served) -> None:
    """A trigger of the application's own: that one is 503, the others are stored."""
    await door.room.database.execute(
        """
        CREATE FUNCTION no_thirteen() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.webhook_event_id = 'evt_13' THEN RAISE EXCEPTION 'no thirteen'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER no_thirteen BEFORE INSERT ON webhook_retry_queue
            FOR EACH ROW EXECUTE FUNCTION no_thirteen();
        """
    )
    answers = await asyncio.gather(*(post(door, b'{"id":"evt_%d"}' % n) for n in range(40)))
    assert [n for n, answer in enumerate(answers) if answer.status_code != 200] == [13]
    assert answers[13].status_code == 503
    assert len(await stored(door)) == 39


async def test_one_id_of_two_sources_is_two_events(door: Served) -> None:
    """An event is known by its source and the provider's id."""
    for source, secret in (("github", "a secret of github"), ("orders", "a secret of orders")):
        request = signed("github", {"n": 1}, secret, event_id="the same")
        answer = await door.client.post(f"/webhooks/{source}", content=request.body, headers=request.headers)
        assert answer.json() == {"received": True}
    assert len(await stored(door)) == 2


async def test_a_full_line_is_503_and_what_was_in_it_is_stored(
    door: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider is told when to come again; nobody waits for a place."""
    monkeypatch.setattr(line, "LINE_MAX", 5)
    async with door.room.database.transaction() as connection:
        await connection.execute("LOCK TABLE webhook_retry_queue IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(post(door, b'{"id":"evt_%d"}' % n)) for n in range(8)]
        await until(lambda: sum(task.done() for task in waiting) == 3)
    answers = [await task for task in waiting]
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 3
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(answer.headers["retry-after"] and "error" in answer.json() for answer in refused)
    assert len(await stored(door)) == 5


async def test_a_pass_handles_what_is_due_and_says_what_came_of_it(database_url: str, tmp_path: Path) -> None:
    """As a cron job asks for it, with the service key; events that nobody wants are processed too."""
    handlers = [{"name": "shop", "events": ["good", "bad"], "sql": "public.on_event"}]
    sources = {"github": {"scheme": "github", "secrets": ["a secret"], "handlers": handlers}}
    async with (
        Room(**settings_of(database_url, tmp_path, webhooks=sources)) as room,
        serving(room) as door,
    ):
        await room.database.execute(
            """
            CREATE TABLE handled (n integer);
            CREATE FUNCTION on_event(payload jsonb, event_id text) RETURNS void LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO handled VALUES ((payload->>'n')::integer);
                IF payload->>'n' = '2' THEN RAISE EXCEPTION 'not this one'; END IF;
            END $$;
            """
        )
        for n, kind in enumerate(["good", "good", "bad", "other"]):
            request = signed("github", {"n": n}, "a secret", headers={"X-GitHub-Event": kind})
            await door.client.post("/webhooks/github", content=request.body, headers=request.headers)
        answer = (await door.client.post(PROCESS)).json()
        errors = answer.pop("errors")
        assert answer == {"processed": 3, "failed": 1, "total": 4}
        assert len(errors) == 1
        assert "not this one" in errors[0]
        rows = await stored(door)
        assert sorted(row["n"] for row in await room.database.fetch("SELECT n FROM handled")) == [0, 1]
        assert sorted(row["status"] for row in rows) == ["pending", "processed", "processed", "processed"]
        assert sum(json.loads(row["metadata"]).get("unhandled", False) for row in rows) == 1
        assert (await door.client.post(PROCESS)).json() == {"processed": 0, "failed": 0, "total": 0}
        unknown = await door.client.post(PROCESS, headers={"authorization": "Bearer nonsense"})
        assert unknown.status_code == 401


async def test_a_duplicate_is_known_after_its_row_was_cleaned_up(door: Served) -> None:
    """For 30 days, whatever cleanup did with the event's row, its body and its request."""
    database = door.room.database
    body = b'{"id": "evt_1", "type": "checkout.paid"}'
    assert (await post(door, body)).json() == {"received": True}
    await database.execute(
        """
        UPDATE webhook_retry_queue SET status = 'processed', processed_at = now() - interval '31 days';
        UPDATE postroom.seen_webhooks SET seen_at = now() - interval '29 days';
        """
    )
    await cleanup(database, CLEANUP)
    assert await database.fetchval("SELECT count(*) FROM webhook_retry_queue") == 0
    assert await database.fetchval("SELECT count(*) FROM postroom.webhook_requests") == 0
    assert (await post(door, body)).json() == {"received": True, "duplicate": True}
    await database.execute("UPDATE postroom.seen_webhooks SET seen_at = now() - interval '31 days'")
    await cleanup(database, CLEANUP)
    assert (await post(door, body)).json() == {"received": True}
