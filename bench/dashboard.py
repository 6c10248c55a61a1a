"""How long does each page of the dashboard take at the server, beside years of history?"""

from __future__ import annotations

import asyncio
import html
import http.client
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlencode, urlsplit

import asyncpg

from bench import pages as routes
from bench.old_mails import make_old_mails
from bench.report import Result, percentile, versions
from bench.servers import create_database, running_postgres, server_version, serving
from postroom.dashboard.site import ROOT
from postroom.database.migrate import migrate

QUESTION = "each page of the dashboard at the server, with millions of settled mails and events beside it"
AIM_MS = 200
KEY = "bench"
WARM = 3
PAGES = 10
"""How far a list is gone through."""

CAUGHT = 1_000
"""Mails in the maildir."""

ALSO = (
    "/flow?span=24h",
    *(f"/emails?state={state}" for state in ("waiting", "in_flight", "dead_letter", "failed", "all")),
    "/emails?state=done&until=3d",
    "/emails?state=done&since=7d&until=6d&to=customer4711@",
    "/emails?to=customer4711@&type=none",
    "/emails?q=nothing+like+it",
    "/emails?state=waiting&q=nothing+like+it",
    "/webhooks?state=dead_letter",
    "/webhooks?event=evt_nothing&since=24h",
    "/dead-letters?reason=permanent",
    "/dead-letters?reason=poison&queue=email",
    "/dead-letters?q=nothing+like+it",
    "/dead-letters?since=1h",
)
"""Lists, filters and searches; each search that finds nothing answers when it has looked for long enough."""


def run(*, history: int | None = None, requests: int = 20) -> Result:
    """
    Ask for each page in turn, by one connection, as a browser that is logged in.

    Args:
        history: Settled mails; POSTROOM_BENCH_HISTORY, or 10 million. A tenth as many events, a fiftieth dead
            letters, a hundredth waiting mails.
        requests: To each page, after WARM more that do not count.
    """
    if history is None:
        history = int(os.environ.get("POSTROOM_BENCH_HISTORY", "10000000"))
    return asyncio.run(_run(history, requests))


async def _run(history: int, requests: int) -> Result:
    result = Result("dashboard", QUESTION, ["page", "p50 ms", "p99 ms", "KB"])
    with running_postgres() as server_url, tempfile.TemporaryDirectory(prefix="postroom-bench-") as folder:
        url = await create_database(server_url, "house")
        await migrate(url)
        names = await _fill(url, history) | {"caught": _catch(Path(folder))}
        with serving(
            url, POSTROOM_SERVICE_KEY=KEY, POSTROOM_TRANSPORT=f"maildir:{folder}", POSTROOM_LOG_LEVEL="error"
        ) as address:
            found = await asyncio.to_thread(_ask_all, address, names, requests)
        result.settings = {
            "history": f"{history:,} sent mails, {history // 10:,} processed events, "
            f"{history // 50:,} dead letters, {history // 100:,} mails that wait, vacuumed",
            "figures": f"of {requests} requests to each page, by one connection, warm; p99 is the slowest",
            "aim": f"{AIM_MS} ms",
            "PostgreSQL": await server_version(url),
            "versions": versions("postroom", "asyncpg"),
        }
    for path, answers in found.items():
        times = [answer.ms for answer in answers]
        size_kb = median(answer.size for answer in answers) / 1024
        result.rows.append([path, f"{median(times):.0f}", f"{percentile(times, 99):.0f}", f"{size_kb:.0f}"])
        result.measured[path] = times
    slow = [row[0] for row in result.rows if float(row[2]) > AIM_MS]
    if slow:
        result.notes.append(f"over {AIM_MS} ms: {', '.join(slow)}")
    return result


@dataclass(frozen=True, slots=True)
class _Answer:
    ms: float
    size: int
    page: str


