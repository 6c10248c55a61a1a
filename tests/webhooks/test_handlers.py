"""Handlers in Python and SQL: what they write and the mark that they are done are one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import Any

import psycopg
import pytest

from postroom import ConfigError, PermanentFailure, TemporaryFailure
from postroom.errors import NotStarted
from postroom.webhooks.event import Event
from postroom.webhooks.store import WebhookStore
from tests.support.waiting import until
from tests.webhooks.workshop import Workshop, open_workshop

SQL = {"name": "sql", "sql": "public.on_event"}
WRITE = "INSERT INTO effects (handler, event_id) VALUES ($1, $2)"
WRITE_SYNC = "INSERT INTO effects (handler, event_id) VALUES (%s, %s)"


async def write(event: Event, db: Any) -> None:
    await db.execute(WRITE, "async", event.event_id)


def write_sync(event: Event, db: psycopg.Connection[Any]) -> None:
    assert threading.current_thread() is not threading.main_thread()
    db.execute(WRITE_SYNC, ("sync", event.event_id))


async def test_sql_async_and_plain_handlers_run_once_and_in_order(database_url: str) -> None:
    """One row; it names those that are done, in the order in which they ran."""
    async with open_workshop(database_url, SQL) as shop:
        shop.room.on("stripe", "checkout.*", name="async")(write)
        shop.room.on("stripe", name="sync")(write_sync)
        await shop.keep()
        ended = await shop.run()
        row = await shop.row()
        assert await shop.effects() == [("sql", "evt_1"), ("async", "evt_1"), ("sync", "evt_1")]
    assert (ended.done, ended.failed) == (1, 0)
    assert (row["status"], row["attempts"], row["error_count"]) == ("processed", 1, 0)
    assert row["handlers_done"] == ["sql", "async", "sync"]


async def test_a_plain_handler_waits_for_no_connection_that_is_lost(database_url: str) -> None:
    """Both ends look for each other: else its thread and its locks would be held for two hours."""
    async with open_workshop(database_url) as shop:
        seen: list[Any] = []

        @shop.room.on("stripe")
        def look(event: Event, db: psycopg.Connection[Any]) -> None:
            row = db.execute("SELECT current_setting('tcp_keepalives_idle')").fetchone()
            with socket.socket(fileno=os.dup(db.pgconn.socket)) as line:
                seen.append((row, line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)))

        await shop.keep()
        assert (await shop.run()).done == 1
    assert seen == [(("15",), 15)]


async def test_the_event_is_what_the_provider_sent(database_url: str) -> None:
    """Bytes and headers as they came; the type as the door found it."""
    seen: list[Event] = []
    body = b'{ "type":"checkout.done",  "name": "\\u00e9 \xc3\xa9 \\/" }'
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe")
        async def keep(event: Event, db: Any) -> None:
            seen.append(event)

        kept = await shop.keep(
            body=body, headers=(("Stripe-Signature", "t=1"), ("X-Two", "a"), ("X-Two", "b"))
        )
        await shop.run()
    assert (seen[0].id, seen[0].body, seen[0].type, seen[0].attempt) == (kept, body, "checkout.done", 1)
    assert seen[0].payload == {"type": "checkout.done", "name": "é é /"}
    assert list(seen[0].headers) == [("Stripe-Signature", "t=1"), ("X-Two", "a"), ("X-Two", "b")]


async def test_a_row_of_an_old_caller_has_its_type_in_the_payload(database_url: str) -> None:
    """It was inserted without our column; the handler for its type runs all the same."""
    seen: list[str | None] = []
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe", "checkout.done")
        async def keep(event: Event, db: Any) -> None:
            seen.append(event.type)

        await shop.room.database.execute(
            """
            INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload)
            VALUES ('stripe', 'evt_1', '{"id": "evt_1", "type": "checkout.done"}')
            """
        )
        await shop.run()
    assert seen == ["checkout.done"]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_handler_that_raises_leaves_nothing_and_a_retry_runs_only_it(
    database_url: str, kind: str
) -> None:
    """What it wrote is undone, the others' stays; the row says which failed and why, in one line."""
    failing = [True]
    async with open_workshop(database_url, SQL) as shop:

        async def later(event: Event, db: Any) -> None:
            await db.execute(WRITE, "later", event.event_id)
            if failing[0]:
                raise ValueError("no stock\nsecond line")

        def later_sync(event: Event, db: psycopg.Connection[Any]) -> None:
            db.execute(WRITE_SYNC, ("later", event.event_id))
            if failing[0]:
                raise ValueError("no stock\nsecond line")

        shop.room.on("stripe", name="later")(later if kind == "async" else later_sync)
        await shop.keep()
        ended = await shop.run()
        row = await shop.row()
        assert (ended.failed, row["status"], row["attempts"]) == (1, "pending", 1)
        assert row["last_error"].startswith("later: ValueError: no stock (")
        assert "test_handlers.py, line " in row["last_error"]
        assert await shop.effects() == [("sql", "evt_1")]
        failing[0] = False
        await shop.run_again()
        row = await shop.row()
        assert (row["status"], row["attempts"], row["error_count"]) == ("processed", 2, 1)
        assert await shop.effects() == [("sql", "evt_1"), ("later", "evt_1")]


