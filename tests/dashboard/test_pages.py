"""What the pages say, and what their buttons do."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from postroom.database.audit import Actor
from postroom.queue import bulk, search
from postroom.queues import QUEUES
from tests.dashboard.conftest import Visitor
from tests.support.waiting import until

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


def _fields(page: str) -> dict[str, str]:
    """What the forms of a page hold."""
    found = re.findall(r'<input (?=[^>]*name="([^"]+)")(?=[^>]*value="([^"]*)")[^>]*>', page)
    return {name: html.unescape(value) for name, value in found}


async def _until_ended(visitor: Visitor, path: str) -> str:
    page = ""

    async def ended() -> bool:
        nonlocal page
        page = await visitor.page(path.removeprefix("/dashboard"))
        return any(word in page for word in ("ed: done", "ed: stopped"))

    await until(ended)
    return page


async def test_an_empty_house_has_pages_too(visitor: Visitor) -> None:
    """Each says that there is nothing."""
    await visitor.page()
    empty = {
        "waiting": "Nothing waits.",
        "in_flight": "Nothing is being attempted",
        "dead_letter": "Nothing needs you.",
        "failed": "Nothing was discarded.",
        "all": "There is nothing here yet.",
    }
    for state, said in empty.items():
        for kind in ("emails", "webhooks"):
            assert said in await visitor.page(f"/{kind}?state={state}")
    assert "<code>postroom send --to" in await visitor.page("/emails")
    assert "Providers post to <code>/webhooks/NAME</code>" in await visitor.page("/webhooks")
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
    page = await visitor.page("/emails?q=order+0&state=done")
    assert "Looked through 1, back to 2026-01-02 00:00:00: look further" in page
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
    asked = await visitor.submit("/dead-letters/decide", what="discard", all="yes", reason="exhausted")
    assert "Discard 1 dead letter?" in asked.text
    begun = await visitor.client.post(
        "/dashboard/dead-letters/decide", data={**_fields(asked.text), "note": "an old list"}
    )
    page = await _until_ended(visitor, begun.headers["location"])
    assert "<b>1</b> discarded: done" in page
    assert "an old list" in await visitor.page(f"/emails/{other}")
    rows = await visitor.served.room.database.fetch("SELECT id, status FROM email_queue")
    assert {row["id"]: row["status"] for row in rows} == {one: "pending", other: "failed"}


async def test_several_are_asked_about_before_anything_is_done(visitor: Visitor) -> None:
    """With how many they are; what is sent twice is done once."""
    ids = [str(await _dead(visitor)) for _ in range(2)]
    fields = {"what": "retry", "id": ids}
    token = _fields(await visitor.page("/dead-letters"))["csrf_token"]
    asked = await visitor.client.post("/dashboard/dead-letters/decide", data={"csrf_token": token, **fields})
    assert "Retry 2 dead letters?" in asked.text
    database = visitor.served.room.database
    assert await database.fetchval("SELECT count(*) FROM email_queue WHERE status = 'pending'") == 0
    await visitor.client.post(
        "/dashboard/dead-letters/decide", data={"csrf_token": token, "sure": "yes", **fields}
    )
    assert await database.fetchval("SELECT count(*) FROM email_queue WHERE status = 'pending'") == 2


async def test_what_has_died_since_the_question_is_left_alone_and_a_form_sent_twice_is_one_action(
    visitor: Visitor,
) -> None:
    """The person was told another number."""
    first = await _dead(visitor)
    asked = await visitor.submit("/dead-letters/decide", what="discard", all="yes")
    later = await _dead(visitor)
    fields = _fields(asked.text)
    for _ in range(2):
        begun = await visitor.client.post("/dashboard/dead-letters/decide", data=fields)
        await _until_ended(visitor, begun.headers["location"])
    database = visitor.served.room.database
    rows = await database.fetch("SELECT id, status FROM email_queue")
    assert {row["id"]: row["status"] for row in rows} == {first: "failed", later: "dead_letter"}
    told = await database.fetch("SELECT about ->> 'state' AS state FROM postroom.audit ORDER BY id")
    assert [row["state"] for row in told] == ["begun", "done"]


async def test_an_action_whose_process_has_ended_says_how_far_it_came_and_goes_on(visitor: Visitor) -> None:
    """Any process takes it up; or a person stops it."""
    mail_id = await _dead(visitor)
    database = visitor.served.room.database
    action_id = await bulk.begin(database, QUEUES, "retry", reason=None, by=Actor("ada", "cli"))
    path = f"/dead-letters/actions/{action_id}"
    page = await visitor.page(path)
    assert "nobody works on it" in page
    assert "hx-trigger" not in page
    await visitor.submit(path, what="go on")
    assert "<b>1</b> retried: done" in await _until_ended(visitor, f"/dashboard{path}")
    assert (await database.fetchval("SELECT status FROM email_queue WHERE id = $1", mail_id)) == "pending"
    other = await bulk.begin(database, QUEUES, "discard", reason=None, by=Actor("ada", "cli"))
    await visitor.submit(f"/dead-letters/actions/{other}", what="stop")
    assert "stopped by" in await visitor.page(f"/dead-letters/actions/{other}")


async def test_an_edited_dead_letter_goes_out_as_another_one_and_both_pages_lead_to_each_other(
    visitor: Visitor,
) -> None:
    """What is not sendable stays in the form, with the line that enqueueing would say."""
    mail_id = await _dead(visitor, html="\n<p>Thank\r\nyou</p>", to_email="ada@exmaple.com", priority=3)
    path = f"/emails/{mail_id}/edit"
    assert path in await visitor.page(f"/emails/{mail_id}")
    fields = _fields(await visitor.page(path))
    written = {"html": "\r\n<p>Thank\r\nyou</p>", "text": ""}  # as a browser writes the two areas
    refused = await visitor.client.post(f"/dashboard{path}", data={**fields, **written, "to": "ada"})
    assert "to: " in refused.text
    assert 'value="ada"' in refused.text
    same = await visitor.client.post(f"/dashboard{path}", data={**fields, **written})
    assert "nothing of it is changed" in same.text
    sent = await visitor.client.post(f"/dashboard{path}", data={**fields, **written, "to": "ada@example.com"})
    assert sent.status_code == 303
    new = await visitor.page(sent.headers["location"].removeprefix("/dashboard"))
    assert f'<a href="/dashboard/emails/{mail_id}">' in new
    assert sent.headers["location"] in await visitor.page(f"/emails/{mail_id}")
    row = await visitor.served.room.database.fetchrow(
        "SELECT to_email, html, priority FROM email_queue WHERE status = 'pending'"
    )
    assert row is not None
    assert tuple(row) == ("ada@example.com", "\n<p>Thank\r\nyou</p>", 3)
    assert "no dead letter" in await visitor.page(path, 400)


async def test_dead_letters_are_grouped_by_reason_and_by_errors_that_differ_in_what_is_particular(
    visitor: Visitor,
) -> None:
    """With how many there are of each."""
    for number in range(3):
        await _dead(visitor, last_error=f"550 5.1.1 <u{number}@example.com>: no such user {number}12345")
    await _dead(visitor, dead_reason="poison", last_error="poison: 3 workers died")
    page = await visitor.page("/dead-letters")
    assert "3 × 550 5.1.1 &lt;…&gt;: no such user …" in page
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
    for cursor in ("x", "[]", "[9,0,%22x%22]", "[0,0,2]", "%7B%7D", "[0,0,%22x%22,%22y%22]"):
        await visitor.page(f"/emails?after={cursor}", 400)


async def test_an_event_is_replayed_to_one_handler_and_the_others_that_are_done_stay_done(
    visitor: Visitor,
) -> None:
    """By a button of the event's page; who asks stands in its history and in the audit trail."""
    database = visitor.served.room.database
    await database.execute(
        "INSERT INTO postroom.handlers (app, source, name, events) "
        "VALUES ('shop:room', 's', 'ship', '{*}'), ('shop:room', 's', 'bill', '{*}')"
    )
    event_id = await database.fetchval(
        """
        INSERT INTO webhook_retry_queue (webhook_type, event_type, payload, status, handlers_done)
        VALUES ('s', 'paid', '{}', 'processed', '{ship,bill}') RETURNING id
        """
    )
    assert _states(await visitor.page(f"/webhooks/{event_id}")) == {"ship": "done", "bill": "done"}
    unknown = await visitor.submit(f"/webhooks/{event_id}/replay", handler="nobody")
    assert unknown.status_code == 400
    await visitor.submit(f"/webhooks/{event_id}/replay", handler="ship")
    row = await database.fetchrow("SELECT status, handlers_done FROM webhook_retry_queue")
    assert row is not None
    assert tuple(row) == ("pending", ["bill"])
    page = await visitor.page(f"/webhooks/{event_id}")
    assert _states(page) == {"ship": "not done", "bill": "done"}
    assert "<b>Replayed by hand</b>" in page
    assert await database.fetchval("SELECT about ->> 'handler' FROM postroom.audit") == "ship"
    again = await visitor.submit(f"/webhooks/{event_id}/replay", handler="ship")
    assert "It is pending: only an event that has ended" in again.text

    await database.execute(
        "UPDATE webhook_retry_queue SET status = 'processed', handlers_done = '{ship,bill}'"
    )
    assert "Run all of them again" in await visitor.page(f"/webhooks/{event_id}")
    await visitor.submit(f"/webhooks/{event_id}/replay", all="yes")
    assert await database.fetchval("SELECT handlers_done FROM webhook_retry_queue") == []
    assert await database.fetchval("SELECT about ->> 'handler' FROM postroom.audit ORDER BY id DESC") == "all"
    assert "1 event, all:" in await visitor.page("/audit")


