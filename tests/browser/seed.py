"""A shop's day in a database: mails and events in every state, long values, and what needs a person."""

from __future__ import annotations

import json
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

LONG_SUBJECT = (
    "Rechtsschutzversicherungsgesellschaften: Ihre Bestellung Nr. 2026-11-25/000471 ist unterwegs, "
    "voraussichtliche Zustellung am Donnerstag zwischen 9 und 12 Uhr "
) + "x" * 120
LONG_ADDRESS = f"{'a-very-long-mailbox-name-' * 2}without-end@{'department-' * 4}of.example-company.example"
REPLY_550 = (
    "550 5.1.1 <nobody@example.org>: Recipient address rejected: User unknown in virtual mailbox table"
)
HTML = """
<div style="font-family:sans-serif;max-width:34rem;margin:auto">
<h1 style="font-size:20px">Thank you, Ada</h1><p>Your order <b>#4711</b> is on its way.</p>
<table style="width:100%"><tr><td>1 × Difference engine</td><td align="right">£ 1,700.00</td></tr>
<tr><td>2 × Punched cards, 500</td><td align="right">£ 24.00</td></tr></table>
<p><a href="https://shop.example/orders/4711">Follow it</a></p></div>
"""
PEOPLE = ("ada", "grace", "edsger", "barbara", "donald", "frances", "alan", "radia")
KINDS = (("order", "Your order #{n}"), ("receipt", "Receipt {n}"), ("reset", "Reset your password"))
FAILURES = (
    ("permanent", REPLY_550),
    ("permanent", "554 5.7.1 Service unavailable; Client host [192.0.2.7] blocked using zen.example"),
    ("exhausted", "451 4.3.0 Temporary lookup failure"),
    ("uncertain", "the connection was lost after the content was sent: it may have gone out"),
    ("poison", "poison: 3 workers died during it"),
)
RELAY = "smtp://relay.example.com:587"
CAUGHT = "1795607840.caught.postroom"
"""The file of a mail in the maildir."""


_ids = Random(1)


@dataclass(frozen=True)
class Seeded:
    """What was put there: one id of each sort that a page of its own shows."""

    sent: UUID
    waiting: UUID
    dead: UUID
    long: UUID
    event: UUID
    dead_event: UUID
    action: UUID


def seed(url: str, *, letters: int = 1) -> Seeded:
    """
    Fill a migrated database that nobody works on.

    Args:
        letters: How many dead letters there are of each failure.
    """
    _ids.seed(1)
    with psycopg.connect(url, autocommit=True) as db:
        for table in ("email_queue", "webhook_retry_queue"):
            db.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        ids = Seeded(
            sent=_sent(db),
            waiting=_waiting(db),
            dead=_dead(db, letters),
            long=_long(db),
            event=_events(db),
            dead_event=_dead_event(db),
            action=_action(db),
        )
        for table in ("email_queue", "webhook_retry_queue"):
            db.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        _figures(db)
        _house(db)
    return ids


def catch(maildir: Path) -> None:
    """Put a mail there as the transport files it, and a file that is none."""
    mail = EmailMessage()
    mail["From"], mail["To"] = "Shop <orders@shop.example>", LONG_ADDRESS
    mail["Subject"], mail["Message-ID"] = LONG_SUBJECT, "<caught@shop.example>"
    mail.set_content("Thank you, Ada. Your order #4711 is on its way.")
    mail.add_alternative(HTML, subtype="html")
    mail.add_attachment(b"%PDF-1.7", maintype="application", subtype="pdf", filename="invoice 4711.pdf")
    folder = maildir / "new"
    folder.mkdir(parents=True)
    (folder / CAUGHT).write_bytes(mail.as_bytes())
    (folder / "1795607841.broken.postroom").write_bytes(b"\xff\x00 no mail")