@pytest.mark.parametrize("kind", ["sql", "async", "sync"])
async def test_effect_and_mark_commit_together(database_url: str, kind: str) -> None:
    """The mark cannot be written: the effect is not there either. Without that refusal both are, once."""
    async with open_workshop(database_url, *([SQL] if kind == "sql" else [])) as shop:
        if kind != "sql":
            shop.room.on("stripe", name=kind)(write if kind == "async" else write_sync)
        await shop.room.database.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'not now'; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE OF handlers_done ON webhook_retry_queue
            FOR EACH ROW EXECUTE FUNCTION refuse()
            """
        )
        await shop.keep()
        await shop.run()
        assert await shop.effects() == []
        assert (await shop.row())["last_error"].startswith(f"{kind}: ")
        await shop.room.database.execute("DROP TRIGGER refuse ON webhook_retry_queue")
        await shop.run_again()
        assert await shop.effects() == [(kind, "evt_1")]
        assert (await shop.row())["status"] == "processed"


@pytest.mark.parametrize("kind", ["sql", "async", "sync"])
async def test_a_lost_lease_undoes_the_effect(database_url: str, kind: str) -> None:
    """Another worker has taken the event while the handler ran: what it wrote is undone, nothing settled."""
    take = "UPDATE webhook_retry_queue SET lease_no = lease_no + 1, leased_by = gen_random_uuid()"
    of_settings = [{"name": "sql", "sql": "public.lose"}] if kind == "sql" else []
    async with open_workshop(database_url, *of_settings) as shop:
        await shop.room.database.execute(
            """
            CREATE FUNCTION lose(payload jsonb, event_id text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO public.effects (handler, event_id) VALUES ('sql', event_id);
                UPDATE public.webhook_retry_queue SET lease_no = lease_no + 1, leased_by = gen_random_uuid();
            END $$
            """
        )
        if kind != "sql":

            async def lose(event: Event, db: Any) -> None:
                await db.execute(WRITE, "async", event.event_id)
                await shop.room.database.execute(take)

            def lose_sync(event: Event, db: psycopg.Connection[Any]) -> None:
                db.execute(WRITE_SYNC, ("sync", event.event_id))
                with psycopg.connect(database_url, autocommit=True) as other:
                    other.execute(take)

            shop.room.on("stripe", name=kind)(lose if kind == "async" else lose_sync)
        await shop.keep()
        await shop.run()
        row = await shop.row()
        assert await shop.effects() == []
        assert row["handlers_done"] == []
        assert (row["status"], row["attempts"]) in [("processing", 0), ("pending", 1)]


async def test_finishing_with_an_old_lease_is_refused(database_url: str) -> None:
    """Nothing is written down, and the caller is told."""
    async with open_workshop(database_url) as shop:
        await shop.keep()
        store, worker = WebhookStore(shop.room.database), (await shop.keep("evt_2"))
        await shop.room.database.execute(
            "SELECT postroom.register_worker($1, 'webhook', 'h', 1, '0', true, false, '{}')", worker
        )
        claim = (await store.claim(worker, 1, None))[0]
        claim.lease_no -= 1
        with pytest.raises(NotStarted):
            await store.finish_handler(worker, claim, "shop")


async def test_a_permanent_failure_is_a_dead_letter_and_keeps_the_others(database_url: str) -> None:
    """It is stopped at once, the other handlers are done; a person's retry gives it all its attempts."""
    async with open_workshop(database_url, SQL) as shop:

        @shop.room.on("stripe", name="refusing")
        async def refuse(event: Event, db: Any) -> None:
            raise PermanentFailure("no such customer")

        await shop.keep()
        await shop.run()
        row = await shop.row()
        assert (row["status"], row["dead_reason"], row["last_error"]) == (
            "dead_letter",
            "permanent",
            "refusing: no such customer",
        )
        assert (row["handlers_done"], row["handlers_stopped"]) == (["sql"], ["refusing"])
        await shop.room.database.execute("SELECT postroom.retry_dead_webhooks(ARRAY[$1::uuid])", row["id"])
        await shop.run()
        assert (await shop.row())["attempts"] == 1
        assert await shop.effects() == [("sql", "evt_1")]


async def test_what_a_handler_says_is_kept_whatever_characters_it_has(database_url: str) -> None:
    """NUL and half a character can stand in no row: the outcome was repeated for ever, and others with it."""
    async with open_workshop(database_url) as shop:

        async def strange(event: Event, db: Any) -> None:
            raise ValueError("half \ud800, nothing \0, end")

        shop.room.on("stripe", name="strange")(strange)
        await shop.keep()
        async with asyncio.timeout(10):
            await shop.run()
        assert (await shop.row())["last_error"].startswith("strange: ValueError: half ?, nothing , end (")


async def test_a_handler_says_when_to_try_again(database_url: str) -> None:
    """The longest of the waits counts, where it is longer than the schedule's."""
    async with open_workshop(database_url) as shop:
        for name, wait_s in (("short", 10.0), ("long", 7_200.0)):

            async def later(event: Event, db: Any, wait_s: float = wait_s) -> None:
                raise TemporaryFailure("busy", retry_after_s=wait_s)

            shop.room.on("stripe", name=name)(later)
        await shop.keep()
        await shop.run()
        wait_s = await shop.room.database.fetchval(
            "SELECT extract(EPOCH FROM next_retry_at - now())::float FROM webhook_retry_queue"
        )
        assert (await shop.row())["last_error"] == "short: busy; long: busy"
    assert 7_100 < wait_s <= 7_200


async def test_an_event_that_no_handler_wants_is_kept_and_marked(database_url: str) -> None:
    """Processed, metadata.unhandled; replayed after a handler is there, it is handled."""
    async with open_workshop(database_url) as shop:
        shop.room.on("stripe", "invoice.*", name="invoices")(write)
        await shop.keep()
        ended = await shop.run()
        row = await shop.row()
        assert (ended.done, row["status"], row["metadata"]) == (1, "processed", '{"unhandled": true}')
        await shop.room.database.execute("SELECT postroom.replay_webhooks(ARRAY[$1::uuid], NULL)", row["id"])
    async with open_again(database_url) as shop:
        shop.room.on("stripe", "checkout.done", name="async")(write)
        await shop.run()
        row = await shop.row()
        assert (row["status"], row["metadata"]) == ("processed", "{}")
        assert await shop.effects() == [("async", "evt_1")]


async def test_a_source_that_nobody_knows_is_left_alone(database_url: str) -> None:
    """It is not called unhandled by a worker that cannot know; no attempt is counted."""
    async with open_workshop(database_url, SQL) as shop:
        await shop.keep("evt_1")
        await shop.keep("evt_2", source="unknown")
        ended = await shop.run()
        row = await shop.row("evt_2")
    assert ended.done == 1
    assert (row["status"], row["attempts"], row["metadata"]) == ("pending", 0, "{}")


async def test_a_handler_that_ends_its_transaction_is_told_so(database_url: str) -> None:
    """The promise of one transaction would be broken."""
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe", name="leaving")
        async def leave(event: Event, db: Any) -> None:
            await db.execute("ROLLBACK")

        await shop.keep()
        await shop.run()
        assert "has ended the transaction" in (await shop.row())["last_error"]


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), SystemExit(3), TimeoutError("slow")])
async def test_whatever_a_handler_raises_the_worker_goes_on(database_url: str, raised: BaseException) -> None:
    """It is a failed attempt, and certain; the next events are handled."""
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe", "bad", name="raising")
        async def fail(event: Event, db: Any) -> None:
            raise raised

        shop.room.on("stripe", "good", name="async")(write)
        for number in range(60):
            await shop.keep(f"bad_{number}", "bad")
        await shop.keep("evt_good", "good")
        ended = await shop.run()
        row = await shop.row("bad_1")
        assert (ended.done, ended.failed) == (1, 60)
        assert (row["status"], row["last_error"].partition(":")[0]) == ("pending", "raising")
        assert await shop.effects() == [("async", "evt_good")]


