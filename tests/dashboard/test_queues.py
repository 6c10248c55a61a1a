"""Queues, transports and workers: paused and resumed from their page."""

from __future__ import annotations

import html
import re
from typing import Any

from postroom.queue.times import merge_tallies
from tests.dashboard.conftest import Visitor


def _words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


async def _pauses(visitor: Visitor) -> list[tuple[Any, ...]]:
    rows = await visitor.served.room.database.fetch(
        "SELECT kind, name, reason, until IS NULL FROM postroom.pauses ORDER BY 1, 2"
    )
    return [tuple(row) for row in rows]


async def test_a_queue_is_paused_and_resumed_from_its_card(visitor: Visitor) -> None:
    """With a reason and an end; the overview's first line says it, and the audit trail who did it."""
    paused = await visitor.submit(
        "/queues", do="pause", kind="queue", name="email", reason="the <provider> moves", **{"for": "2h"}
    )
    assert "E-mail is paused, everywhere within 5 s." in _words(paused.text)
    assert "the &lt;provider&gt; moves" in paused.text
    assert await _pauses(visitor) == [("queue", "email", "the <provider> moves", False)]
    overview = _words(await visitor.page()).lower()
    assert "no e-mails leave: the queue is paused by service key since " in overview
    assert "resume it" in overview

    resumed = await visitor.submit("/queues", do="resume", kind="queue", name="email")
    assert "E-mail is resumed" in _words(resumed.text)
    assert await _pauses(visitor) == []
    again = await visitor.submit("/queues", do="resume", kind="queue", name="email")
    assert "E-mail is not paused" in _words(again.text)
    audit = await visitor.page("/audit")
    assert audit.count("<code>queue.pause</code>") == 1
    assert audit.count("<code>queue.resume</code>") == 1


async def test_a_transport_is_paused_from_its_card(visitor: Visitor) -> None:
    """Those of this process and those that workers have told of; a transport that is down is told apart."""
    await visitor.served.room.database.execute(
        """
        INSERT INTO postroom.transports (name, paused_until, reason, failures)
        VALUES ('smtp://other:25', now() + interval '1 min', 'connection refused', 3)
        """
    )
    page = _words(await visitor.page("/queues"))
    assert "recorder not tried yet" in page
    assert "smtp://other:25 down Down: paused until " in page
    assert "Not in this process's POSTROOM_TRANSPORT" in page
    await visitor.submit("/queues", do="pause", kind="transport", name="recorder")
    page = _words(await visitor.page("/queues"))
    assert "recorder paused It is paused by service key since " in page
    assert await _pauses(visitor) == [("transport", "recorder", None, True)]


async def test_a_transport_that_has_ended_an_attempt_is_up(visitor: Visitor) -> None:
    """As the figures tell, at once; a mail that a limit put back went by none."""
    room = visitor.served.room
    told = """
        INSERT INTO postroom.tallies (queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms)
        VALUES ('email', '', 'recorder', $1, $2, '{1}', '{1}', '{1}')
    """
    await room.database.execute(told, "waits", "limit_global")
    assert "recorder not tried yet" in _words(await visitor.page("/queues"))
    await room.database.execute(told, "temporary", "pending")
    assert "recorder up" in _words(await visitor.page("/queues"))
    await merge_tallies(room.database)
    assert "recorder up" in _words(await visitor.page("/queues"))


async def test_what_cannot_be_paused_is_refused(visitor: Visitor) -> None:
    """An end that is none is told what is allowed; what is not there is not found."""
    answer = await visitor.submit("/queues", do="pause", kind="queue", name="email", **{"for": "soon"})
    assert answer.status_code == 200
    assert "is no span of time: write a whole number and a unit" in _words(answer.text)
    for fields in ({"kind": "queue", "name": "mails"}, {"kind": "transport", "name": "none"}, {}):
        assert (await visitor.submit("/queues", do="pause", **fields)).status_code == 404
    assert await _pauses(visitor) == []


async def test_workers_are_shown_with_what_they_do(visitor: Visitor) -> None:
    """The living first; one that was killed is there as long as its row is."""
    await visitor.served.room.database.execute(
        """
        INSERT INTO postroom.workers (id, queue, host, pid, version, asleep, seen_at, settled)
        VALUES
            (gen_random_uuid(), 'email', 'dead-one', 1, '1.0', false, now() - interval '1 hour', '{}'),
            (gen_random_uuid(), 'webhook', 'living-one', 2, '1.0', true, now(), '{"transport_down": 12}')
        """
    )
    page = _words(await visitor.page("/queues"))
    assert page.index("living-one, process 2 asleep") < page.index("dead-one, process 1 not seen any more")
    assert "12 transport down" in page
    assert "Webhooks running" in page
