"""Replay: which events run again, and which handlers of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import Any

import pytest

from postroom.database.audit import Actor
from postroom.database.connect import Database
from postroom.errors import ConfigError
from postroom.webhooks import replay as replaying
from postroom.webhooks.replay import Selection, UnknownHandler, UnknownSource, preview, replay, select_events
from postroom.webhooks.schemes import SCHEMES
from postroom.webhooks.source import Handler, Source

SINCE = datetime.now(UTC) - timedelta(days=1)

ADA = Actor("ada@house", "cli")
SHOP = Handler("shop", ("checkout.*",), sql="public.on_checkout")
AUDIT = Handler("audit", sql="public.on_any")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url)
    yield opened
    await opened.close()


def sources(*handlers: Handler) -> dict[str, Source]:
    return {"stripe": Source("stripe", SCHEMES["stripe"], ("whsec_x",), handlers=handlers)}


async def insert(database: Database, event_id: str, **columns: Any) -> None:
    """An event that shop is done with; columns say what is different."""
    row = {
        "webhook_type": "stripe",
        "webhook_event_id": event_id,
        "event_type": "checkout.paid",
        "payload": "{}",
        "status": "processed",
        "handlers_done": ["shop"],
        "created_at": datetime.now(UTC) - timedelta(hours=1),
        "attempts": 1,
        **columns,
    }
    places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
    await database.execute(
        f"INSERT INTO webhook_retry_queue ({', '.join(row)}) VALUES ({places})", *row.values()
    )


async def select(
    database: Database, *handlers: Handler, handler: str | None = None, since: datetime = SINCE
) -> Selection:
    return await select_events(database, sources(*handlers), "stripe", since, handler=handler)


async def pending(database: Database) -> dict[str, list[str]]:
    """The events that wait, each with the handlers that are done."""
    rows = await database.fetch(
        "SELECT webhook_event_id, handlers_done FROM webhook_retry_queue WHERE status = 'pending'"
    )
    return {row["webhook_event_id"]: row["handlers_done"] for row in rows}


async def test_events_that_miss_a_handler_run_again(database: Database) -> None:
    """Processed or dead; with all attempts again, and what is done stays done."""
    await insert(database, "all done", handlers_done=["shop", "audit"])
    await insert(database, "misses audit")
    await insert(
        database, "dead", status="dead_letter", attempts=6, dead_reason="exhausted", handlers_done=[]
    )
    await insert(database, "unhandled", handlers_done=[], metadata='{"unhandled": true, "mine": 1}')
    assert (await replay(database, await select(database, SHOP, AUDIT), ADA)).count == 3
    assert await pending(database) == {"misses audit": ["shop"], "dead": [], "unhandled": []}
    rows = await database.fetch(
        "SELECT DISTINCT attempts, dead_reason, metadata ? 'unhandled' AS unhandled, due_at <= now() AS due "
        "FROM webhook_retry_queue WHERE status = 'pending'"
    )
    assert [tuple(row) for row in rows] == [(0, None, False, True)]


async def test_a_named_handler_runs_again_for_the_types_that_it_wants(database: Database) -> None:
    """And what an event has missed besides runs with it."""
    await insert(database, "done", handlers_done=["shop", "audit"])
    await insert(database, "missed too", handlers_done=[])
    await insert(database, "other type", event_type="invoice.paid", handlers_done=[])
    assert (await replay(database, await select(database, SHOP, AUDIT, handler="shop"), ADA)).count == 2
    assert await pending(database) == {"done": ["audit"], "missed too": []}


async def test_what_was_discarded_is_under_way_or_is_out_of_the_time_is_left_alone(
    database: Database,
) -> None:
    """Also other sources' events."""
    now = datetime.now(UTC)
    others: list[dict[str, Any]] = [
        {"status": "failed"},
        {"status": "processing"},
        {"created_at": SINCE - timedelta(seconds=1)},
        {"created_at": now + timedelta(hours=1)},
        {"webhook_type": "github"},
    ]
    for place, columns in enumerate(others):
        await insert(database, f"event {place}", handlers_done=[], **columns)
    await insert(database, "at the start", handlers_done=[], created_at=SINCE)
    assert (await preview(database, await select(database, SHOP, AUDIT), 9))[1] == 1
    assert (await replay(database, await select(database, SHOP, AUDIT), ADA)).count == 1
    assert list(await pending(database)) == ["at the start"]


async def test_handlers_of_programs_count_as_those_of_postroom_toml(database: Database) -> None:
    """They stand in postroom.handlers; a source may have none but them."""
    await insert(database, "stripe's")
    await insert(database, "github's", webhook_type="github", event_type="push", handlers_done=[])
    await database.execute(
        "INSERT INTO postroom.handlers VALUES ('shop:room', 'stripe', 'mails', '{checkout.paid,x}'), "
        "('shop:room', 'github', 'builds', '{push}')"
    )
    assert (await replay(database, await select(database, SHOP), ADA)).count == 1
    selection = await select_events(database, sources(SHOP), "github", SINCE, handler="builds")
    assert (await replay(database, selection, ADA)).count == 1
    assert await pending(database) == {"stripe's": ["shop"], "github's": []}


