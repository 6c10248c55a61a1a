"""Reconciliation: what Stripe lists and what has arrived are compared, and the difference is stored."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from postroom.database.connect import Database
from postroom.errors import ConfigError, PostroomError
from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.places import Body, Header
from postroom.webhooks.reconcile import Reconciled, reconcile_stripe
from postroom.webhooks.request import Headers, WebhookRequest
from postroom.webhooks.schemes import SCHEMES
from postroom.webhooks.source import Lane, Source
from postroom.webhooks.store import WebhookStore
from postroom.webhooks.stripe_api import TRIES_MAX, StripeApi
from tests.support.stripe_api import KEY, StripeServer, stripe_server

SOURCE = Source("stripe", SCHEMES["stripe"], ("whsec_x",))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def server() -> AsyncIterator[StripeServer]:
    async with stripe_server() as running:
        yield running


async def reconcile(
    database: Database, server: StripeServer, source: Source = SOURCE, *, key: str = KEY, **options: Any
) -> Reconciled:
    since = options.pop("since", datetime.now(UTC) - timedelta(days=1))
    async with StripeApi(server.url, key, first_wait_s=0.001) as api:
        return await reconcile_stripe(database, source, api, since, **options)


async def arrive(database: Database, event: dict[str, Any]) -> bool:
    """What the door does with an event; whether it is new."""
    request = WebhookRequest("POST", "https://x/webhooks/stripe", Headers(), json.dumps(event).encode())
    came = IncomingEvent(uuid4(), "stripe", event["id"], event["type"], request, "/webhooks/stripe")
    return bool(await WebhookStore(database).keep([came]))


async def stored(database: Database) -> list[str]:
    rows = await database.fetch("SELECT webhook_event_id FROM webhook_retry_queue ORDER BY 1")
    return [row["webhook_event_id"] for row in rows]


async def test_what_never_arrived_is_stored_once(database: Database, server: StripeServer) -> None:
    """What had arrived is a duplicate here, and what is stored here is one at the door."""
    now = int(time())
    events = [server.add(f"evt_{n:03}", now - 300 + n) for n in range(250)]
    for event in events[::5]:
        assert await arrive(database, event)
    told: list[Reconciled] = []
    assert await reconcile(database, server, report=told.append) == Reconciled(250, 200)
    assert [one.listed for one in told] == [100, 200, 250]
    assert await stored(database) == [event["id"] for event in events]
    assert await reconcile(database, server) == Reconciled(250, 0)
    assert not await arrive(database, events[1])
    assert await stored(database) == [event["id"] for event in events]


async def test_a_stored_event_is_as_if_it_had_come_and_says_that_it_did_not(
    database: Database, server: StripeServer
) -> None:
    """The event is the body; a header marks it."""
    event = server.add("evt_1", int(time()), amount=10.5, name="Zoë \U0001f600 \\/", data={"b": 1, "a": None})
    await reconcile(database, server)
    row = await database.fetchrow(
        """
        SELECT
            event_type, status, payload::text, queued.headers ->> 'postroom-reconciled' AS at,
            body, method, target
        FROM webhook_retry_queue AS queued JOIN postroom.webhook_requests USING (id)
        """
    )
    assert row is not None
    assert (row["event_type"], row["status"]) == ("checkout.paid", "pending")
    assert (row["method"], row["target"]) == ("POST", "/webhooks/stripe")
    assert json.loads(row["body"]) == json.loads(row["payload"]) == event
    assert list(json.loads(row["body"])) == list(event), "in Stripe's order"
    assert datetime.fromisoformat(row["at"]) <= datetime.now(UTC)


async def test_the_whole_second_of_since_is_read(database: Database, server: StripeServer) -> None:
    """Stripe's times have no fractions: an event of that second may be older or newer than since."""
    second = int(time()) - 60
    server.add("before", second - 1)
    server.add("same second", second)
    server.add("same second too", second)
    since = datetime.fromtimestamp(second + 0.9, UTC)
    assert await reconcile(database, server, since=since) == Reconciled(2, 2)
    assert await stored(database) == ["same second", "same second too"]


async def test_only_the_types_that_are_asked_for_count(database: Database, server: StripeServer) -> None:
    """An endpoint has not subscribed to all."""
    server.add("evt_1", int(time()))
    server.add("evt_2", int(time()), "invoice.paid")
    assert await reconcile(database, server, events=("invoice.*",)) == Reconciled(1, 1)
    assert await stored(database) == ["evt_2"]


async def test_an_event_that_an_old_caller_has_queued_is_no_missing_one(
    database: Database, server: StripeServer
) -> None:
    """The door has not seen it."""
    server.add("evt_1", int(time()))
    await database.execute(
        "INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload) "
        "VALUES ('stripe', 'evt_1', '{}')"
    )
    assert await reconcile(database, server) == Reconciled(1, 0)
    assert await stored(database) == ["evt_1"]