@pytest.mark.parametrize(
    "raised", [psycopg.Rollback(), StopIteration(), SystemExit(3), psycopg.OperationalError("gone")]
)
async def test_whatever_a_plain_handler_raises_it_is_not_done(
    database_url: str, raised: BaseException
) -> None:
    """Also what psycopg takes as a wish to undo, and says nothing."""
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe", name="raising")
        def fail(event: Event, db: psycopg.Connection[Any]) -> None:
            write_sync(event, db)
            raise raised

        await shop.keep()
        await shop.run()
        row = await shop.row()
        assert (row["status"], row["attempts"], row["handlers_done"]) == ("pending", 1, [])
        assert row["last_error"].startswith("raising: ")
        assert await shop.effects() == []


async def test_a_plain_handler_cannot_commit_by_itself(database_url: str) -> None:
    """psycopg refuses it, so nothing is there before the mark."""
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe", name="committing")
        def commit(event: Event, db: psycopg.Connection[Any]) -> None:
            write_sync(event, db)
            db.commit()

        await shop.keep()
        await shop.run()
        assert (await shop.row())["handlers_done"] == []
        assert await shop.effects() == []


async def test_a_swallowed_error_of_the_database_is_a_failure(database_url: str) -> None:
    """The transaction can no longer commit, and the handler did not tell."""
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe", name="hiding")
        async def hide(event: Event, db: Any) -> None:
            await write(event, db)
            with contextlib.suppress(Exception):
                await db.execute("SELECT 1 / 0")

        await shop.keep()
        await shop.run()
        assert (await shop.row())["handlers_done"] == []
        assert await shop.effects() == []


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_connection_that_is_lost_costs_an_attempt_and_no_effect(database_url: str, kind: str) -> None:
    """The server drops it in the middle of a handler; the next attempt has a new one."""
    lost = [True]
    drop = "SELECT pg_terminate_backend(pg_backend_pid())"
    async with open_workshop(database_url) as shop:

        async def lose(event: Event, db: Any) -> None:
            await db.execute(WRITE, kind, event.event_id)
            if lost and lost.pop():
                await db.execute(drop)

        def lose_sync(event: Event, db: psycopg.Connection[Any]) -> None:
            db.execute(WRITE_SYNC, (kind, event.event_id))
            if lost and lost.pop():
                db.execute(drop)

        shop.room.on("stripe", name=kind)(lose if kind == "async" else lose_sync)
        await shop.keep()
        await shop.run()
        row = await shop.row()
        assert (row["status"], row["attempts"], row["handlers_done"]) == ("pending", 1, [])
        await shop.run_again()
        assert await shop.effects() == [(kind, "evt_1")]
        assert (await shop.row())["status"] == "processed"


