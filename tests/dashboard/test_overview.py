"""The overview: what it says, and that it costs the same however much there was."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

from postroom.database.audit import Actor
from postroom.queue.bulk import begin, stop_action
from postroom.queues import QUEUES
from tests.dashboard.conftest import Visitor
from tests.support.pages import pages_read, statements_of


async def _execute(visitor: Visitor, sql: str, *values: object) -> None:
    await visitor.served.room.database.execute(sql, *values)


async def _worker(visitor: Visitor, queue: str) -> None:
    await _execute(
        visitor,
        "SELECT postroom.register_worker($1, $2, 'machine-7', 4711, '1', true, false, '{}')",
        uuid4(),
        queue,
    )


def _words(page: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


async def test_the_first_line_says_whether_mail_flows_and_leads_to_what_mends_it(visitor: Visitor) -> None:
    """In words, and by a link."""
    page = await visitor.page()
    assert "<strong" in page
    assert "No worker runs: start <code>postroom up</code>" in page
    await _worker(visitor, "email")
    await _worker(visitor, "webhook")
    await _execute(
        visitor,
        """
        INSERT INTO email_queue (to_email, subject, html, status, dead_reason, failed_at)
        VALUES ('a@b.example', 's', 'h', 'dead_letter', 'permanent', now())
        """,
    )
    page = await visitor.page()
    assert "Mail and webhooks flow, but 1 dead letter needs a person." in page
    assert re.search(r'</strong> <a href="/dashboard/dead-letters">', page)


async def test_both_queues_are_counted(visitor: Visitor) -> None:
    """What waits and why, what is in flight, what is dead, and for how long the oldest has been due."""
    await _execute(
        visitor,
        """
        INSERT INTO email_queue (to_email, subject, html, status, due_at, waits_for, dead_reason, leased_by)
        SELECT 'a@b.example', 's', 'h', status, clock_timestamp() + age, waits_for, reason, leased_by
        FROM (VALUES
            ('pending', interval '-7 min', NULL, NULL, NULL::uuid),
            ('pending', '1 h', 'backoff', NULL, NULL),
            ('pending', '1 h', 'limit:email:recipient:ada@example.com', NULL, NULL),
            ('processing', '1 min', NULL, NULL, gen_random_uuid()),
            ('dead_letter', NULL, NULL, 'permanent', NULL)
        ) AS row (status, age, waits_for, reason, leased_by)
        """,
    )
    page = await visitor.page()
    words = _words(page)
    for expected in ("Waiting 3", "In flight 1", "Dead letters 1", "1 for the next try", "1 due"):
        assert expected in words
    assert re.search(r"Oldest due 7 min", words)
    assert "email:recipient:ada@example.com 0 of 10" in words
    assert "1 waits for it" in words


async def test_dead_letters_beyond_ten_thousand_are_about_so_many(visitor: Visitor) -> None:
    """They are counted so far, and estimated from there on."""
    await _execute(
        visitor,
        """
        INSERT INTO email_queue (to_email, subject, html, status, dead_reason, failed_at)
        SELECT 'a@b.example', 's', 'h', 'dead_letter', 'permanent', now() FROM generate_series(1, 10500);
        ANALYZE email_queue;
        """,
    )
    words = _words(await visitor.page())
    assert re.search(r"about 10,\d\d\d dead letters need a person", words)
    assert re.search(r"Dead letters about 10,\d\d\d", words)


async def test_what_is_done_to_a_group_and_stands_still_is_told(visitor: Visitor) -> None:
    """Its process ended: a person goes on with it, or stops it. One that has just begun is not told."""
    database = visitor.served.room.database
    await _execute(
        visitor,
        """
        INSERT INTO email_queue (to_email, subject, html, status, dead_reason, failed_at)
        SELECT 'a@b.example', 's', 'h', 'dead_letter', 'permanent', now() FROM generate_series(1, 3)
        """,
    )
    action = await begin(database, QUEUES, "discard", reason=None, by=Actor("ada", "operator"))
    assert "stands still" not in await visitor.page()
    await database.execute(
        "UPDATE postroom.bulk_actions SET leased_until = now() - interval '1 min', done = 2"
    )
    page = await visitor.page()
    assert "the discard of a whole group stands still at 2 of 3 dead letters: its process ended" in _words(
        page
    )
    assert f"/dashboard/dead-letters/actions/{action}" in page
    await stop_action(database, action, Actor("ada", "operator"))
    assert "stands still" not in await visitor.page()


async def test_limits_say_how_full_they_are(visitor: Visitor) -> None:
    """Those of all e-mails, and further ones that somebody has set."""
    await visitor.served.set("email.limit.domain.example.com", "5/60s")
    words = _words(await visitor.page())
    assert "email:global 0 of 100" in words
    assert "email:domain:example.com 0 of 5" in words


async def test_alerts_transports_workers_and_jobs_are_shown(visitor: Visitor) -> None:
    """Alerts that somebody was told of and that are not over; what is paused and why; who works; what ran."""
    await _execute(
        visitor,
        """
        INSERT INTO postroom.alerts (rule, subject, summary, since, fired_at, last_sent, over_at)
        VALUES
            ('dead_letters', 'a', 'three letters', now(), now(), now(), NULL),
            ('dead_letters', 'b', 'no more letters', now(), now(), now(), now()),
            ('dead_letters', 'c', 'not yet told', now(), NULL, NULL, NULL)
        """,
    )
    await _execute(
        visitor,
        """
        INSERT INTO postroom.transports (name, paused_until, reason, failures)
        VALUES ('smtp:one', now() + interval '1 min', 'refused <b>', 3), ('smtp:two', NULL, NULL, 0)
        """,
    )
    await _worker(visitor, "email")
    page = await visitor.page()
    words = _words(page)
    assert "three letters , since" in words or "three letters, since" in words
    assert "no more letters" not in page
    assert "not yet told" not in page
    assert "recorder not tried yet" in words
    assert "smtp:one down paused until " in words
    assert "refused &lt;b&gt;" in page
    assert "smtp:two up" in words
    assert "machine-7, process 4711" in words
    assert "process-email-queue never run" in words
    assert "nobody holds one for more than 5 min" in words


async def _ended(visitor: Visitor, at: datetime, status: str, outcome: str, ms: int, count: int) -> None:
    await _execute(
        visitor,
        """
        INSERT INTO postroom.tallies (
            at, queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms
        )
        VALUES ($1, 'email', 'order', 'smtp:one', $2, $3, array_fill($4::integer, ARRAY[$5::integer]),
            array_fill($4::integer, ARRAY[$5::integer]), array_fill($4::integer, ARRAY[$5::integer]))
        """,
        at,
        outcome,
        status,
        ms,
        count,
    )


async def test_what_went_through_is_a_chart_and_the_same_in_words_and_tables(visitor: Visitor) -> None:
    """By minute, with percentiles of wait, attempt and total: it reads without the chart."""
    minute = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=10)
    await _ended(visitor, minute, "sent", "done", 40, 7)
    await _ended(visitor, minute + timedelta(minutes=2), "pending", "temporary", 900, 2)
    await _ended(visitor, minute - timedelta(hours=2), "sent", "done", 40, 100)
    page = await visitor.page()
    words = _words(page)
    assert "In the last hour: 7 done, 2 failed attempts." in words
    assert re.search(r"Until the first attempt \d+ ms \d+ ms", words)
    assert "smtp:one 7 2" in words
    series = re.search(r'data-series="([^"]+)"', page)
    assert series is not None
    at, done, failed = json.loads(html.unescape(series[1]))
    assert len(at) == len(done) == len(failed) == 60
    assert done[at.index(minute.timestamp())] == 7
    assert failed[at.index(minute.timestamp()) + 2] == 2
    day = _words(await visitor.page("?span=24h"))
    assert "In the last 24 hours: 107 done, 2 failed attempts." in day


async def test_the_parts_that_are_asked_for_again_are_parts(visitor: Visitor) -> None:
    """Without the page around them; a session that is over leads to the login."""
    page = await visitor.page()
    for path in ("/live", "/flow?span=6h"):
        assert f'hx-get="/dashboard{path.partition("?")[0]}' in page
        part = await visitor.page(path)
        assert "<html" not in part
    visitor.client.cookies.clear()
    answer = await visitor.client.get("/dashboard/live", headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/dashboard/login")


async def test_a_look_merges_the_tallies_once_at_most_and_reads_the_workers_once(visitor: Visitor) -> None:
    """The page once, the part that is asked for each few seconds not at all: workers do it."""
    database = visitor.served.room.database
    for path, merges in (("", 1), ("/live", 0), ("/flow", 1)):
        said = [sql for sql, _ in await statements_of(database, partial(visitor.page, path))]
        assert sum("merge_tallies" in sql for sql in said) == merges
        assert sum("FROM postroom.workers" in sql for sql in said) == (path != "/flow")


async def test_a_look_costs_the_same_however_much_there_was(visitor: Visitor) -> None:
    """Pages counted by PostgreSQL, of all that is read for it, with a month of mails, events and minutes."""
    database = visitor.served.room.database
    looks = [partial(visitor.page, path) for path in ("/live", "/flow")]
    little = [await pages_read(database, look) for look in looks]
    await _execute(
        visitor,
        """
        INSERT INTO email_queue (to_email, subject, html, status, sent_at)
        SELECT 'a@b.example', 'Order ' || n, 'h', 'sent', now() - n * interval '1 min'
        FROM generate_series(1, 20000) AS n
        """,
    )
    await _execute(
        visitor,
        """
        INSERT INTO webhook_retry_queue (webhook_type, payload, status, processed_at)
        SELECT 'stripe', '{}', 'processed', now() - n * interval '1 min' FROM generate_series(1, 20000) AS n
        """,
    )
    await _execute(
        visitor,
        """
        INSERT INTO postroom.processing_minutes
        SELECT
            date_trunc('minute', now()) - n * interval '1 minute', 'email', 'order', 'smtp', 'done', 'sent',
            1, '{1}', '{1}', '{1}'
        FROM generate_series(1, 40000) AS n
        """,
    )
    await _execute(visitor, "ANALYZE")
    much = [await pages_read(database, look) for look in looks]
    assert [after - before < 150 for before, after in zip(little, much, strict=True)] == [True, True], (
        little,
        much,
    )
