"""Filters and pages of the dashboard's lists: what an address asks for, and what a person is told."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from postroom.queue import search
from tests.dashboard.conftest import Visitor
from tests.dashboard.test_pages import HOSTILE

LABELS = {
    "q": "Search",
    "to": "To",
    "subject": "Subject",
    "type": "Type",
    "error": "Error",
    "since": "Since",
    "until": "Until",
}
DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's zone is one with a summer time."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
async def shop(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> Visitor:
    """
    Twelve mails that were sent, an hour each; one that waits, one dead letter; three events.

    However busy the machine is, a search looks until it has found all.
    """
    monkeypatch.setattr(search, "LOOK_S", 30.0)
    await visitor.served.room.database.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, email_type, status, sent_at, due_at, created_at)
        SELECT
            'user' || n || '@example.com', 'Order ' || n, '', CASE n % 2 WHEN 0 THEN 'order' ELSE 'news' END,
            'sent', $1::timestamptz + n * interval '1 h', NULL, $1::timestamptz
        FROM generate_series(1, 12) AS n
        """,
        DAY,
    )
    await visitor.served.room.database.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, status, due_at, last_error, dead_reason) VALUES
            ('user1@example.com', 'Order 1 again', '', 'pending', now() + interval '1 d', NULL, NULL),
            ('user1@example.com', 'Order 1 lost', '', 'dead_letter', NULL, '550 no', 'permanent')
        """
    )
    await visitor.served.room.database.execute(
        """
        INSERT INTO webhook_retry_queue (
            webhook_type, webhook_event_id, event_type, payload, status, processed_at, due_at
        )
        SELECT 'stripe', 'evt_' || n, 'invoice.paid', '{}', 'processed', $1::timestamptz, NULL
        FROM generate_series(1, 3) AS n
        """,
        DAY,
    )
    return visitor


def _subjects(page: str) -> list[str]:
    return re.findall(r">(Order [^<]*)<", page.partition("<tbody>")[2])


def _link(page: str, text: str) -> str:
    """The address below the dashboard of the first link that says this."""
    for address, said in re.findall(r'<a [^>]*href="/dashboard([^"]*)"[^>]*>(.*?)</a>', page):
        if text in re.sub(r"<[^>]*>", "", said):
            return html.unescape(address)
    raise AssertionError(f"no link says {text!r}")


def _tab(page: str, text: str) -> str:
    return _link(page.partition('aria-label="Lists"')[2], text)


def _chips(page: str) -> list[str]:
    found = re.findall(r"Take out the filter </span>(.*?)&nbsp;<span aria-hidden", page)
    return [html.unescape(re.sub(r"</?b>", "", chip)) for chip in found]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("to=USER3@", [3]),
        ("subject=order+1", [12, 11, 10, 1]),
        ("type=news&subject=1", [11, 1]),
        ("subject=1&to=user11&type=news", [11]),
        ("since=2026-03-01T22:00Z", [12, 11, 10]),
        ("until=2026-03-01T14:00Z", [1]),
        ("since=2026-03-01T14:00Z&until=2026-03-01T16:00Z&q=order", [3, 2]),
        ("since=2026-03-02T00:00Z&type=order", [12]),
        ("error=550", []),
        ("q=user4@&type=news", []),
    ],
)
async def test_filters_hold_one_by_one_and_together(shop: Visitor, query: str, numbers: list[int]) -> None:
    """Each stands in the address and on the page, and is taken out by one link."""
    page = await shop.page(f"/emails?state=done&{query}")
    assert _subjects(page) == [f"Order {number}" for number in numbers]
    assert len(_chips(page)) == len(query.split("&"))
    for name in parse_qs(query):
        without = parse_qs(urlsplit(_link(page, f"Take out the filter {LABELS[name]}: ")).query)
        assert set(without) == {"state", *parse_qs(query)} - {name}


async def test_who_looks_for_something_looks_in_all_lists(shop: Visitor) -> None:
    """Until one is chosen: what is live comes first, then what needs a person, then what was sent."""
    page = await shop.page("/emails?to=user1@")
    assert _subjects(page) == ["Order 1 again", "Order 1 lost", "Order 1"]
    assert 'aria-current="page">All</a>' in page
    assert _subjects(await shop.page(_tab(page, "Dead letters"))) == ["Order 1 lost"]
    assert _subjects(await shop.page("/emails?q=lost")) == ["Order 1 lost"]


async def test_events_are_filtered_by_source_type_and_id(shop: Visitor) -> None:
    """As e-mails are by address and subject."""
    page = await shop.page("/webhooks?source=STRIPE&type=invoice&event=evt_2")
    assert re.findall(r"evt_\d", page.partition("<tbody>")[2]) == ["evt_2"]
    assert _chips(page) == ["Source: STRIPE", "Type: invoice", "Event id: evt_2"]


async def test_nothing_that_matches_and_nothing_at_all_are_two_things(shop: Visitor) -> None:
    """Each says what to do next."""
    nothing = await shop.page("/emails?state=done&subject=nothing&to=user1")
    assert "Nothing in this list matches all of these filters." in nothing
    assert _link(nothing, "Look in all lists") == "/emails?state=all&to=user1&subject=nothing"
    assert "Nothing needs you." in await shop.page("/webhooks?state=dead_letter")
    empty = await shop.page("/dead-letters?since=1h&q=nothing")
    assert "No dead letter matches all of these filters." in empty
    assert _link(empty, "Take them out") == "/dead-letters"


async def test_times_are_said_in_the_zone_of_this_machine(in_berlin: None, shop: Visitor) -> None:
    """The page names it; a time without a zone is one of it, also on the two sides of a change of clocks."""
    page = await shop.page("/emails?state=done&since=2026-03-01+22:00&until=2026-03-01T21:30Z")
    assert _subjects(page) == ["Order 9"]  # 21:00 UTC
    assert "2026-03-01 22:00:00</time>" in page
    assert "Times are in CE" in page
    assert "(UTC+0" in page
    database = shop.served.room.database
    for number, at in enumerate(("2026-03-29T00:59:00Z", "2026-03-29T01:01:00Z"), 100):
        await database.execute(
            "UPDATE email_queue SET sent_at = $2 WHERE subject = $1",
            f"Order {number - 99}",
            datetime.fromisoformat(at),
        )
    night = await shop.page("/emails?state=done&since=2026-03-29+01:59&until=2026-03-29+03:02")
    assert _subjects(night) == ["Order 2", "Order 1"]
    assert "2026-03-29 03:01:00</time>" in night


async def test_a_day_is_asked_for_with_its_end(shop: Visitor) -> None:
    """From a day until the same day is that day."""
    page = await shop.page("/emails?state=done&since=2026-03-02&until=2026-03-02")
    assert _subjects(page) == ["Order 12"]


async def test_quick_choices_are_spans_that_move_on(shop: Visitor) -> None:
    """The address keeps the span, not the time that it stood for; one choice takes the place of the other."""
    database = shop.served.room.database
    await database.execute(
        "UPDATE email_queue SET sent_at = now() - interval '90 min' WHERE subject = 'Order 5'"
    )
    page = await shop.page("/emails?state=done&until=2026-03-02")
    last_hour, day = _link(page, "Last hour"), _link(page, "24 hours")
    assert (last_hour, day) == ("/emails?state=done&since=1h", "/emails?state=done&since=24h")
    assert _subjects(await shop.page(last_hour)) == []
    found = await shop.page(day)
    assert _subjects(found) == ["Order 5"]
    assert 'aria-current="true">24 hours</a>' in found
    assert re.fullmatch(r"Since: 24h ago \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\)", _chips(found)[0])
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert f"{yesterday.astimezone():%Y-%m-%d}" in _chips(found)[0]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("since=yesterday", "Since: &#39;yesterday&#39; is no time: write 2026-11-25, 2026-11-25 10:30, or"),
        ("until=2026-02-30", "Until: &#39;2026-02-30&#39; is no time"),
        ("since=2026-13-01T00:00", "Since: "),
        ("until=12+h", "Until: "),
        ("since=9999-12-31T23:59-14:00", "Since: "),
        ("since=1h&until=2h", "Until: no time lies between"),
        ("subject=" + "x" * 201, "Subject: at most 200 characters"),
        ("q=" + "x" * 201, "Search: at most 200 characters"),
        ("to=a%00b", "To: a NUL stands in no e-mail"),
    ],
)
async def test_what_cannot_be_asked_for_is_said_at_its_field(shop: Visitor, query: str, said: str) -> None:
    """What was written stays there, and no list is shown that somebody could take for the answer."""
    page = await shop.page(f"/emails?{query}", 400)
    assert said in page
    assert "Nothing was looked for: a filter has to be mended first." in page
    assert 'aria-invalid="true" aria-describedby="wrong-' in page
    assert "<tbody>" not in page
    for name, values in parse_qs(query).items():
        assert f'name="{name}" ' in page
        assert html.escape(values[-1].strip(), quote=True).replace("&#x27;", "&#39;") in page
    if not query.startswith(("subject", "to")):
        assert said.partition(" is no")[0] in await shop.page(f"/dead-letters?{query}", 400)


@pytest.mark.parametrize("name", ["q", "to", "subject", "type", "error", "since", "until", "state", "after"])
async def test_a_filter_that_is_html_is_text(shop: Visitor, name: str) -> None:
    """Wherever it is said again: in its field, its chip, an error, a link."""
    answer = await shop.client.get(f"/dashboard/emails?{name}={quote(HOSTILE)}")
    assert answer.status_code in (200, 400, 404)
    for page in (
        answer.text,
        (await shop.client.get(f"/dashboard/dead-letters?{name}={quote(HOSTILE)}")).text,
    ):
        assert "<script>" not in page
        assert "<img" not in page
        assert "javascript:" not in page


async def test_what_a_form_leaves_empty_is_not_in_the_address(shop: Visitor) -> None:
    """A filter can be sent to somebody as it stands there."""
    answer = await shop.client.get("/dashboard/emails?q=&to=user3&subject=&since=&until=&type=+")
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/emails?to=user3")
    answer = await shop.client.get("/dashboard/dead-letters?q=&reason=permanent&since=1h&until=")
    assert answer.headers["location"] == "/dashboard/dead-letters?reason=permanent&since=1h"


@pytest.mark.parametrize("path", ["/emails?state=done&type=o", "/dead-letters"])
async def test_next_and_previous_lead_over_the_same_pages(
    shop: Visitor, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """From the first to the last and back, with the filters, and to the first at once."""
    monkeypatch.setattr(search, "PAGE_ROWS", 2)
    monkeypatch.setattr(search.list_rows, "__kwdefaults__", _with_limit(2))
    await shop.served.room.database.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, status, due_at, dead_reason)
        SELECT 'b@example.com', 'Order ' || n, '', 'dead_letter', NULL, 'permanent'
        FROM generate_series(1, 4) AS n
        """
    )
    forwards = [await shop.page(path)]
    assert 'rel="previous"' not in forwards[0]
    while 'rel="next"' in forwards[-1]:
        forwards.append(await shop.page(_rel(forwards[-1], "next")))
    assert len(forwards) > 2
    assert _link(forwards[-1], "First page") == path
    backwards = [forwards[-1]]
    while 'rel="previous"' in backwards[0]:
        backwards.insert(0, await shop.page(_rel(backwards[0], "previous")))
    assert [_ids(page) for page in backwards if _ids(page)] == [_ids(page) for page in forwards]