async def test_a_preview_tells_the_oldest_and_changes_nothing(database: Database) -> None:
    """With the handlers that would run."""
    now = datetime.now(UTC)
    for minutes in range(5):
        await insert(database, f"{minutes} min ago", created_at=now - timedelta(minutes=minutes))
    selection = await select(database, SHOP, AUDIT, handler="shop")
    chosen, total = await preview(database, selection, 2)
    assert total == 5
    assert [(one.event_id, one.handlers) for one in chosen] == [
        ("4 min ago", ("audit", "shop")),
        ("3 min ago", ("audit", "shop")),
    ]
    assert await pending(database) == {}


async def test_many_events_go_in_batches_and_each_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several pages and batches, equal times among them; a worker that is quick makes none go twice."""
    monkeypatch.setattr(replaying, "PAGE_ROWS", 100)
    monkeypatch.setattr(replaying, "BATCH_ROWS", 40)
    at = datetime.now(UTC) - timedelta(hours=1)
    await database.execute(
        """
        INSERT INTO webhook_retry_queue (
            webhook_type, event_type, payload, status, handlers_done, created_at
        )
        SELECT
            'stripe', 'checkout.paid', '{}', 'processed', '{shop}',
            $1::timestamptz + n / 70 * interval '1 s'
        FROM generate_series(1, 250) AS n
        """,
        at,
    )
    # What it replays is processed again at once.
    await database.execute(
        """
        CREATE FUNCTION handled_at_once() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.status := 'processed';
            NEW.handlers_done := '{shop}';
            NEW.error_count := OLD.error_count + 1;
            RETURN NEW;
        END;
        $$;
        CREATE TRIGGER at_once BEFORE UPDATE ON webhook_retry_queue
        FOR EACH ROW WHEN (NEW.status = 'pending') EXECUTE FUNCTION handled_at_once()
        """
    )
    told: list[int] = []
    done = await replay(database, await select(database, SHOP, handler="shop"), ADA, told.append)
    assert done.count == 250
    assert told[-1] == 250
    assert max(later - before for before, later in pairwise([0, *told])) == 40
    assert await database.fetchval("SELECT array_agg(DISTINCT error_count) FROM webhook_retry_queue") == [1]


async def test_a_row_that_refuses_its_update_stops_no_other(database: Database) -> None:
    """An application's own trigger; its error is told."""
    for event_id in ("good", "refuses", "good too"):
        await insert(database, event_id)
    await database.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'not that one';
        END;
        $$;
        CREATE TRIGGER refuses BEFORE UPDATE ON webhook_retry_queue
        FOR EACH ROW WHEN (OLD.webhook_event_id = 'refuses') EXECUTE FUNCTION refuse()
        """
    )
    done = await replay(database, await select(database, AUDIT), ADA)
    assert (done.count, done.refused, done.why) == (2, 1, "not that one")
    assert set(await pending(database)) == {"good", "good too"}


async def test_what_nobody_has_is_named_with_what_there_is(database: Database) -> None:
    """A source, a handler, and a source without any handler."""
    await database.execute("INSERT INTO postroom.handlers VALUES ('shop:room', 'github', 'builds', '{push}')")
    with pytest.raises(UnknownSource, match="there is no source 'strip'; sources: stripe, github"):
        await select_events(database, sources(SHOP), "strip", SINCE)
    with pytest.raises(UnknownHandler, match="no handler 'shp'; handlers: shop, audit"):
        await select(database, SHOP, AUDIT, handler="shp")
    with pytest.raises(ConfigError, match="source stripe has no handler"):
        await select(database)


async def test_an_event_without_a_type_is_for_those_that_take_all(database: Database) -> None:
    """Such as the rows of an old caller."""
    await insert(database, "no type", event_type=None, handlers_done=[])
    assert (await preview(database, await select(database, SHOP), 1))[1] == 0
    chosen, _ = await preview(database, await select(database, SHOP, AUDIT), 1)
    assert chosen[0].handlers == ("audit",)


async def test_a_pattern_means_the_same_in_sql_as_in_python(database: Database) -> None:
    """Every short one of the characters that LIKE has a meaning for, against every such type and none."""
    texts = ["".join(text) for length in (1, 2, 3) for text in product("a*%_\\\n", repeat=length)]
    rows = await database.fetch(
        """
        SELECT pattern.place AS pattern, type.place AS type
        FROM unnest($1::text[]) WITH ORDINALITY AS pattern (text, place)
        CROSS JOIN unnest($2::text[]) WITH ORDINALITY AS type (text, place)
        WHERE pattern.text = '%' OR type.text LIKE pattern.text
        """,
        [replaying._like(text) for text in texts],
        [*texts, None],
    )
    in_sql = {(row["pattern"], row["type"]) for row in rows}
    in_python = {
        (pattern_place, type_place)
        for pattern_place, pattern in enumerate(texts, 1)
        for type_place, event_type in enumerate([*texts, None], 1)
        if Handler("any", (pattern,)).wants(event_type)
    }
    assert in_sql == in_python