async def test_missed_events_take_their_place_in_the_lane(database: Database, server: StripeServer) -> None:
    """In the provider's order, or in that of their making though the list's newest come first."""
    now = int(time())
    for place, n in enumerate((3, 1, 2)):
        server.add(f"evt_{n}", now - 100 + place, data={"object": {"id": "sub_1", "version": n}})
    by_time = replace(SOURCE, lane=Lane(Body("data.object.id")))
    by_version = replace(
        by_time, name="again", lane=Lane(Body("data.object.id"), Body("data.object.version"))
    )
    for source, order in ((by_time, ["evt_3", "evt_1", "evt_2"]), (by_version, ["evt_1", "evt_2", "evt_3"])):
        await reconcile(database, server, source)
        rows = await database.fetch(
            "SELECT lane, lane_holds, webhook_event_id AS id FROM webhook_retry_queue "
            "WHERE webhook_type = $1 ORDER BY lane_place",
            source.name,
        )
        assert [row["id"] for row in rows] == order
        assert {(row["lane"], row["lane_holds"]) for row in rows} == {("sub_1", True)}


async def test_an_event_that_the_database_refuses_stops_no_other(
    database: Database, server: StripeServer
) -> None:
    """It is counted."""
    for n in range(5):
        server.add(f"evt_{n}", int(time()))
    await database.execute(
        "ALTER TABLE webhook_retry_queue ADD CONSTRAINT mine CHECK (webhook_event_id <> 'evt_3')"
    )
    assert await reconcile(database, server) == Reconciled(5, 4, 1)


def limited(after: str) -> web.Response:
    return web.json_response(
        {"error": {"message": "Too many requests"}}, status=429, headers={"Retry-After": after}
    )


@pytest.mark.parametrize(
    "trouble",
    [
        lambda: limited("0"),
        lambda: web.Response(status=503, text="<html>"),
        lambda: web.Response(text='{"data": [{"id": "evt_'),
        lambda: web.json_response({"data": [{"id": "evt_1"}], "has_more": False}),
        lambda: web.json_response({"data": [], "has_more": True}),
        lambda: web.json_response([]),
    ],
)
async def test_a_page_that_cannot_be_had_is_asked_for_again(
    database: Database, server: StripeServer, trouble: Any
) -> None:
    """The same page: nothing is passed over."""
    for n in range(150):
        server.add(f"evt_{n:03}", int(time()))
    server.answers = [trouble(), trouble()]
    assert await reconcile(database, server) == Reconciled(150, 150)
    assert [query.get("starting_after") for query in server.asked] == [None, None, None, "evt_050"]


async def test_retry_after_is_honoured(
    database: Database, server: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a minute; without it the waits double."""
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("postroom.webhooks.stripe_api.asyncio.sleep", note)
    server.answers = [web.Response(status=500), limited("7"), limited("9000"), web.Response(status=502)]
    await reconcile(database, server)
    assert waits == [0.001, 7, 60, 0.008]


async def test_what_stays_broken_is_told_and_what_came_before_is_kept(
    database: Database, server: StripeServer
) -> None:
    """The next run begins anew."""
    for n in range(150):
        server.add(f"evt_{n:03}", int(time()))

    def break_down(_so_far: Reconciled) -> None:
        server.answers = [web.Response(text="no page") for _ in range(TRIES_MAX)]

    with pytest.raises(
        PostroomError, match="in 6 tries: HTTP 200 with what is no page of events; run it again"
    ):
        await reconcile(database, server, report=break_down)
    assert len(await stored(database)) == 100
    assert await reconcile(database, server) == Reconciled(150, 50)


async def test_a_server_that_gives_the_same_page_for_ever_is_broken(
    database: Database, server: StripeServer
) -> None:
    """It ends."""
    page = {"data": [{"id": "evt_1", "created": 1, "type": "x"}], "has_more": True}
    server.answers = [web.json_response(page) for _ in range(20)]
    with pytest.raises(PostroomError, match="no page of events"):
        await reconcile(database, server)


async def test_a_key_that_is_refused_ends_it_at_once(database: Database, server: StripeServer) -> None:
    """One request, and the key is in no message."""
    with pytest.raises(ConfigError, match="POSTROOM_STRIPE_API_KEY: HTTP 401 Invalid API Key"):
        await reconcile(database, server, key="sk_other")
    assert len(server.asked) == 1
    server.answers = [web.json_response({"error": {"message": f"{KEY} may not"}}, status=403)]
    with pytest.raises(ConfigError, match="HTTP 403 … may not"):
        await reconcile(database, server)
    with pytest.raises(ConfigError, match="no API key"):
        StripeApi(server.url, "sk_\nX")


async def test_a_request_that_stripe_refuses_is_not_repeated(
    database: Database, server: StripeServer
) -> None:
    """It would be refused again; a redirect is not followed either."""
    for status in (400, 302):
        server.answers = [web.Response(status=status, headers={"Location": "/v1/events"})]
        with pytest.raises(PostroomError, match=f"refuses to list its events: HTTP {status}"):
            await reconcile(database, server)
    assert len(server.asked) == 2


async def test_nobody_there_is_told_after_several_tries(database: Database) -> None:
    """With what the system says."""
    server = StripeServer()
    server.url = "http://127.0.0.1:1"
    with pytest.raises(PostroomError, match="in 6 tries: Client"):
        await reconcile(database, server)


async def test_a_source_whose_ids_the_api_has_not_is_refused(
    database: Database, server: StripeServer
) -> None:
    """Each run would store all events again."""
    server.add("evt_1", int(time()))
    with pytest.raises(ConfigError, match="event_id"):
        await reconcile(database, server, replace(SOURCE, event_id=(Header("X-Id"),)))
    assert await stored(database) == []
