"""Lists of a queue: every row once, in order, whatever is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from postroom import Room
from postroom.queue import search
from postroom.queue.parts import STATES, State
from postroom.queue.search import Filters, InvalidCursor, Listing, list_rows
from postroom.queues import EMAILS, QUEUES, WEBHOOKS


async def _all(
    room: Room, state: State, filters: Filters | None = None, *, limit: int = 3, queues: Any = (EMAILS,)
) -> list[dict[str, Any]]:
    """All pages, forwards."""
    return [row for page in await _pages(room, state, filters, limit=limit, queues=queues) for row in page]


async def _pages(
    room: Room, state: State, filters: Filters | None = None, *, limit: int = 3, queues: Any = (EMAILS,)
) -> list[list[dict[str, Any]]]:
    """Forwards through all pages, and back: both ways show the same rows."""
    pages: list[Listing] = []
    after = None
    while True:
        page = await list_rows(room.database, queues, state, filters, after=after, limit=limit)
        assert len(page.rows) <= limit
        assert (page.previous is None) is (after is None)
        pages.append(page)
        after = page.next
        if after is None:
            break
    before, backwards = pages[-1].previous, [pages[-1].rows]
    while before is not None:
        page = await list_rows(room.database, queues, state, filters, before=before, limit=limit)
        backwards.insert(0, page.rows)
        before = page.previous
    forwards = [row["id"] for page in pages for row in page.rows]
    assert [row["id"] for rows in backwards for row in rows] == forwards
    return [page.rows for page in pages]


@pytest.fixture
async def room(database_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    """A room over a fresh database."""
    async with Room(database_url=database_url, transport=f"maildir:{tmp_path}") as one:
        yield one


@pytest.fixture
async def filled(room: Room) -> Room:
    """Ten rows of each status, some with equal times, some that an old caller left without one."""
    await room.database.execute(
        """
        INSERT INTO email_queue (
            to_email, subject, html, status, priority, sent_at, failed_at, due_at, last_error
        )
        SELECT
            'user' || n || '@example.com', 'Subject ' || n, '', status, n % 2,
            CASE WHEN status = 'sent' AND n > 1 THEN '2026-01-01'::timestamptz + n / 3 * interval '1 day' END,
            CASE WHEN status IN ('dead_letter', 'failed') AND n <> 4 THEN '2026-01-01'::timestamptz END,
            CASE WHEN status IN ('pending', 'processing') THEN now() + n / 2 * interval '1 day' END,
            CASE WHEN n = 7 THEN '550 100%_sure no' END
        FROM generate_series(1, 10) AS n
        CROSS JOIN unnest(ARRAY['pending', 'processing', 'sent', 'dead_letter', 'failed']) AS status
        """
    )
    return room


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("limit", [1, 3, 50])
async def test_every_row_is_on_exactly_one_page_forwards_and_back(
    filled: Room, state: State, limit: int
) -> None:
    """Also those with equal times, and those without one."""
    rows = await _all(filled, state, limit=limit)
    assert len(rows) == len({row["id"] for row in rows}) == (50 if state == "all" else 10)
    if state != "all":
        status = {"waiting": "pending", "in_flight": "processing", "done": "sent"}.get(state, state)
        assert {row["status"] for row in rows} == {status}


async def test_what_waits_is_in_the_order_in_which_it_goes_and_all_else_newest_first(filled: Room) -> None:
    """By priority, then by due time; what has no time comes last."""
    waiting = await filled.database.fetch(
        "SELECT id FROM email_queue WHERE status = 'pending' ORDER BY priority DESC, due_at, id"
    )
    assert [row["id"] for row in await _all(filled, "waiting")] == [row["id"] for row in waiting]
    sent = await filled.database.fetch(
        "SELECT id FROM email_queue WHERE status = 'sent' ORDER BY sent_at DESC NULLS LAST, id DESC"
    )
    assert [row["id"] for row in await _all(filled, "done")] == [row["id"] for row in sent]


@pytest.mark.parametrize(
    ("text", "subjects"),
    [("USER3@", {"Subject 3"}), ("subject 10", {"Subject 10"}), ("100%_SURE", {"Subject 7"}), ("x_y", set())],
)
async def test_a_text_is_found_anywhere_and_in_any_case(filled: Room, text: str, subjects: set[str]) -> None:
    """In addresses, subjects and errors; % and _ stand for themselves."""
    assert {row["subject"] for row in await _all(filled, "done", Filters(text=text))} == subjects


async def test_a_search_that_takes_long_says_how_far_it_came_and_goes_on_there(
    filled: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page takes long, however much there is to look through; what is there is found in the end."""
    monkeypatch.setattr(search, "SCAN_ROWS", (2, 2))
    monkeypatch.setattr(search, "LOOK_S", 0.0)
    first = await list_rows(filled.database, [EMAILS], "done", Filters(text="user1@"))
    assert (first.rows, first.looked_through) == ([], 2)
    assert first.next is not None
    assert first.looked_to is not None
    assert [row["to_email"] for row in await _all(filled, "done", Filters(text="user1@"))] == [
        "user1@example.com"
    ]


