"""What a person does to all dead letters of a group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from postroom import Room
from postroom.database.audit import Actor
from postroom.errors import PostroomError
from postroom.queue import bulk
from postroom.queues import EMAILS, QUEUES
from tests.http.conftest import settings_of

BY = Actor("ada", "cli")


@pytest.fixture
async def room(database_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    """Over a fresh database."""
    async with Room(**settings_of(database_url, tmp_path)) as opened:
        yield opened


async def _die(room: Room, count: int, at: str = "clock_timestamp()", reason: str = "exhausted") -> None:
    await room.database.execute(
        f"""
        INSERT INTO email_queue (to_email, subject, html, status, dead_reason, last_error, failed_at)
        SELECT n || '@example.com', 's', 'h', 'dead_letter', '{reason}', '421 no ' || n, {at}
        FROM generate_series(1, {count}) AS n
        """
    )


async def _statuses(room: Room) -> dict[str, int]:
    rows = await room.database.fetch("SELECT status, count(*) FROM email_queue GROUP BY 1")
    return {row["status"]: row["count"] for row in rows}


async def _begin(room: Room, **options: Any) -> Any:
    return await bulk.begin(
        room.database,
        QUEUES,
        options.pop("what", "retry"),
        reason=options.pop("reason", None),
        by=BY,
        **options,
    )


async def test_all_are_done_however_they_died(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one moment, at no time, and by a clock that is ahead; both queues."""
    monkeypatch.setattr(bulk, "STEP_ROWS", 7)
    await _die(room, 20)
    await _die(room, 20, at="timestamptz '2026-01-01'")
    await _die(room, 3, at="now() + interval '1 day'")
    await room.database.execute(
        "UPDATE email_queue SET failed_at = NULL WHERE to_email = '1@example.com' AND failed_at < now()"
    )
    await room.database.execute(
        "INSERT INTO webhook_retry_queue (webhook_type, payload, status) VALUES ('s', '{}', 'dead_letter')"
    )
    action_id = await _begin(room)
    changed = await bulk.run(room.database, action_id, BY)
    assert (len(changed.done), len(set(changed.done)), changed.missed) == (44, 44, {})
    assert await _statuses(room) == {"pending": 43}
    action = await bulk.read_action(room.database, action_id)
    assert action is not None
    assert (action.state, action.total, action.done) == ("done", 44, 44)


@pytest.mark.parametrize(("reason", "count"), [("poison", 2), ("421 NO 3", 1), ("none", 0), ("x", 0)])
async def test_a_group_is_a_reason_or_a_part_of_the_error(room: Room, reason: str, count: int) -> None:
    """Others stay as they are."""
    await _die(room, 3)
    await _die(room, 2, reason="poison")
    changed = await bulk.run(room.database, await _begin(room, reason=reason), BY)
    assert len(changed.done) == count


async def test_an_action_that_was_broken_off_goes_on_where_it_was(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has died again behind its place is not taken twice."""
    monkeypatch.setattr(bulk, "STEP_ROWS", 5)
    await _die(room, 12)
    action_id, stop = await _begin(room), asyncio.Event()
    first = await bulk.run(room.database, action_id, BY, stop=stop, report=lambda _: stop.set())
    action = await bulk.read_action(room.database, action_id)
    assert action is not None
    assert (action.state, action.done, len(first.done)) == ("interrupted", 5, 5)
    await room.database.execute(
        "UPDATE email_queue SET status = 'dead_letter' WHERE id = ANY ($1)", first.done
    )
    rest = await bulk.run(room.database, action_id, BY)
    assert len(rest.done) == 7
    assert not set(rest.done) & set(first.done)
    assert await _statuses(room) == {"pending": 7, "dead_letter": 5}


async def test_one_works_on_it_at_a_time_and_a_person_stops_it(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end stands in the audit trail."""
    monkeypatch.setattr(bulk, "STEP_ROWS", 2)
    await _die(room, 9)
    action_id, refused = await _begin(room, what="discard", note="gone"), []

    async def meanwhile() -> None:
        try:
            await bulk.run(room.database, action_id, BY)
        except PostroomError as error:
            refused.append(str(error))
        await bulk.stop_action(room.database, action_id, Actor("eve", "operator"))

    tasks: list[asyncio.Task[None]] = []
    await bulk.run(
        room.database, action_id, BY, report=lambda _: tasks.append(asyncio.create_task(meanwhile()))
    )
    await asyncio.gather(*tasks)
    action = await bulk.read_action(room.database, action_id)
    assert action is not None
    assert refused
    assert action.state in ("stopped", "done")
    rows = await room.database.fetch("SELECT about ->> 'state' AS state FROM postroom.audit ORDER BY id")
    assert [row["state"] for row in rows] == ["begun", action.state]


async def test_a_row_that_refuses_or_is_held_stops_no_other(room: Room) -> None:
    """Both stay dead letters, and are counted with the first one's error."""
    await _die(room, 4)
    await room.database.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'not this one'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON email_queue
            FOR EACH ROW WHEN (OLD.to_email = '1@example.com') EXECUTE FUNCTION refuse();
        """
    )
    action_id = await bulk.begin(room.database, [EMAILS], "retry", reason=None, by=BY)
    async with room.database.transaction() as holder:
        await holder.execute("SELECT FROM email_queue WHERE to_email = '2@example.com' FOR UPDATE")
        changed = await bulk.run(room.database, action_id, BY)
    assert (len(changed.done), len(changed.missed)) == (2, 2)
    assert await _statuses(room) == {"pending": 2, "dead_letter": 2}
    action = await bulk.read_action(room.database, action_id)
    assert action is not None
    assert (action.done, action.refused, action.why) == (2, 2, "another transaction holds it")