async def test_an_idle_connection_that_the_server_dropped_costs_no_attempt(database_url: str) -> None:
    """After a restart of PostgreSQL the next event gets a new connection, and not a minute's wait."""
    pids: list[int] = []
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe", name="sync")
        def look(event: Event, db: psycopg.Connection[Any]) -> None:
            pids.append(db.info.backend_pid)

        for event_id in ("evt_1", "evt_2"):
            await shop.keep(event_id)
            await shop.run()
        await shop.room.database.fetchval("SELECT pg_terminate_backend($1, 10000)", pids[-1])
        await shop.keep("evt_3")
        await shop.run()
        row = await shop.row("evt_3")
    assert (row["status"], row["attempts"], row["error_count"]) == ("processed", 1, 0)
    assert pids[0] == pids[1] != pids[2]


async def test_long_handlers_keep_no_claim_and_no_settle_waiting(database_url: str) -> None:
    """As many as may hold a transaction hold one; others' events are settled meanwhile."""
    release = asyncio.Event()
    running = 0
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe", "long", name="long")
        async def wait(event: Event, db: Any) -> None:
            nonlocal running
            running += 1
            await release.wait()

        for number in range(15):
            await shop.keep(f"long_{number}", "long")
        await shop.room.prepare_handlers()
        stop = asyncio.Event()
        worker = asyncio.create_task(shop.room.webhook_engine().run(stop))
        try:
            await until(lambda: running == 10)
            await shop.keep("evt_1", "nobody")

            async def is_settled() -> bool:
                return bool((await shop.row())["status"] == "processed")

            await until(is_settled)
            assert running == 10
        finally:
            release.set()
            stop.set()
            await worker