def enlarge(url: str, *, rows: int = 1_000_000) -> None:
    """A bad day on top of it: so many e-mails wait, a tenth as many are dead; the figures are large too."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("ALTER TABLE email_queue DISABLE TRIGGER USER")
        db.execute(
            """
            INSERT INTO email_queue (id, to_email, subject, html, email_type, created_at, due_at)
            SELECT
                md5(n::text)::uuid, 'reader' || n || '@example.net', 'News', '<p>News</p>', 'news',
                clock_timestamp() - interval '1 h', clock_timestamp() - make_interval(secs => n / 1000.0)
            FROM generate_series(1, %s) AS n
            """,
            [rows],
        )
        db.execute(
            """
            INSERT INTO email_queue (
                id, to_email, subject, html, status, dead_reason, last_error, attempts, error_count, due_at,
                failed_at
            )
            SELECT
                md5(n::text)::uuid, 'reader' || n || '@example.net', 'News', '<p>News</p>', 'dead_letter',
                'exhausted', '451 4.3.0 Temporary lookup failure', 6, 6, NULL,
                clock_timestamp() + make_interval(secs => n)
            FROM generate_series(%s, -1) AS n
            """,
            [-rows // 10],
        )
        db.execute("ALTER TABLE email_queue ENABLE TRIGGER USER")
        db.execute("UPDATE postroom.processing_minutes SET attempts = attempts * 9000 WHERE queue = 'email'")
        db.execute(
            "SET default_statistics_target = 10000"
        )  # it looks at all rows: the same estimates each time
        db.execute("VACUUM ANALYZE email_queue")


def _insert(db: Any, table: str, **columns: Any) -> UUID:
    """One row; a text that begins with `=` is SQL. Each run draws the same ids."""
    columns = {"id": UUID(int=_ids.getrandbits(128), version=4)} | columns
    names, places, values = [], [], []
    for name, value in columns.items():
        is_sql = isinstance(value, str) and value.startswith("=")
        names.append(name)
        places.append(value[1:] if is_sql else "%s")
        if not is_sql:
            is_json = isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))
            values.append(Jsonb(value) if is_json else value)
    sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(places)}) RETURNING id"
    found: UUID = db.execute(sql, values).fetchone()[0]
    return found


def _ago(seconds: float) -> str:
    return f"=clock_timestamp() - interval '{seconds} s'"


def _attempt(
    db: Any, ago_s: float, outcome: str, reply: str, ms: int = 84, transport: str | None = RELAY
) -> dict[str, Any]:
    at = db.execute("SELECT (clock_timestamp() - make_interval(secs => %s))::text", [ago_s]).fetchone()[0]
    worker = "8d0c2b54-6d3e-4c39-9c6f-0a4f43c0a001"
    return {
        "at": at, "outcome": outcome, "transport": transport, "reply": reply, "ms": ms,
        "worker": worker,
    }  # fmt: skip


def _sent(db: Any) -> UUID:
    last = UUID(int=0)
    for number in reversed(range(70)):
        kind, subject = KINDS[number % len(KINDS)]
        ago_s = 4 + 37 * number
        last = _insert(
            db, "email_queue",
            to_email=f"{PEOPLE[number % len(PEOPLE)]}@example.com", subject=subject.format(n=4711 - number),
            html=HTML, text="Thank you, Ada. Your order #4711 is on its way.", email_type=kind,
            from_email="Shop <orders@shop.example>", reply_to="help@shop.example", status="sent", due_at=None,
            attempts=1, lease_no=1, created_at=_ago(ago_s + 2), updated_at=_ago(ago_s), sent_at=_ago(ago_s),
            idempotency_key=f"{kind}-{4711 - number}", headers={"List-Unsubscribe": "<https://shop.example/u/1>"},
            metadata={"order": 4711 - number, "customer": {"id": 17, "tier": "gold"}},
            attempt_log=[_attempt(db, ago_s, "done", "250 2.0.0 Ok: queued as 4Xq2Yb1F7mz")],
        )  # fmt: skip
    return last


def _waiting(db: Any) -> UUID:
    for number in range(12):
        _insert(
            db, "email_queue", to_email=f"reader{number}@example.net", subject="News of November", html=HTML,
            email_type="news", status="pending", waits_for="limit:email:global", created_at=_ago(30),
            due_at=_ago(-20 - number),
        )  # fmt: skip
    return _insert(
        db, "email_queue", to_email="grace@example.com", subject="Your invoice", html=HTML,
        email_type="invoice", status="pending", waits_for="backoff", attempts=3, error_count=3,
        created_at=_ago(340), due_at=_ago(-290), next_retry_at=_ago(-290),
        last_error="451 4.7.1 Greylisted, try again later",
        attachments=[
            {"filename": "invoice 4711.pdf", "content": "JVBERi0xLjc="},
            {"filename": f"{'a-name-without-end-' * 8}.csv", "content": "MSwyCg=="},
        ],
        attempt_log=[
            _attempt(db, ago_s, "temporary", "451 4.7.1 Greylisted, try again later", ms)
            for ago_s, ms in ((339, 120), (337, 95), (331, 31_000))
        ],
    )  # fmt: skip


def _dead(db: Any, letters: int) -> UUID:
    last = UUID(int=0)
    for number in reversed(range(len(FAILURES) * letters)):
        reason, error = FAILURES[number % len(FAILURES)]
        ago_s = 120 + 90 * number
        last = _insert(
            db, "email_queue", to_email="nobody@example.org", subject=f"Your order #{3000 - number}",
            html=HTML, from_email="Shop <orders@shop.example>", email_type="order", status="dead_letter",
            dead_reason=reason, last_error=error, attempts=1 if reason == "permanent" else 6, error_count=1,
            due_at=None, created_at=_ago(ago_s + 5), updated_at=_ago(ago_s), failed_at=_ago(ago_s),
            attempt_log=[_attempt(db, ago_s, reason, error)],
        )  # fmt: skip
    return last


def _long(db: Any) -> UUID:
    """Values as long as strangers make them, and a row that a person discarded."""
    _insert(
        db, "email_queue", to_email="gone@example.org", subject="Gone", html="<p>Hi</p>", status="failed",
        due_at=None, attempts=6, error_count=6, last_error="discarded", failed_at=_ago(7200),
    )  # fmt: skip
    return _insert(
        db, "email_queue", to_email=LONG_ADDRESS, subject=LONG_SUBJECT, html="<p>" + "long " * 400 + "</p>",
        email_type="a-type-with-a-name-that-nobody-would-give-it-but-somebody-did", status="dead_letter",
        dead_reason="exhausted", last_error="452 " + "too-long-an-answer-without-a-space-" * 12, attempts=6,
        error_count=6, due_at=None, created_at=_ago(90_000), updated_at=_ago(50), failed_at=_ago(50),
        metadata={"a-key-" * 8: "a-value-" * 60},
    )  # fmt: skip


def _events(db: Any) -> UUID:
    last = UUID(int=0)
    for number in reversed(range(60)):
        ago_s = 6 + 53 * number
        event = {
            "id": f"evt_1QZ{number:05}", "type": ("checkout.session.completed", "invoice.paid")[number % 2],
            "data": {"object": {"id": f"cs_{number}", "amount_total": 1700, "currency": "gbp"}},
        }  # fmt: skip
        headers = {"content-type": "application/json", "user-agent": "Stripe/1.0 (+https://stripe.com/docs)"}
        last = _insert(
            db, "webhook_retry_queue", webhook_type="stripe", webhook_event_id=event["id"], payload=event,
            event_type=event["type"], headers=headers, status="processed", due_at=None, attempts=1,
            handlers_done=["orders", "ledger"], created_at=_ago(ago_s + 1), processed_at=_ago(ago_s),
            attempt_log=[_attempt(db, ago_s, "done", "orders, ledger", transport=None)],
        )  # fmt: skip
        db.execute(
            "INSERT INTO postroom.webhook_requests VALUES (%s, 'POST', '/webhooks/stripe', %s, %s)",
            [last, Jsonb([[name, value] for name, value in headers.items()]), json.dumps(event).encode()],
        )
    return last


def _dead_event(db: Any) -> UUID:
    return _insert(
        db, "webhook_retry_queue", webhook_type="github",
        webhook_event_id="72d3162e-cc78-11e3-81ab-4c9367dc0958",
        payload={"action": "opened", "number": 2}, event_type="pull_request.opened", status="dead_letter",
        due_at=None, attempts=6, error_count=6, dead_reason="exhausted", handlers_done=["audit"],
        last_error="deploy: HTTP 500 from http://127.0.0.1:3000/hooks: Internal Server Error",
        created_at=_ago(4000), failed_at=_ago(300),
        attempt_log=[_attempt(db, 300, "temporary", "deploy: HTTP 500: Internal Server Error", 9_800, None)],
    )  # fmt: skip


def _action(db: Any) -> UUID:
    """A retry of a whole group that has come half way when its process died."""
    return _insert(
        db, "postroom.bulk_actions", action="retry", queue="email",
        reason="permanent", note="The relay's list is mended", begun_by="on-call",
        begun_at=_ago(40), asked_at=_ago(60), total=4_000,
        place_queue="email", place_at=_ago(50_000), done=1_900, leased_until=_ago(20),
    )  # fmt: skip


def _figures(db: Any) -> None:
    """An hour of minutes, with a dip and some failures: what the charts and the percentiles show."""
    for queue, kinds, transport, done in (
        ("email", ("order", "receipt", "reset", "news"), "smtp://relay.example.com:587", "sent"),
        ("webhook", ("stripe", "github"), "", "processed"),
    ):
        for place, kind in enumerate(kinds):
            for outcome, status, share in (("done", done, 1.0), ("permanent", "dead_letter", 0.02)):
                db.execute(
                    """
                    INSERT INTO postroom.processing_minutes
                    SELECT
                        date_trunc('minute', clock_timestamp()) - make_interval(mins => ago),
                        %(queue)s, %(kind)s, %(transport)s, %(outcome)s, %(status)s, rate.n,
                        ARRAY[0, 0, rate.n, 0, 0], ARRAY[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, rate.n],
                        ARRAY[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, rate.n / 2, rate.n - rate.n / 2]
                    FROM generate_series(0, 59) AS ago
                    CROSS JOIN LATERAL (
                        SELECT greatest(
                            CASE WHEN ago BETWEEN 22 AND 26 THEN 4
                                ELSE 60 + 30 * sin(ago / 7.0 + %(place)s) END + ago * 7 %% 11, 0
                        ) * %(share)s AS wanted
                    ) AS wave
                    CROSS JOIN LATERAL (SELECT wave.wanted::integer AS n) AS rate
                    WHERE rate.n > 0
                    """,
                    {
                        "queue": queue, "kind": kind, "transport": transport, "outcome": outcome,
                        "status": status, "share": share, "place": place,
                    },
                )  # fmt: skip
    db.execute(
        """
        INSERT INTO postroom.processing_totals (
            queue, kind, transport, outcome, status, attempts, wait, attempt, total,
            wait_ms, attempt_ms, total_ms
        )
        SELECT queue, kind, transport, outcome, status, sum(attempts), '{}', '{}', '{}', 0, 0, 0
        FROM postroom.processing_minutes
        GROUP BY queue, kind, transport, outcome, status
        """
    )


def _house(db: Any) -> None:
    """Workers, a scheduler's runs, a transport that is down, an open alert."""
    for queue, number in (("email", 1), ("email", 2), ("webhook", 3)):
        db.execute(
            """
            INSERT INTO postroom.workers (
                id, queue, host, pid, version, started_at, seen_at, settled, begun, begun_lease_nos
            )
            SELECT
                ('8d0c2b54-6d3e-4c39-9c6f-0a4f43c0a00' || %s::text)::uuid, %s, 'mail-1.shop.example',
                4000 + %s, '0.1.0', clock_timestamp() - interval '2 d 3 h',
                clock_timestamp() + interval '1 d', '{"done": 4200, "permanent": 3}',
                array_agg(gen_random_uuid()), array_agg(1::bigint)
            FROM generate_series(1, %s)
            """,
            [number, queue, number, number],
        )
    db.execute(
        "SELECT postroom.pause('transport', 'smtp://old-relay.shop.example:25', 'ada@mail-1', %s)",
        ["We move to the new relay on Thursday; whoever still needs this one tells Ada."],
    )
    db.execute(
        """
        INSERT INTO postroom.cron_leader (
            scheduler, host, pid, version, can_run, term, leads_since, leads_until
        )
        VALUES (
            gen_random_uuid(), 'mail-1.shop.example', 4000, '0.1.0', '{}', 3,
            clock_timestamp() - interval '2 d', clock_timestamp() - interval '1 d'
        )
        """
    )
    db.execute(
        """
        INSERT INTO postroom.job_runs (
            jobid, command, status, return_message, start_time, end_time, scheduler, leased_until
        )
        SELECT
            job.jobid, job.command, CASE WHEN ago = 3 THEN 'failed' ELSE 'succeeded' END,
            CASE WHEN ago = 3 THEN 'the database did not answer within 10 s' ELSE 'nothing was due' END,
            at.moment, at.moment + interval '80 ms', gen_random_uuid(), at.moment + interval '60 s'
        FROM postroom.jobs AS job
        CROSS JOIN generate_series(1, 4) AS ago
        CROSS JOIN LATERAL (
            SELECT clock_timestamp() - make_interval(mins => ago, secs => job.jobid::integer) AS moment
        ) AS at
        """
    )
    db.execute(
        """
        INSERT INTO postroom.transports VALUES (
            'resend', clock_timestamp() + interval '1 d 40 s',
            '429 Too many requests: daily_quota_exceeded', 4, clock_timestamp()
        )
        """
    )
    db.execute(
        """
        INSERT INTO postroom.alerts (rule, subject, summary, since, fired_at, last_sent)
        SELECT 'dead_letters', 'email', '6 dead letters of e-mail in 10 min', at, at, at
        FROM (SELECT clock_timestamp() - interval '8 min' AS at) AS found
        """
    )
    db.execute(
        """
        INSERT INTO postroom.audit (at, actor, role, action, about, note)
        SELECT clock_timestamp() - make_interval(mins => done.ago), done.actor, done.role, done.action,
            done.about::jsonb, done.note
        FROM (
            VALUES
            (95, 'ada@mail-1', 'cli', 'key.create', '{"key": "on-call", "role": "operator"}', NULL),
            (42, 'on-call', 'operator', 'setting.change',
                '{"key": "email.limit.global", "before": "300/60s", "after": "100/60s"}',
                'The relay takes less since Monday'),
            (31, 'on-call', 'operator', 'email.edit',
                '{"queue": "email", "ids": ["8f8b2b83-022b-4320-a161-5022409a8a78"]}', NULL),
            (12, 'on-call', 'operator', 'webhook.replay',
                '{"queue": "webhook", "ids": ["5c47577b-3f12-468e-b2ff-d03d4eac98d6"], "handler": "all"}',
                NULL),
            (3, 'ada@mail-1', 'cli', 'job.run', '{"job": "cleanup"}', NULL)
        ) AS done (ago, actor, role, action, about, note)
        """
    )