def _states(page: str) -> dict[str, str]:
    """Of an event's handlers."""
    rows = re.findall(r'<th scope="row"[^>]*>([^<]+)</th>\s*<td><span[^>]*>([^<]+)</span>', page)
    return dict(rows)


async def test_what_is_very_long_is_cut_off_and_the_page_says_how_long_it_is(visitor: Visitor) -> None:
    """A payload and a body of megabytes do not stop a browser."""
    mail_id = await _mail(visitor, html="<p>" + "x" * 2_000_000, text="y" * 2_000_000)
    event_id = await visitor.served.room.database.fetchval(
        """
        INSERT INTO webhook_retry_queue (webhook_type, payload)
        VALUES ('s', jsonb_build_object('z', repeat('z', 2000000))) RETURNING id
        """
    )
    for path in (f"/emails/{mail_id}", f"/webhooks/{event_id}"):
        page = await visitor.page(path)
        assert "… cut off here: 2,0" in page
        assert len(page) < 500_000


async def test_attachments_are_listed_and_can_be_saved_and_are_never_shown(visitor: Visitor) -> None:
    """Name, type and size; what is saved has no type of its own, whatever it says that it is."""
    files = [
        {"filename": "bill.pdf", "content": "JVBERg=="},
        {"filename": f"../{HOSTILE}.html", "content": "PHNjcmlwdD4=", "content_type": "text/html"},
    ]
    email_id = await _mail(visitor, attachments=json.dumps(files))
    page = await visitor.page(f"/emails/{email_id}")
    assert "application/pdf, 4 bytes" in page
    assert "text/html, 8 bytes" in page
    assert "<script>alert" not in page
    assert "JVBERg" not in page.replace(page[page.index("<summary>Source") :], "")
    assert f'href="/dashboard/emails/{email_id}/attachments/0" download>bill.pdf<' in page
    for number, content in enumerate((b"%PDF", b"<script>")):
        answer = await visitor.client.get(f"/dashboard/emails/{email_id}/attachments/{number}")
        assert answer.content == content
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert answer.headers["content-disposition"].startswith('attachment; filename="')
        assert "/" not in answer.headers["content-disposition"]
    for missing in ("2", "x", "-1", "%C2%B2", "9" * 5_000):
        await visitor.page(f"/emails/{email_id}/attachments/{missing}", 404)
    await visitor.page(f"/emails/{UUID(int=1)}/attachments/0", 404)