async def test_events_of_a_lane_are_handled_one_after_the_other(database_url: str) -> None:
    """In the provider's order; one that fails holds those behind it, other lanes go on."""
    failing = {"a1"}
    async with open_workshop(database_url) as shop:

        @shop.room.on("stripe", name="async")
        async def handle(event: Event, db: Any) -> None:
            if event.event_id in failing:
                raise ValueError("not yet")
            await write(event, db)

        for event_id in ("a3", "a1", "a2", "b2", "b1"):
            await shop.keep(event_id, lane=event_id[0], lane_place=event_id[1])
        await shop.room.prepare_handlers()
        await shop.room.webhook_engine().run_pass(until_nothing_due=True)
        assert [event_id for _, event_id in await shop.effects()] == ["b1", "b2"]
        failing.clear()
        await shop.room.database.execute(
            "UPDATE webhook_retry_queue SET next_retry_at = NULL, due_at = NULL WHERE webhook_event_id = 'a1'"
        )
        await shop.room.webhook_engine().run_pass(until_nothing_due=True)
        assert [event_id for _, event_id in await shop.effects()] == ["b1", "b2", "a1", "a2", "a3"]


async def test_the_end_of_an_event_of_a_lane_wakes_those_who_sleep(database_url: str) -> None:
    """The one behind it is free now; without a call it would be found at the next poll only."""
    async with open_workshop(database_url, SQL) as shop:
        await shop.room.database.execute(
            "SELECT postroom.register_worker(gen_random_uuid(), 'webhook', 'h', 1, '0', true, true, '{}')"
        )
        await shop.keep("evt_1", lane="a", lane_place="1")
        await shop.keep("evt_2")
        with psycopg.connect(database_url, autocommit=True) as listening:
            listening.execute("LISTEN postroom_webhook")
            await shop.run()
            heard = list(listening.notifies(timeout=5, stop_after=1))
    assert [notify.channel for notify in heard] == ["postroom_webhook"]


def test_the_same_name_twice_is_an_error(database_url: str) -> None:
    """What is done is remembered by it."""
    from postroom import Room

    room = Room(database_url=database_url)
    room.on("stripe", "a")(write)
    room.on("github", "a")(write)
    with pytest.raises(ConfigError, match=r"two handlers named '.*write' of stripe"):
        room.on("stripe", "b")(write)
    room.on("stripe", "b", name="other")(write)


async def test_a_name_of_postroom_toml_is_taken_too(database_url: str) -> None:
    """Both would be the same mark."""
    async with open_workshop(database_url, SQL) as shop:
        shop.room.on("stripe", name="sql")(write)
        with pytest.raises(ConfigError, match="two handlers named 'sql' of stripe"):
            await shop.room.prepare_handlers()


def open_again(database_url: str) -> Any:
    """Another worker of the same database."""
    return _Again(database_url)


class _Again:
    def __init__(self, url: str) -> None:
        from postroom import Room

        self._room = Room(database_url=url, webhooks={"stripe": {"secrets": ["whsec_of_the_tests"]}})

    async def __aenter__(self) -> Workshop:
        return Workshop(await self._room.open())

    async def __aexit__(self, *_: object) -> None:
        await self._room.close()