async def test_events_are_listed_too(room: Room) -> None:
    """With their source, id and type."""
    await room.database.execute(
        """
        INSERT INTO webhook_retry_queue (
            webhook_type, webhook_event_id, event_type, payload, status, processed_at
        )
        VALUES ('stripe', 'evt_1', 'invoice.paid', '{}', 'processed', now())
        """
    )
    page = await list_rows(room.database, [WEBHOOKS], "done", Filters(text="INVOICE"))
    assert [row["webhook_event_id"] for row in page.rows] == ["evt_1"]
    assert page.next is None


def _day(day: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)


@pytest.mark.parametrize(
    ("filters", "subjects"),
    [
        (Filters(columns={"to": "USER3@"}), {3}),
        (Filters(columns={"to": "user1", "subject": "10"}), {10}),
        (Filters(columns={"to": "user1", "subject": "2"}), set()),
        (Filters(columns={"error": "550"}), {7}),
        (Filters(since=_day(2)), {6, 7, 8, 9, 10}),
        (Filters(until=_day(2)), {2, 3, 4, 5}),
        (Filters(since=_day(1), until=_day(2)), {3, 4, 5}),
        (Filters(since=_day(1), until=_day(2), columns={"subject": "4"}, text="user4@"), {4}),
        (Filters(since=_day(4)), set()),
    ],
)
async def test_what_is_asked_for_holds_all_together(
    filled: Room, filters: Filters, subjects: set[int]
) -> None:
    """A text in one column, a time, and a text anywhere; `since` belongs to it, `until` does not."""
    found = await _all(filled, "done", filters)
    assert {row["subject"] for row in found} == {f"Subject {number}" for number in subjects}


async def test_what_waits_is_asked_for_by_when_it_was_queued(filled: Room) -> None:
    """Its due time may be far ahead; in the list of all, each row is asked for its own time."""
    await filled.database.execute(
        "UPDATE email_queue SET created_at = $1 WHERE subject = 'Subject 5'", _day(1)
    )
    queued_then = Filters(since=_day(0.5), until=_day(1.5))
    assert [row["subject"] for row in await _all(filled, "waiting", queued_then)] == ["Subject 5"]
    found = await _all(filled, "all", queued_then)
    live = [row for row in found if row["status"] != "sent"]
    assert found[:2] == live
    assert {(row["status"], row["subject"]) for row in live} == {
        ("processing", "Subject 5"),
        ("pending", "Subject 5"),
    }
    assert {row["subject"] for row in found if row["status"] == "sent"} == {f"Subject {n}" for n in (3, 4, 5)}