async def test_dead_letters_are_searched_and_asked_for_by_time_queue_and_reason(shop: Visitor) -> None:
    """What a button does to all of a group is not offered beside a part of it."""
    await shop.served.room.database.execute(
        """
        INSERT INTO webhook_retry_queue (
            webhook_type, webhook_event_id, payload, status, failed_at, dead_reason
        )
        VALUES ('stripe', 'evt_9', '{}', 'dead_letter', '2026-01-01', 'exhausted')
        """
    )
    whole = await shop.page("/dead-letters")
    assert "Order 1 lost" in whole
    assert "evt_9" in whole
    assert "<span>All 2:</span>" in whole
    for query, there in (
        ("since=1h", False),
        ("q=EVT_9", True),
        ("queue=webhook", True),
        ("reason=permanent", False),
    ):
        page = await shop.page(f"/dead-letters?{query}")
        rows = page.partition("<tbody>")[2].partition("</tbody>")[0]
        assert ("evt_9" in rows) is there
        assert ("Order 1 lost" in rows) is not there
        assert ("<span>All" in page) is not query.startswith(("since", "q="))
    assert "There is no queue" in await shop.page("/dead-letters?queue=x", 404)
    assert "no such place" in await shop.page("/dead-letters?after=x", 400)


async def test_a_large_group_is_counted_as_far_as_the_page_says(
    shop: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rare reason is there beside a million of another: each is read by itself."""
    for module in ("postroom.queue.dead_letters", "postroom.dashboard.dead_letters"):
        monkeypatch.setattr(f"{module}.COUNTED_MAX", 3)
        monkeypatch.setattr(f"{module}.ERRORS_OF", 2)
    await shop.served.room.database.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, status, due_at, dead_reason, last_error)
        SELECT 'b@example.com', 'Order', '', 'dead_letter', NULL, 'exhausted', '451 later'
        FROM generate_series(1, 5) AS n
        """
    )
    page = await shop.page("/dead-letters")
    assert '<b class="figure num">3+</b>' in page
    assert "2 × 451 later" in page
    assert "These errors are those of its newest 2." in page
    assert "1 × 550 no" in page
    assert "3 letters and more" in page


def _with_limit(limit: int) -> dict[str, Any]:
    return {**(search.list_rows.__kwdefaults__ or {}), "limit": limit}


def _rel(page: str, rel: str) -> str:
    found = re.search(rf'rel="{rel}" href="/dashboard([^"]*)"', page)
    assert found is not None
    return html.unescape(found[1])


def _ids(page: str) -> list[str]:
    return re.findall(r"/(?:emails|webhooks)/([0-9a-f-]{36})\"", page.partition("<tbody>")[2])
