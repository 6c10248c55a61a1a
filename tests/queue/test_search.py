"""Lists of a queue: every row once, in order, whatever is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from postroom import Room
from postroom.queue import search
from postroom.queue.search import STATES, list_rows
from postroom.queues import EMAILS, WEBHOOKS


async def _all(room: Room, state: str, *, text: str = "", limit: int = 3) -> list[Any]:
    found: list[Any] = []
    cursor = None
    while True:
        page = await list_rows(room.database, EMAILS, state, text=text, cursor=cursor, limit=limit)
        assert len(page.rows) <= limit
        found += page.rows
        cursor = page.next
        if cursor is None:
            return found


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
async def test_every_row_is_on_exactly_one_page(filled: Room, state: str, limit: int) -> None:
    """Also those with equal times, and those without one."""
    rows = await _all(filled, state, limit=limit)
    assert len(rows) == len({row["id"] for row in rows}) == 10
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
    assert {row["subject"] for row in await _all(filled, "done", text=text)} == subjects


async def test_a_search_that_takes_long_says_how_far_it_came_and_goes_on_there(
    filled: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page takes long, however much there is to look through; what is there is found in the end."""
    monkeypatch.setattr(search, "SCAN_ROWS", (2, 2))
    monkeypatch.setattr(search, "LOOK_S", 0.0)
    first = await list_rows(filled.database, EMAILS, "done", text="user1@")
    assert (first.rows, first.looked_through) == ([], 2)
    assert first.next is not None
    assert first.looked_back_to is not None
    assert [row["to_email"] for row in await _all(filled, "done", text="user1@")] == ["user1@example.com"]


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
    page = await list_rows(room.database, WEBHOOKS, "done", text="INVOICE")
    assert [row["webhook_event_id"] for row in page.rows] == ["evt_1"]
    assert page.next is None