@pytest.mark.parametrize("scan", [1, 2, 5])
async def test_a_search_in_small_steps_goes_forwards_and_back_over_the_same_rows(
    filled: Room, monkeypatch: pytest.MonkeyPatch, scan: int
) -> None:
    """Each page ends after the first look, found or not: places between two hits are places, too."""
    monkeypatch.setattr(search, "SCAN_ROWS", (scan, scan))
    monkeypatch.setattr(search, "LOOK_S", 0.0)
    for state in STATES:
        found = await _all(filled, state, Filters(columns={"subject": "subject 1"}), limit=1)
        assert len(found) == (10 if state == "all" else 2)


async def test_pages_meet_while_rows_come_and_go(filled: Room) -> None:
    """What is there the whole time is shown once in each direction, whatever happens beside it."""
    database = filled.database
    stays = [row["id"] for row in await _all(filled, "done", limit=50) if row["subject"] != "Subject 8"]
    insert = """
        INSERT INTO email_queue (to_email, subject, html, status, sent_at, due_at)
        VALUES ('late@example.com', 'Late', '', 'sent', '2026-01-01'::timestamptz + $1 * interval '7 h', NULL)
    """
    after, forwards = None, []
    for step in range(100):
        page = await list_rows(database, [EMAILS], "done", after=after, limit=2)
        forwards += [row["id"] for row in page.rows]
        await database.execute(insert, step)
        if step == 1:
            await database.execute("UPDATE email_queue SET status = 'failed' WHERE subject = 'Subject 8'")
        after = page.next
        if after is None:
            break
    before, backwards = page.previous, [row["id"] for row in page.rows]
    while before is not None:
        page = await list_rows(database, [EMAILS], "done", before=before, limit=2)
        backwards = [row["id"] for row in page.rows] + backwards
        await database.execute(insert, 1)
        before = page.previous
    for seen in (forwards, backwards):
        assert [row_id for row_id in seen if row_id in stays] == stays
        assert len(seen) == len(set(seen))


async def test_dead_letters_of_both_queues_are_one_list(filled: Room) -> None:
    """Newest first, and with what a row of each is about."""
    await filled.database.execute(
        """
        INSERT INTO webhook_retry_queue (
            webhook_type, webhook_event_id, payload, status, failed_at, dead_reason, last_error
        )
        SELECT 'github', 'push-' || n, '{}', 'dead_letter', '2026-01-01'::timestamptz + n * interval '1 h',
            CASE WHEN n > 0 THEN 'poison' END, 'no'
        FROM generate_series(-2, 2) AS n
        """
    )
    rows = await _all(filled, "dead_letter", limit=4, queues=QUEUES)
    assert len(rows) == 15
    times = [row["at"] for row in rows]
    assert times == sorted(times, reverse=True)
    assert next(row["about"] for row in rows if row["queue"] == "webhook") == ["github", "push-2"]
    poison = await _all(filled, "dead_letter", Filters(reason="poison"), limit=1, queues=QUEUES)
    assert [row["about"][1] for row in poison] == ["push-2", "push-1"]
    said = await _all(filled, "dead_letter", Filters(reason="100%_SURE"), queues=QUEUES)
    assert [row["about"][0] for row in said] == ["user7@example.com"]
    assert len(await _all(filled, "dead_letter", Filters(reason="none"), queues=QUEUES)) == 13


@pytest.mark.parametrize(
    "cursor",
    ["x", "[]", '[9,0,"x"]', "[0,0,1]", "{}", '[0,0,"x","y"]', '["0",0]', "[-1,0]", "[0,2]", "[null,0]"],
)
async def test_a_place_that_is_none_is_refused(filled: Room, cursor: str) -> None:
    """In either direction."""
    with pytest.raises(InvalidCursor):
        await list_rows(filled.database, [EMAILS], "done", after=cursor)
    with pytest.raises(InvalidCursor):
        await list_rows(filled.database, [EMAILS], "done", before=cursor)
