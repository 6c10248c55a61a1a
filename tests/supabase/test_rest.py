"""supabase-js on the database: from().insert(), select(), update(), and rpc(), by PostgREST's statements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest

from postroom.database.migrate import migrate
from tests.supabase.postgrest import rest_api
from tests.supabase.projects import SupabaseProject, supabase_project
from tests.support.node import Driver
from tests.support.postgres import PostgresServer

SECRET_KEY = "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz"
ANON_KEY = "sb_publishable_ACJWlzQHlZjBrEguHvfOxg_3BJgxAaH"
MAIL = {"to_email": "ada@example.com", "subject": "Grüße", "html": "<p>Zoë ☃</p>"}
EVERY_ARGUMENT = MAIL | {
    "from_email": "Shop <shop@example.com>",
    "reply_to": "help@example.com",
    "email_type": "receipt",
    "metadata": {"order": 17, "deep": {"list": [1, None, "two"]}},
    "idempotency_key": "order-17",
    "send_at": "2030-12-31T23:59:59.123Z",
    "priority": 5,
    "max_attempts": 2,
    "text": "Grüße",
    "headers": {"List-Unsubscribe": "<https://shop.example/u>"},
}


class Shop:
    """A program with a project's keys."""

    def __init__(self, js: Driver, url: str, project: SupabaseProject) -> None:
        self._js, self._url, self.project = js, url, project

    async def ask(self, key: str = SECRET_KEY, **what: Any) -> dict[str, Any]:
        """Of supabase-js: {data, error, status}."""
        said: dict[str, Any] = await asyncio.to_thread(self._js, "database", url=self._url, key=key, **what)
        assert "thrown" not in said, said
        return said

    async def data(self, **what: Any) -> Any:
        """What comes, without an error."""
        said = await self.ask(**what)
        assert said["error"] is None, said
        return said["data"]


@pytest.fixture
async def shop(new_server: PostgresServer, js: Driver) -> AsyncIterator[Shop]:
    """On a project that postroom has taken over."""
    with supabase_project(new_server) as project:
        await migrate(project.url)
        async with rest_api(project) as url:
            yield Shop(js, url, project)


async def test_every_argument_of_enqueue_email_comes_through_rpc(shop: Shop) -> None:
    """The id is a string, the same for the same key; JSON types become the columns' own."""
    first = await shop.data(rpc=["enqueue_email", EVERY_ARGUMENT])
    assert await shop.data(rpc=["enqueue_email", EVERY_ARGUMENT | {"subject": "other"}]) == first
    (row,) = await shop.data(**{"from": "email_queue"}, select="*", eq=["id", first])
    expected = {name: value for name, value in EVERY_ARGUMENT.items() if name != "send_at"}
    assert expected.items() <= row.items()
    assert row["next_retry_at"].startswith("2030-12-31T23:59:59.123")
    assert (row["status"], row["waits_for"]) == ("pending", "send_at")

    refused = await shop.ask(rpc=["enqueue_email", MAIL | {"to_email": "no address"}])
    assert (refused["status"], refused["error"]["message"]) == (
        400,
        "to_email: must be one address, such as ada@example.com",
    )
    assert (await shop.ask(rpc=["enqueue_email", MAIL | {"cc": "x"}]))["status"] == 404


async def test_rows_are_inserted_one_by_one_and_many_at_once(shop: Shop) -> None:
    """With and without select(), with NULL or the default where a row leaves a column out; each is due."""
    table = {"from": "email_queue"}
    assert await shop.data(**table, insert=MAIL) is None
    (made,) = await shop.data(**table, insert=MAIL, select="id,status,attempts,metadata")
    assert (made["status"], made["attempts"], made["metadata"]) == ("pending", 0, {})
    mixed = [MAIL, MAIL | {"status": "pending", "max_attempts": 3, "metadata": {"n": 1}}]
    for options in (None, {"defaultToNull": False}):
        both = await shop.data(**table, insert=mixed, select="*", options=options)
        assert [row["max_attempts"] for row in both] == [None if options is None else 6, 3]
        assert [row["status"] for row in both] == ["pending", "pending"]
    batch = await shop.data(rpc=["get_email_queue_batch", {"batch_size": 50}])
    assert len(batch) == 6
    assert {tuple(row) for row in batch} == {
        (
            "id",
            "to_email",
            "subject",
            "html",
            "from_email",
            "reply_to",
            "attempts",
            "max_attempts",
            "email_type",
            "metadata",
        )
    }