class _Browser:
    """One connection, which keeps its session's cookie."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        self._headers: dict[str, str] = {}

    def log_in(self) -> None:
        body = urlencode({"key": KEY})
        headers = {"content-type": "application/x-www-form-urlencoded"}
        self._connection.request("POST", f"{ROOT}/login", body, headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 303:
            raise RuntimeError(f"the login answered {answer.status}")
        self._headers["cookie"] = answer.headers["set-cookie"].partition(";")[0]

    def get(self, path: str) -> _Answer:
        began = time.perf_counter()
        self._connection.request("GET", f"{ROOT}{path}", headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        took_ms = (time.perf_counter() - began) * 1000
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}: {body[-300:]!r}")
        return _Answer(took_ms, len(body), body.decode(errors="replace"))


def _ask_all(address: str, names: dict[str, str], requests: int) -> dict[str, list[_Answer]]:
    browser = _Browser(address)
    browser.log_in()
    found: dict[str, list[_Answer]] = {}
    for template in dict.fromkeys(addresses()):
        path = template.format(**names)
        found[template] = _ask(browser, path, requests)
        if template in ("/emails", "/webhooks", "/dead-letters"):
            pages = [path]
            while len(pages) < PAGES and (following := _linked(browser.get(pages[-1]).page, "next")):
                pages.append(following)
            found[f"{template}, page {len(pages)}"] = _ask(browser, pages[-1], requests)
            back = _linked(browser.get(pages[-1]).page, "previous")
            if back is not None:
                found[f"{template}, back from it"] = _ask(browser, back, requests)
    return found


def _ask(browser: _Browser, path: str, requests: int) -> list[_Answer]:
    return [browser.get(path) for _ in range(requests + WARM)][WARM:]


def _linked(page: str, rel: str) -> str | None:
    link = re.search(rf'rel="{rel}" href="{ROOT}([^"]*)"', page)
    return None if link is None else html.unescape(link[1])


def addresses() -> Iterator[str]:
    """One of each page, with {names} of what was filled in."""
    yield from (path for path in routes.addresses() if path != "/login")
    yield from ALSO


def _catch(folder: Path) -> str:
    """Mails in a maildir; the name of one."""
    new = folder / "new"
    new.mkdir()
    for number in range(CAUGHT):
        (new / f"17000{number:05}.caught.postroom").write_text(
            f"From: shop@example.com\nTo: customer{number}@example.com\nSubject: Order {number}\n"
            "Content-Type: text/html\n\n<p>Thank you.</p>\n"
        )
    return f"17000{0:05}.caught.postroom"


async def _fill(url: str, history: int) -> dict[str, str]:
    """A house with years behind it; the ids of some rows, by what they are."""
    await make_old_mails(url, history)
    connection = await asyncpg.connect(url)
    try:
        for table in ("email_queue", "webhook_retry_queue"):
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for statement, count in (
            (_EVENTS, history // 10),
            (_DEAD_MAILS, history // 50 * 4 // 5),
            (_DEAD_EVENTS, history // 50 // 5),
            (_GIVEN_UP, history // 500),
            (_WAITING, history // 100),
            (_IN_FLIGHT, 200),
            (_AUDIT, 10_000),
            (_RUNS, 20_000),
        ):
            await connection.execute(statement, count, timeout=300)
        for table in ("email_queue", "webhook_retry_queue"):
            await connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        action = await connection.fetchval(_ACTION)
        await connection.execute("VACUUM ANALYZE", timeout=300)
        await connection.execute("CHECKPOINT", timeout=300)
        row = await connection.fetchrow(_IDS)
        assert row is not None
        return {name: str(value) for name, value in row.items()} | {"action": str(action)}
    finally:
        await connection.close()


_EVENTS = """
    INSERT INTO webhook_retry_queue (
        webhook_type, webhook_event_id, event_type, payload, status, due_at, attempts, lease_no,
        handlers_done, created_at, updated_at, processed_at
    )
    SELECT
        'stripe', 'evt_' || n, (ARRAY['checkout.session.completed', 'invoice.paid'])[n % 2 + 1],
        jsonb_build_object('id', 'evt_' || n), 'processed', NULL, 1, 1, '{shop}',
        at.moment - interval '1 s', at.moment, at.moment
    FROM generate_series(1, $1::integer) AS n
    CROSS JOIN LATERAL (SELECT now() - ($1::integer - n) * interval '2 s' AS moment) AS at
