"""SQL handlers: many events share a statement, and each has a transaction of its own."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import suppress
from typing import Any

import asyncpg
import psycopg
import pytest

from postroom.database.migrate import migrate
from postroom.errors import DatabaseUnavailable
from postroom.queue.engine import Pass
from postroom.webhooks.delivery import Delivery
from postroom.webhooks.store import WebhookStore
from tests.support.postgres import SETTINGS, running_server
from tests.support.proxy import CUT_AFTER, CUT_BEFORE, running_proxy
from tests.support.waiting import until
from tests.webhooks.workshop import Workshop, open_workshop

SQL = {"name": "sql", "sql": "public.handle"}
EVENTS = 120
RAISES_AT_EACH_THIRD = """
    BEGIN
        INSERT INTO effects (handler, event_id) VALUES ('sql', event_id);
        IF substr(event_id, 5)::integer % 3 = 0 THEN
            RAISE EXCEPTION 'no stock' USING ERRCODE = 'unique_violation', DETAIL = 'none of it';
        END IF;
    END
"""


async def define(shop: Workshop, body: str) -> None:
    """The handler's function, in plpgsql."""
    await shop.room.database.execute(
        f"""
        CREATE FUNCTION public.handle(payload jsonb, event_id text) RETURNS void LANGUAGE plpgsql
        AS $f$ {body} $f$
        """
    )


async def keep(shop: Workshop, count: int = EVENTS, **how: Any) -> None:
    for number in range(count):
        await shop.keep(f"evt_{number}", **how)


async def drain(shop: Workshop) -> Pass:
    await shop.room.prepare_handlers()
    return await shop.room.webhook_engine().run_pass(until_nothing_due=True)


async def states(shop: Workshop) -> Counter[tuple[str, int, int]]:
    """How many rows there are of each (status, attempts, error_count)."""
    rows = await shop.room.database.fetch("SELECT status, attempts, error_count FROM webhook_retry_queue")
    return Counter((row["status"], row["attempts"], row["error_count"]) for row in rows)


def once(*numbers: int) -> list[tuple[str, str]]:
    return sorted(("sql", f"evt_{number}") for number in numbers)


async def test_events_share_a_statement_and_not_a_transaction(database_url: str) -> None:
    """Few statements, as many transactions as events, and now() is each one's own."""
    async with open_workshop(database_url, SQL) as shop:
        await shop.room.database.execute(
            "CREATE TABLE calls (began timestamptz, pid integer, xid text, at timestamptz)"
        )
        await define(
            shop,
            """BEGIN INSERT INTO calls
            VALUES (statement_timestamp(), pg_backend_pid(), pg_current_xact_id()::text, now()); END""",
        )
        await keep(shop)
        ended = await drain(shop)
        counts = await shop.room.database.fetchrow(
            "SELECT count(DISTINCT (began, pid)), count(DISTINCT xid), count(DISTINCT (at, pid)) FROM calls"
        )
    assert ended.done == EVENTS
    assert counts is not None
    statements, transactions, times = counts
    assert statements < EVENTS / 2
    assert (transactions, times) == (EVENTS, EVENTS)


async def test_an_event_that_raises_is_undone_alone(database_url: str) -> None:
    """Each third: its row says what the function raised; all others are done at their first attempt."""
    async with open_workshop(database_url, SQL) as shop:
        await define(shop, RAISES_AT_EACH_THIRD)
        await keep(shop)
        ended = await drain(shop)
        third = EVENTS // 3
        assert (ended.done, ended.failed) == (EVENTS - third, third)
        assert await states(shop) == {("processed", 1, 0): EVENTS - third, ("pending", 1, 1): third}
        assert sorted(await shop.effects()) == once(*(n for n in range(EVENTS) if n % 3))
        assert (await shop.row("evt_3"))["last_error"] == "sql: UniqueViolationError: no stock"


async def test_a_deferred_constraint_fails_its_own_event(database_url: str) -> None:
    """It is checked at the commit, which is no other event's."""
    async with open_workshop(database_url, SQL) as shop:
        await shop.room.database.execute(
            """
            CREATE TABLE customers (id text PRIMARY KEY);
            INSERT INTO customers SELECT 'evt_' || n FROM generate_series(0, 200) AS n WHERE n <> 60;
            ALTER TABLE effects ADD FOREIGN KEY (event_id) REFERENCES customers DEFERRABLE INITIALLY DEFERRED
            """
        )
        await define(shop, "BEGIN INSERT INTO effects (handler, event_id) VALUES ('sql', event_id); END")
        await keep(shop)
        await drain(shop)
        assert await states(shop) == {("processed", 1, 0): EVENTS - 1, ("pending", 1, 1): 1}
        assert sorted(await shop.effects()) == once(*(n for n in range(EVENTS) if n != 60))
        assert "ForeignKeyViolationError" in (await shop.row("evt_60"))["last_error"]