async def test_old_callers_claim_and_settle_by_rpc(shop: Shop) -> None:
    """As an edge function of before does; a batch without an argument, too."""
    for _ in range(3):
        await shop.data(rpc=["enqueue_email", MAIL])
    sent, failed, left = await shop.data(rpc=["get_email_queue_batch"])
    assert await shop.data(rpc=["mark_email_sent", {"email_id": sent["id"]}]) is None
    assert (
        await shop.data(rpc=["mark_email_failed", {"email_id": failed["id"], "error_message": "no route"}])
        is None
    )
    await shop.data(**{"from": "email_queue"}, update={"status": "failed"}, eq=["id", left["id"]])
    rows = await shop.data(**{"from": "email_queue"}, select="id,status,attempts,last_error,failed_at")
    found = {row["id"]: row for row in rows}
    assert (found[sent["id"]]["status"], found[sent["id"]]["attempts"]) == ("sent", 1)
    assert (found[failed["id"]]["status"], found[failed["id"]]["last_error"]) == ("pending", "no route")
    assert (found[left["id"]]["status"], found[left["id"]]["failed_at"] is not None) == ("failed", True)

    event = {"webhook_type": "stripe", "webhook_event_id": "evt_1", "payload": {"amount": 10.5}}
    await shop.data(**{"from": "webhook_retry_queue"}, insert=event)
    (claimed,) = await shop.data(rpc=["get_webhook_retry_batch", {"batch_size": 5}])
    assert event.items() <= claimed.items()
    await shop.data(rpc=["mark_webhook_processed", {"webhook_id": claimed["id"]}])
    (done,) = await shop.data(**{"from": "webhook_retry_queue"}, select="status")
    assert done == {"status": "processed"}


async def test_a_limit_is_taken_by_rpc(shop: Shop) -> None:
    """data[0].count above the limit means refused, of the application's keys and of the engine's."""
    for key in ("signup:10.0.0.1", "email:global"):
        asked = {"p_key": key, "p_increment": 1, "p_limit": 2}
        counts = [(await shop.data(rpc=["increment_rate_limit", asked]))[0]["count"] for _ in range(4)]
        assert counts == [1, 2, 3, 3]


async def test_a_browser_reads_its_own_mail_and_nothing_else(shop: Shop) -> None:
    """A signed-in user sees the e-mails to his address by any filter; all else is 403, for anon all."""
    for address in ("Ada@Example.com", "bob@example.com"):
        await shop.data(rpc=["enqueue_email", MAIL | {"to_email": address}])
    ada = jwt.encode({"role": "authenticated", "email": "ada@example.com", "sub": "1"}, "k" * 32)
    mine = {"key": ANON_KEY, "user": ada}
    table = {"from": "email_queue"}
    seen = await shop.data(**mine, **table, select="to_email,subject")
    assert seen == [{"to_email": "Ada@Example.com", "subject": "Grüße"}]
    assert await shop.data(**mine, **table, select="*", eq=["to_email", "bob@example.com"]) == []
    for who in (mine, {"key": ANON_KEY}):
        for what in (
            {**table, "insert": MAIL},
            {**table, "insert": MAIL, "select": "*"},
            {**table, "update": {"status": "sent"}, "eq": ["to_email", "ada@example.com"]},
            {"from": "webhook_retry_queue", "select": "*"},
            {"from": "rate_limit_counters", "select": "*"},
            {"rpc": ["enqueue_email", MAIL]},
            {"rpc": ["get_email_queue_batch", {"batch_size": 1}]},
            {"rpc": ["increment_rate_limit", {"p_key": "k", "p_increment": 1, "p_limit": 1}]},
        ):
            refused = await shop.ask(**who, **what)
            assert (refused["status"], refused["error"]["code"]) == (403, "42501"), what
    assert (await shop.ask(key=ANON_KEY, **table, select="*"))["status"] == 403