"""

_FAILED_MAILS = """
    INSERT INTO email_queue (
        to_email, subject, html, from_email, status, due_at, attempts, error_count, lease_no,
        created_at, updated_at, failed_at, dead_reason, last_error
    )
    SELECT
        'customer' || n % 100000 || '@example.com', 'Order ' || n, '<p>Thank you.</p>', 'shop@example.com',
        '%s', NULL, 6, 6, 6, at.moment - interval '1 h', at.moment, at.moment,
        CASE
            WHEN n %% 1000 = 0 THEN NULL
            WHEN n %% 50 = 0 THEN 'poison'
            WHEN n %% 3 = 0 THEN 'exhausted'
            ELSE 'permanent'
        END,
        CASE
            WHEN n %% 3 = 0 THEN '451 4.3.0 Temporary lookup failure (' || n || ')'
            ELSE '550 5.1.1 <customer' || n %% 100000 || '@example.com>: Recipient address rejected'
        END
    FROM generate_series(1, $1::integer) AS n
    CROSS JOIN LATERAL (SELECT now() - ($1::integer - n) * interval '10 s' AS moment) AS at
"""
_DEAD_MAILS = _FAILED_MAILS.replace("n % 100000 ", "n %% 100000 ") % "dead_letter"
_GIVEN_UP = _FAILED_MAILS.replace("n % 100000 ", "n %% 100000 ") % "failed"

_DEAD_EVENTS = """
    INSERT INTO webhook_retry_queue (
        webhook_type, webhook_event_id, event_type, payload, status, due_at, attempts, lease_no,
        created_at, updated_at, failed_at, dead_reason, last_error
    )
    SELECT
        'github', 'push-' || n, 'push', '{"id": 1}', 'dead_letter', NULL, 6, 6,
        at.moment, at.moment, at.moment, 'exhausted',
        'deploy: HTTP 500 from http://127.0.0.1:3000/hooks: ' || n
    FROM generate_series(1, $1::integer) AS n
    CROSS JOIN LATERAL (SELECT now() - ($1::integer - n) * interval '40 s' AS moment) AS at
"""

_WAITING = """
    INSERT INTO email_queue (
        to_email, subject, html, from_email, due_at, next_retry_at, waits_for, created_at
    )
    SELECT
        'reader' || n || '@example.net', 'News of November', '<p>News</p>', 'shop@example.com',
        at.moment, at.moment, (ARRAY['limit:email:global', 'backoff', 'send_at'])[n % 3 + 1],
        now() - n * interval '1 s'
    FROM generate_series(1, $1::integer) AS n
    CROSS JOIN LATERAL (SELECT now() + interval '1 h' + n * interval '1 s' AS moment) AS at
"""

_IN_FLIGHT = """
    INSERT INTO email_queue (to_email, subject, html, from_email, status, due_at, leased_by, lease_no)
    SELECT
        'reader' || n || '@example.net', 'In flight', '<p>News</p>', 'shop@example.com', 'processing',
        now() + interval '50 min', gen_random_uuid(), 1
    FROM generate_series(1, $1::integer) AS n
"""

_AUDIT = """
    INSERT INTO postroom.audit (at, actor, role, action, about)
    SELECT
        now() - ($1::integer - n) * interval '10 min', 'ada', 'operator', 'setting.change',
        '{"key": "email.limit.global", "before": "100/60s", "after": "300/60s"}'
    FROM generate_series(1, $1::integer) AS n
"""

_RUNS = """
    INSERT INTO postroom.job_runs (
        jobid, command, status, return_message, start_time, end_time, scheduler, leased_until
    )
    SELECT
        job.jobid, job.command, 'succeeded', 'nothing was due', at.moment, at.moment + interval '80 ms',
        gen_random_uuid(), at.moment
    FROM postroom.jobs AS job
    CROSS JOIN generate_series(1, $1::integer / 2) AS n
    CROSS JOIN LATERAL (SELECT now() - n * interval '1 min' AS moment) AS at
    WHERE job.jobid IN (19, 20)
"""

_ACTION = """
    INSERT INTO postroom.bulk_actions (
        id, action, begun_by, asked_at, total, place_queue, done, leased_until, ended_at
    )
    VALUES (gen_random_uuid(), 'retry', 'ada', now(), 4000, 'email', 4000, now(), now())
    RETURNING id
"""

_IDS = """
    SELECT
        (SELECT id FROM email_queue WHERE status = 'sent' LIMIT 1) AS sent,
        (SELECT id FROM email_queue WHERE status = 'pending' LIMIT 1) AS waiting,
        (SELECT id FROM email_queue WHERE status = 'dead_letter' LIMIT 1) AS dead,
        (SELECT id FROM webhook_retry_queue WHERE status = 'processed' LIMIT 1) AS event
"""