async def test_images_of_a_mail_are_in_its_frame(visitor: Visitor) -> None:
    """As its recipient sees it; what is no image, or is named and not there, stays a name."""
    files = [
        {"filename": "logo.png", "content": "cG5n", "content_id": "logo"},
        {"filename": "page.html", "content": "PHA+", "content_id": "page"},
        {"filename": "x.png", "content": "cG5n", "content_id": "x", "content_type": 'image/"><script>'},
    ]
    page = '<img src="cid:logo"><img src="cid:page"><img src="cid:none"><img src="cid:logo2">'
    email_id = await _mail(visitor, html=page, attachments=json.dumps(files[:2]))
    answer = await visitor.client.get(f"/dashboard/emails/{email_id}/html")
    assert answer.text == page.replace('"cid:logo"', '"data:image/png;base64,cG5n"')
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    email_id = await _mail(visitor, html=page, attachments=json.dumps(files))
    assert (await visitor.client.get(f"/dashboard/emails/{email_id}/html")).text == page


async def test_attachments_that_cannot_be_sent_are_listed_as_far_as_they_are_files(visitor: Visitor) -> None:
    """The page says what is wrong, and what can be saved is offered all the same."""
    files = [{"url": "https://example.com/a"}, {"content": "JVBERg=="}, {"filename": "b", "content": "?"}]
    email_id = await _mail(visitor, attachments=json.dumps(files))
    page = await visitor.page(f"/emails/{email_id}")
    assert "It cannot be sent as it is: attachments[0]: &#39;url&#39; is no field of it" in page
    assert 'attachments/1" download>(no name)<' in page
    assert (await visitor.client.get(f"/dashboard/emails/{email_id}/attachments/1")).content == b"%PDF"
    await visitor.page(f"/emails/{email_id}/attachments/0", 404)


async def test_an_edited_email_takes_its_attachments_along(visitor: Visitor) -> None:
    """The form says so; nobody has to attach them again."""
    files = [{"filename": "bill.pdf", "content": "JVBERg=="}]
    dead = await _dead(visitor, attachments=json.dumps(files))
    page = await visitor.page(f"/emails/{dead}/edit")
    assert "attachments" in page
    answer = await visitor.client.post(
        f"/dashboard/emails/{dead}/edit", data=_fields(page) | {"to": "bob@example.com"}
    )
    assert answer.status_code == 303
    database = visitor.served.room.database
    row = await database.fetchrow(
        "SELECT to_email, attachments FROM email_queue WHERE id = $1",
        UUID(answer.headers["location"].rpartition("/")[2]),
    )
    assert row is not None
    assert (row["to_email"], json.loads(row["attachments"])) == ("bob@example.com", files)


async def test_an_email_that_can_never_be_sent_says_so_in_place_of_its_source(visitor: Visitor) -> None:
    """Whoever wrote the row; and there is no file."""
    email_id = await _mail(visitor, to_email="no address")
    assert "It cannot be sent as it is: to_email:" in await visitor.page(f"/emails/{email_id}")
    assert "to_email:" in await visitor.page(f"/emails/{email_id}/source", 404)
    await visitor.page(f"/emails/{UUID(int=1)}/source", 404)