async def test_settings_of_an_event_end_with_it(database_url: str) -> None:
    """Role, path and a variable of the application: the next event finds none of them."""
    async with open_workshop(database_url, SQL) as shop:
        await define(
            shop,
            """
            BEGIN
                INSERT INTO public.effects (handler, event_id) VALUES (concat_ws(
                    ' ', current_setting('role'), current_setting('search_path') = 'nowhere',
                    NULLIF(current_setting('shop.tenant', true), '')
                ), event_id);
                SET LOCAL search_path = nowhere;
                PERFORM set_config('shop.tenant', event_id, true);
                PERFORM pg_advisory_xact_lock(7);
                SET LOCAL ROLE service_role;
            END
            """,
        )
        await keep(shop, 60)
        ended = await drain(shop)
        found = {handler for handler, _ in await shop.effects()}
    assert (ended.done, found) == (60, {"none f"})


async def test_an_event_that_is_held_up_does_not_hold_up_the_others(database_url: str) -> None:
    """One waits for a lock of the application's; those in its statement are done meanwhile, each once."""
    async with open_workshop(database_url, SQL) as shop:
        await define(
            shop,
            """
            BEGIN
                INSERT INTO effects (handler, event_id) VALUES ('sql', event_id);
                IF event_id = 'evt_60' THEN
                    PERFORM pg_advisory_xact_lock(42);
                END IF;
            END
            """,
        )
        await keep(shop)
        async with shop.room.database.transaction() as application:
            await application.execute("SELECT pg_advisory_xact_lock(42)")
            working = asyncio.create_task(drain(shop))
            await until(lambda: shop_has(shop, "processed", EVENTS - 1))
            assert not working.done()
        ended = await working
        assert ended.done == EVENTS
        assert sorted(await shop.effects()) == once(*range(EVENTS))


async def shop_has(shop: Workshop, status: str, count: int) -> bool:
    found = await shop.room.database.fetchval(
        "SELECT count(*) FROM webhook_retry_queue WHERE status = $1", status
    )
    return bool(found == count)


