"""What the pages say, and what their buttons do."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from postroom.queue import search
from tests.dashboard.conftest import Visitor

HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"


async def _mail(visitor: Visitor, **columns: Any) -> UUID:
    row = {"to_email": "ada@example.com", "subject": "Order 7", "html": "<p>Thank you</p>"} | columns
    names = ", ".join(row)
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    mail_id: UUID = await visitor.served.room.database.fetchval(
        f"INSERT INTO email_queue ({names}) VALUES ({places}) RETURNING id", *row.values()
    )
    return mail_id


async def _dead(visitor: Visitor, **columns: Any) -> UUID:
    dead = {
        "status": "dead_letter",
        "dead_reason": "permanent",
        "last_error": "550 no such user",
        "attempts": 1,
    }
    mail_id = await _mail(visitor, **(dead | columns))
    await visitor.served.room.database.execute(
        "UPDATE email_queue SET failed_at = clock_timestamp(), due_at = NULL WHERE id = $1", mail_id
    )
    return mail_id


async def test_an_empty_house_has_pages_too(visitor: Visitor) -> None:
    """Each says that there is nothing."""
    await visitor.page()
    for state in ("waiting", "in_flight", "done", "dead_letter", "failed"):
        for kind in ("emails", "webhooks"):
            assert "Nothing here." in await visitor.page(f"/{kind}?state={state}")
    assert "None. Nothing needs you." in await visitor.page("/dead-letters")


async def test_what_strangers_wrote_is_text_on_every_page(visitor: Visitor) -> None:
    """A subject, an address, an error, a payload and a type that are HTML."""
    mail_id = await _dead(visitor, subject=HOSTILE, to_email=HOSTILE, last_error=HOSTILE, email_type=HOSTILE)
    event_id = await visitor.served.room.database.fetchval(
        """
        INSERT INTO webhook_retry_queue (
            webhook_type, webhook_event_id, event_type, payload, last_error, status
        )
        VALUES ($1, $1, $1, jsonb_build_object($1::text, $1::text), $1, 'dead_letter') RETURNING id
        """,
        HOSTILE,
    )
    pages = ["", "/emails?state=dead_letter", "/webhooks?state=dead_letter", "/dead-letters"]
    pages += [
        f"/emails/{mail_id}",
        f"/webhooks/{event_id}",
        "/emails?q=%3Cscript%3E",
        "/dead-letters?reason=%3Cscript%3E",
    ]
    for path in pages:
        page = await visitor.page(path)
        assert "<script>" not in page
        assert "<img" not in page
    assert "&lt;script&gt;" in await visitor.page(f"/emails/{mail_id}")


async def test_a_mails_html_is_shown_where_nothing_runs_and_nothing_is_loaded(visitor: Visitor) -> None:
    """In a frame with a policy of its own, so that no sender learns that somebody has looked."""
    mail_id = await _mail(visitor, html="<script>alert(1)</script><img src='https://track.example/x.png'>")
    assert (
        f'sandbox="" title="The mail as it looks" src="/dashboard/emails/{mail_id}/html"'
        in await visitor.page(f"/emails/{mail_id}")
    )
    answer = await visitor.client.get(f"/dashboard/emails/{mail_id}/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none';")
    assert "script-src" not in policy
    assert "img-src data:" in policy


async def test_an_id_in_the_search_leads_to_its_message(visitor: Visitor) -> None:
    """Whatever list is open."""
    mail_id = await _mail(visitor)
    answer = await visitor.client.get(f"/dashboard/emails?state=failed&q={mail_id}")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/dashboard/emails/{mail_id}")
    page = await visitor.page(f"/emails/{mail_id}")
    assert "no worker runs: start" in page


async def test_a_search_that_has_found_nothing_yet_goes_on_by_itself(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page says how far it came, and where a script runs it asks for the next one."""
    monkeypatch.setattr(search, "SCAN_ROWS", (1, 1))
    monkeypatch.setattr(search, "LOOK_S", 0.0)
    for number in range(2):
        await _mail(
            visitor,
            subject=f"Order {number}",
            status="sent",
            sent_at=datetime(2026, 1, 1 + number, tzinfo=UTC),
        )
    page = await visitor.page("/emails?q=order+0")
    assert "Looked through 1, back to 2026-01-02 00:00:00+00: look further" in page
    following = re.search(r'hx-get="/dashboard([^"]+)" hx-trigger="load', page)
    assert following is not None
    page = await visitor.page(html.unescape(following[1]))
    assert "Order 0" in page
    assert "hx-trigger" not in page


async def test_retry_and_discard_do_what_they_say(visitor: Visitor) -> None:
    """One, and all of a reason; what is no dead letter any more is said."""
    one, other = await _dead(visitor), await _dead(visitor, dead_reason="exhausted")
    answer = await visitor.submit("/dead-letters/decide", what="retry", id=str(one))
    assert answer.status_code == 303
    assert "1 dead letter will be tried again." in (await visitor.client.get(answer.headers["location"])).text
    again = await visitor.submit("/dead-letters/decide", what="discard", id=str(one))
    assert "1 left as they are: pending" in (await visitor.client.get(again.headers["location"])).text
    await visitor.submit("/dead-letters/decide", what="discard", all="yes", reason="exhausted")
    rows = await visitor.served.room.database.fetch("SELECT id, status FROM email_queue")
    assert {row["id"]: row["status"] for row in rows} == {one: "pending", other: "failed"}


async def test_dead_letters_are_grouped_by_reason_and_by_errors_that_differ_in_ids_alone(
    visitor: Visitor,
) -> None:
    """With how many there are of each."""
    for number in range(3):
        await _dead(visitor, last_error=f"550 no such user {number}12345")
    await _dead(visitor, dead_reason="poison", last_error="poison: 3 workers died")
    page = await visitor.page("/dead-letters")
    assert "3 × … no such user …" in page
    assert "1 × poison: 3 workers died" in page


async def test_a_setting_is_changed_or_the_page_says_what_is_allowed(visitor: Visitor) -> None:
    """What was written stays in its field."""
    changed = await visitor.submit("/settings", key="email.limit.global", value="7/10s")
    assert "email.limit.global is 7/10s now (it was 100/60s)" in changed.text
    refused = await visitor.submit("/settings", key="email.limit.global", value="7 a day")
    assert "email.limit.global" in refused.text
    assert 'value="7 a day"' in refused.text
    value = await visitor.served.room.database.fetchval(
        "SELECT value FROM postroom.settings WHERE key = 'email.limit.global'"
    )
    assert value == "7/10s"


async def test_what_is_not_there_is_said_on_a_page(visitor: Visitor) -> None:
    """A list, a message, a place in a list."""
    for path in ("/nothing", "/emails?state=x", f"/emails/{UUID(int=1)}", f"/nothing/{UUID(int=1)}"):
        assert "To the overview" in await visitor.page(path, 404)
    for cursor in ("x", "[]", "[9,%22x%22]", "[0,1,2]", "%7B%7D", "[0,%22x%22,%22y%22]"):
        await visitor.page(f"/emails?after={cursor}", 400)