async def test_an_event_holds_no_lock_for_the_next_one(database_url: str) -> None:
    """The application takes two rows in any order, events one each: nobody is a deadlock's victim."""
    async with open_workshop(database_url, SQL) as shop:
        await shop.room.database.execute(
            """
            CREATE TABLE stock (id integer PRIMARY KEY, n integer DEFAULT 0);
            INSERT INTO stock VALUES (0), (1)
            """
        )
        await define(
            shop,
            """
            BEGIN
                UPDATE stock SET n = n + 1 WHERE id = substr(event_id, 5)::integer % 2;
                PERFORM pg_sleep(0.001);
            END
            """,
        )
        await keep(shop)
        working = asyncio.create_task(drain(shop))
        rounds = 0
        application = await asyncpg.connect(database_url)
        try:
            while not working.done():
                async with application.transaction():
                    for row in (rounds % 2, 1 - rounds % 2):
                        await application.execute("UPDATE stock SET n = n + 100000 WHERE id = $1", row)
                rounds += 1
                await asyncio.sleep(0)
        finally:
            await application.close()
        assert (await working).done == EVENTS
        assert await states(shop) == {("processed", 1, 0): EVENTS}
        rows = await shop.room.database.fetch("SELECT n FROM stock")
    assert [row["n"] for row in rows] == [EVENTS // 2 + 100_000 * rounds] * 2


async def test_a_statement_timeout_fails_the_event_that_takes_long(database_url: str) -> None:
    """It ends the statement of all; the others are done all the same, at their first attempt."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        name = owner.info.dbname
        owner.execute(f"ALTER DATABASE \"{name}\" SET statement_timeout = '700ms'")
    async with open_workshop(database_url, SQL) as shop:
        await define(
            shop,
            """
            BEGIN
                INSERT INTO effects (handler, event_id) VALUES ('sql', event_id);
                IF event_id = 'evt_60' THEN PERFORM pg_sleep(60); END IF;
            END
            """,
        )
        await keep(shop)
        await drain(shop)
        assert await states(shop) == {("processed", 1, 0): EVENTS - 1, ("pending", 1, 1): 1}
        assert sorted(await shop.effects()) == once(*(n for n in range(EVENTS) if n != 60))
        assert "statement timeout" in (await shop.row("evt_60"))["last_error"]


async def test_an_event_that_ends_its_connection_takes_no_other_along(database_url: str) -> None:
    """Each is called for alone then: one has failed, the others are done at their first attempt."""
    async with open_workshop(database_url, SQL) as shop:
        await define(
            shop,
            """
            BEGIN
                INSERT INTO effects (handler, event_id) VALUES ('sql', event_id);
                IF event_id = 'evt_60' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
            END
            """,
        )
        await keep(shop)
        await drain(shop)
        assert await states(shop) == {("processed", 1, 0): EVENTS - 1, ("pending", 1, 1): 1}
        assert sorted(await shop.effects()) == once(*(n for n in range(EVENTS) if n != 60))


async def test_an_event_whose_lease_is_lost_during_the_call_is_not_handled(database_url: str) -> None:
    """The first event takes the leases of the last ones away: nothing of those is left."""
    async with open_workshop(database_url, SQL) as shop:
        await define(
            shop,
            """
            BEGIN
                INSERT INTO effects (handler, event_id) VALUES ('sql', event_id);
                IF event_id = 'evt_0' THEN
                    UPDATE webhook_retry_queue SET lease_no = lease_no + 1, leased_by = gen_random_uuid()
                    WHERE webhook_event_id IN (SELECT 'evt_' || n FROM generate_series(90, 99) AS n)
                        AND status = 'processing';
                END IF;
            END
            """,
        )
        await keep(shop, 100)
        await shop.room.prepare_handlers()
        await shop.room.webhook_engine().run_pass()
        lost = [
            int(row["webhook_event_id"].removeprefix("evt_"))
            for row in await shop.room.database.fetch(
                "SELECT webhook_event_id FROM webhook_retry_queue WHERE status <> 'processed'"
            )
        ]
        assert 1 <= len(lost) <= 10
        assert sorted(await shop.effects()) == once(*(n for n in range(100) if n not in lost))


@pytest.mark.parametrize("cut", [CUT_BEFORE, CUT_AFTER], ids=["before", "after"])
async def test_a_call_whose_connection_is_lost_costs_no_attempt(database_url: str, cut: Any) -> None:
    """Whether it was heard or only its answer was lost: each event is handled once, at its first attempt."""
    async with open_workshop(database_url, SQL) as shop:
        await define(shop, "BEGIN INSERT INTO effects (handler, event_id) VALUES ('sql', event_id); END")
        await keep(shop)
        with running_proxy(int(psycopg.conninfo.conninfo_to_dict(database_url)["port"] or 5432)) as proxy:
            lost = proxy.on("handle_webhooks", cut)
            async with open_workshop_again(proxy.url_of(database_url)) as through:
                assert (await drain(through)).done == EVENTS
            assert lost.fired == 1
        assert await states(shop) == {("processed", 1, 0): EVENTS}
        assert sorted(await shop.effects()) == once(*range(EVENTS))


def open_workshop_again(url: str) -> Any:
    """The same source over another way to the database."""
    from contextlib import asynccontextmanager

    from postroom import Room
    from tests.webhooks.workshop import SECRET

    @asynccontextmanager
    async def opened() -> Any:
        source = {"secrets": [SECRET], "handlers": [SQL]}
        async with Room(database_url=url, webhooks={"stripe": source}) as room:
            yield Workshop(room)

    return opened()


async def test_an_event_that_was_attempted_before_goes_alone(database_url: str) -> None:
    """If it is poison, no other event is blamed: it shares no statement."""
    async with open_workshop(database_url, SQL) as shop:
        await shop.room.database.execute("CREATE TABLE calls (began timestamptz, pid integer)")
        await define(shop, "BEGIN INSERT INTO calls VALUES (statement_timestamp(), pg_backend_pid()); END")
        await keep(shop)
        await shop.room.database.execute("UPDATE webhook_retry_queue SET attempts = 1")
        await drain(shop)
        statements = await shop.room.database.fetchval("SELECT count(DISTINCT (began, pid)) FROM calls")
    assert statements == EVENTS


async def test_slow_handlers_run_beside_each_other(database_url: str) -> None:
    """Ten at once, as many as may hold a transaction open; none waits behind another in one statement."""
    async with open_workshop(database_url, SQL) as shop:
        await define(shop, "BEGIN PERFORM pg_advisory_xact_lock_shared(42); END")
        await keep(shop, 30)
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with shop.room.database.transaction() as application:
            await application.execute("SELECT pg_advisory_xact_lock(42)")
            working = asyncio.create_task(drain(shop))

            async def are_ten() -> bool:
                return bool(await shop.room.database.fetchval(waiting) == 10)

            await until(are_ten)
        assert (await working).done == 30


async def test_events_of_a_lane_keep_their_order(database_url: str) -> None:
    """In the provider's, one after the other, though other lanes' share their statements."""
    async with open_workshop(database_url, SQL) as shop:
        await define(shop, "BEGIN INSERT INTO effects (handler, event_id) VALUES ('sql', event_id); END")
        for place in (3, 1, 4, 2, 0):
            for lane in "abcdefgh":
                await shop.keep(f"{lane}{place}", lane=lane, lane_place=str(place))
        await drain(shop)
        effects = [event_id for _, event_id in await shop.effects()]
    assert len(effects) == 40
    for lane in "abcdefgh":
        assert [one for one in effects if one[0] == lane] == [f"{lane}{place}" for place in range(5)]


async def test_what_is_settled_as_processed_outlives_a_crash_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    PostgreSQL is killed when the worker knows that events are handled, and has settled none of them.

    Their commits wait for the disk together: were they not there, the repeated settle would call an event
    processed whose effect is gone.
    """
    settings = (
        SETTINGS.replace("synchronous_commit = off", "synchronous_commit = on") + "wal_writer_delay = 10s\n"
    )
    with running_server(settings=settings) as server:
        url = server.url_of(server.create_database())
        await migrate(url)
        async with open_workshop(url, SQL) as shop:
            await define(shop, "BEGIN INSERT INTO effects (handler, event_id) VALUES ('sql', event_id); END")
            await keep(shop)
            settle, crashes = Delivery.settle, 0

            async def crash_first(delivery: Delivery, *arguments: Any) -> Any:
                nonlocal crashes
                if crashes < 3:
                    crashes += 1
                    server.stop(signal.SIGQUIT)
                    server.start()
                return await settle(delivery, *arguments)

            monkeypatch.setattr(Delivery, "settle", crash_first)
            await shop.room.prepare_handlers()
            stop = asyncio.Event()
            worker = asyncio.create_task(shop.room.webhook_engine().run(stop))
            await until(lambda: _all_processed(shop))
            stop.set()
            await worker
            assert crashes == 3
            assert sorted(await shop.effects()) == once(*range(EVENTS))


async def _all_processed(shop: Workshop) -> bool:
    with suppress(DatabaseUnavailable):
        await shop.room.database.execute(
            "UPDATE webhook_retry_queue SET next_retry_at = NULL, due_at = NULL WHERE status = 'pending'"
        )
        return await shop_has(shop, "processed", EVENTS)
    return False


async def test_a_call_may_be_repeated(database_url: str) -> None:
    """What it has done is not done again; a function that is not there fails each event."""
    async with open_workshop(database_url) as shop:
        await define(shop, "BEGIN INSERT INTO effects (handler, event_id) VALUES ('sql', event_id); END")
        await keep(shop, 3)
        store, worker = WebhookStore(shop.room.database), await shop.keep("evt_3")
        await shop.room.database.execute(
            "SELECT postroom.register_worker($1, 'webhook', 'h', 1, '0', true, false, '{}')", worker
        )
        claims = await store.claim(worker, 4, None)
        for _ in range(2):
            handled = await store.handle(worker, claims, "sql", "public.handle", limit_s=5, deadline_s=5)
            assert [one is not None and one.error for one in handled] == [None] * 4
        assert sorted(await shop.effects()) == once(*range(4))
        handled = await store.handle(worker, claims, "other", "public.none", limit_s=5, deadline_s=5)
        assert [type(one and one.error) for one in handled] == [asyncpg.UndefinedFunctionError] * 4
        handled = await store.handle(worker, claims, "third", "public.handle", limit_s=0, deadline_s=5)
        assert [one is None for one in handled] == [False, True, True, True]
