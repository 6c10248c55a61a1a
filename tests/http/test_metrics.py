"""GET /metrics: what the queues hold and who works, for Prometheus."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import httpx
from prometheus_client.parser import text_string_to_metric_families

from postroom import Room
from postroom.database.audit import Actor
from postroom.errors import PermanentFailure
from postroom.http import app
from postroom.http.server import serve
from postroom.metric_names import METRICS
from postroom.queue.pauses import pause
from tests.http.conftest import Served, serving, settings_of
from tests.http.test_webhooks import SECRET, by_stripe, post
from tests.support.postgres import free_port
from tests.support.waiting import until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Samples:
    """Every sample, by its name and labels; the official parser reads it, and each name is in the table."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        name = family.name + "_total" if family.type == "counter" else family.name
        metric = METRICS[name]
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, f"twice: {key}"
            assert set(sample.labels) - {"le"} == set(metric.labels)
            samples[key] = sample.value
    return samples


async def scrape(served: Served) -> Samples:
    """What /metrics says now."""
    served.doors.exposition._good_until = 0.0  # what was found a moment ago would be the answer
    answer = await served.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return parsed(answer.text)


def of(samples: Samples, name: str, /, **labels: str) -> float | None:
    """One sample; None where it is not there."""
    return samples.get((name, tuple(sorted(labels.items()))))


async def test_anybody_may_scrape_and_learns_no_address(served: Served) -> None:
    """It needs no key; there is no address, subject or error text in it."""
    await served.set("email.limit.sender.news@shop.example", "1/1h")
    await served.room.database.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, email_type, status, waits_for, due_at)
        VALUES ('ada@example.com', 'a subject', 'h', 'receipt', 'pending',
            'limit:email:sender:news@shop.example', now() + interval '1 hour')
        """
    )
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as probe:
        answer = await probe.get("/metrics")
    assert answer.status_code == 200
    assert not any(word in answer.text for word in ("@", "ada", "subject", "news", "shop.example"))
    assert of(parsed(answer.text), "postroom_queue_depth", queue="email", state="limit_sender") == 1


async def test_depths_say_what_each_live_row_waits_for(served: Served) -> None:
    """Due, leased, for a time, for a limit: each row in one state; dead letters by themselves; no history."""
    await served.room.database.execute(
        """
        BEGIN;
        SET LOCAL session_replication_role = replica;  -- each column as it is written here
        INSERT INTO email_queue (to_email, subject, html, status, waits_for, due_at)
        SELECT 'ada@example.com', 's', 'h', status, waits_for, now() + due
        FROM (VALUES
            ('pending', NULL, interval '-10 minutes'),
            ('pending', 'backoff', interval '-1 minute'),
            ('pending', 'backoff', interval '1 minute'),
            ('pending', 'send_at', interval '1 day'),
            ('pending', 'limit:email:recipient:ada@example.com', interval '1 minute'),
            ('pending', 'transport', interval '-1 minute'),
            ('pending', 'what nobody knows', interval '1 minute'),
            ('processing', NULL, interval '1 minute'),
            ('processing', NULL, interval '-1 minute'),
            ('sent', NULL, NULL), ('failed', NULL, NULL),
            ('dead_letter', NULL, NULL), ('dead_letter', NULL, NULL)
        ) AS row (status, waits_for, due);
        COMMIT;
        """
    )
    samples = await scrape(served)
    depths = {
        dict(labels)["state"]: value
        for (name, labels), value in samples.items()
        if name == "postroom_queue_depth" and dict(labels)["queue"] == "email"
    }
    assert depths == {
        "due": 3,
        "backoff": 1,
        "send_at": 1,
        "limit_recipient": 1,
        "transport": 1,
        "other": 1,
        "leased": 1,
    }
    assert of(samples, "postroom_dead_letters", queue="email") == 2
    assert of(samples, "postroom_dead_letters", queue="webhook") == 0
    oldest_s = of(samples, "postroom_queue_oldest_due_seconds", queue="email")
    assert oldest_s is not None
    assert 600 <= oldest_s < 660
    assert of(samples, "postroom_queue_oldest_due_seconds", queue="webhook") == 0


async def test_what_the_global_limit_holds_back_is_not_due(served: Served) -> None:
    """Rows that are due while the limit of all e-mails has no slot wait for that limit."""
    await served.set("email.limit.global", "1/1h")
    assert (await served.send()).status_code == 200
    for _ in range(2):
        await served.send(use_queue=True)
    samples = await scrape(served)
    assert of(samples, "postroom_queue_depth", queue="email", state="limit_global") == 2
    assert of(samples, "postroom_queue_depth", queue="email", state="due") == 0
    assert of(samples, "postroom_limit_slots", limit="email:global") == 1
    assert of(samples, "postroom_limit_slots_used", limit="email:global") == 1


async def test_a_deep_queue_is_counted_to_a_bound_and_estimated_beyond(served: Served) -> None:
    """Of 30,000 live rows 10,000 are looked at; the index says how many there are in all."""
    await served.room.database.execute(
        """
        INSERT INTO email_queue (to_email, subject, html, due_at)
        SELECT 'ada@example.com', 's', 'h', now() + n * interval '1 second' - interval '5000 s'
        FROM generate_series(1, 30000) AS n
        """
    )
    await served.room.database.execute("ANALYZE email_queue")
    samples = await scrape(served)
    assert of(samples, "postroom_queue_depth", queue="email", state="due") in range(4990, 5100)
    depths = [value for (name, _), value in samples.items() if name == "postroom_queue_depth"]
    assert sum(depths) == 30_000
    assert of(samples, "postroom_queue_depth", queue="email", state="uncounted") == 20_000


async def test_workers_transports_and_cron_are_shown(served: Served) -> None:
    """Who is alive and claims, which transport rests, whether a scheduler leads and its jobs succeed."""
    await served.room.database.execute(
        """
        INSERT INTO postroom.workers
            (id, queue, host, pid, version, asleep, claims, seen_at, begun, begun_lease_nos)
        SELECT gen_random_uuid(), queue, 'h', 1, 'v', asleep, claims, now() - seen, begun, '{1}'
        FROM (VALUES
            ('email', true, true, interval '0', '{}'::uuid[]),
            ('email', false, true, interval '0', ARRAY[gen_random_uuid(), gen_random_uuid()]),
            ('email', false, true, interval '1 hour', '{}'),
            ('email', false, false, interval '0', '{}')
        ) AS worker (queue, asleep, claims, seen, begun)
        """
    )
    await served.room.database.execute(
        """
        INSERT INTO postroom.transports (name, paused_until, failures)
        VALUES ('smtp://mail:25', now() + interval '1 minute', 3), ('resend', NULL, 0)
        """
    )
    await served.room.database.execute(
        """
        UPDATE postroom.cron_leader SET leads_until = clock_timestamp() + interval '1 minute';
        INSERT INTO postroom.job_runs
            (jobid, command, status, start_time, end_time, minute, scheduler, leased_until)
        SELECT 19, 'c', status, at, at, at, gen_random_uuid(), at
        FROM (VALUES
            ('succeeded', timestamptz '2026-01-01 10:00Z'), ('failed', '2026-01-01 10:01Z')
        ) AS run (status, at);
        UPDATE postroom.jobs SET last_succeeded_at = '2026-01-01 10:00Z' WHERE jobid = 19;
        """
    )
    samples = await scrape(served)
    assert of(samples, "postroom_workers", queue="email", state="asleep") == 1
    assert of(samples, "postroom_workers", queue="email", state="busy") == 1
    assert of(samples, "postroom_workers", queue="webhook", state="busy") == 0
    assert of(samples, "postroom_worker_attempts_in_flight", queue="email") == 2
    assert of(samples, "postroom_transport_paused", transport="smtp://mail:25") == 1
    assert of(samples, "postroom_transport_paused", transport="resend") == 0
    assert of(samples, "postroom_cron_job_failing", job="process-email-queue") == 1
    assert of(samples, "postroom_cron_job_failing", job="cleanup") == 0
    success = of(samples, "postroom_cron_job_last_success_timestamp_seconds", job="process-email-queue")
    assert success == 1767261600


async def test_what_persons_have_paused_is_shown_with_its_age(served: Served) -> None:
    """What is due waits for that; a transport that is not paused has no series."""
    database = served.room.database
    ada = Actor("ada@house", "cli")
    await database.execute(
        "INSERT INTO email_queue (to_email, subject, html) VALUES ('ada@example.com', 's', 'h')"
    )
    await pause(database, "queue", "email", by=ada, reason=None, for_s=None)
    await pause(database, "transport", "resend", by=ada, reason=None, for_s=None)
    await database.execute("UPDATE postroom.pauses SET since = since - interval '1 hour'")
    samples = await scrape(served)
    for kind, name in (("queue", "email"), ("transport", "resend")):
        assert 3_600 <= (of(samples, "postroom_paused_seconds", kind=kind, name=name) or 0.0) < 3_700
    assert of(samples, "postroom_paused_seconds", kind="queue", name="webhook") == 0
    assert of(samples, "postroom_queue_depth", queue="email", state="paused") == 1
    assert of(samples, "postroom_queue_depth", queue="email", state="due") == 0


async def test_what_waits_for_the_only_transport_to_be_resumed_is_paused_and_not_due(served: Served) -> None:
    """So that no alert calls anybody for what a person wanted; the pause of another one changes nothing."""
    database = served.room.database
    ada = Actor("ada@house", "cli")
    await database.execute(
        """
        INSERT INTO email_queue (to_email, subject, html) VALUES ('ada@example.com', 's', 'h');
        INSERT INTO email_queue (to_email, subject, html, next_retry_at)
        VALUES ('ada@example.com', 's', 'h', '2999-01-01')
        """
    )
    await pause(database, "transport", "resend", by=ada, reason=None, for_s=None)
    assert of(await scrape(served), "postroom_queue_depth", queue="email", state="due") == 1
    await pause(database, "transport", served.room.transport_names[0], by=ada, reason=None, for_s=None)
    samples = await scrape(served)
    assert of(samples, "postroom_queue_depth", queue="email", state="paused") == 1
    assert of(samples, "postroom_queue_depth", queue="email", state="due") == 0
    assert of(samples, "postroom_queue_depth", queue="email", state="send_at") == 1


async def test_a_held_snapshot_shows_its_age(served: Served) -> None:
    """The oldest transaction that keeps vacuum from its work."""
    async with served.room.database.transaction() as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.fetchval("SELECT count(*) FROM email_queue")
        await asyncio.sleep(0.05)
        age_s = of(await scrape(served), "postroom_oldest_snapshot_seconds")
    assert age_s is not None
    assert age_s >= 0.05


async def test_each_process_counts_what_providers_sent_it(database_url: str, tmp_path: Path) -> None:
    """Stored, seen before, refused: by source."""
    settings = settings_of(
        database_url, tmp_path, stripe_webhook_secret=SECRET, public_url="https://shop.example.com"
    )
    async with Room(**settings) as room, serving(room, key=None) as door:
        event = b'{"id":"evt_1","type":"charge.succeeded"}'
        for _ in range(3):
            await post(door, event)
        await door.client.post(
            "/webhooks/stripe", content=event, headers=by_stripe(event, secret="whsec_another")
        )
        samples = await scrape(door)
        counted = {
            result: of(samples, "postroom_webhook_intake_total", source="stripe", result=result)
            for result in ("stored", "duplicate", "refused", "not_stored")
        }
        assert counted == {"stored": 1, "duplicate": 2, "refused": 1, "not_stored": None}


async def test_a_scrape_without_the_database_still_answers(tmp_path: Path) -> None:
    """postroom_database_up is 0, the database's metrics are missing, and the process's own are there."""
    room = Room(**settings_of(f"postgresql://postgres@127.0.0.1:{free_port()}/nothing", tmp_path))
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(app(room), "127.0.0.1", 0, ready=address.set_result, stop=stop))
    async with httpx.AsyncClient(base_url=await address, trust_env=False, timeout=30) as probe:
        answer = await probe.get("/metrics")
    assert answer.status_code == 200
    assert parsed(answer.text) == {("postroom_database_up", ()): 0.0}
    stop.set()
    await task


async def test_many_scrapes_are_one_look(served: Served) -> None:
    """Anybody may ask, so asking must not cost the database anything."""
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as probe:
        answers = await asyncio.gather(*(probe.get("/metrics") for _ in range(30)))
        await served.send(use_queue=True)
        answers.append(await probe.get("/metrics"))
    assert len({answer.text for answer in answers}) <= 3


async def test_a_scrape_that_took_long_is_the_answer_for_longer(served: Served) -> None:
    """Twenty times as long: a twentieth of the time at most goes into scrapes, whatever makes them slow."""
    await scrape(served)
    async with served.room.database.transaction() as holder:
        await holder.execute("LOCK TABLE postroom.refused_rows")
        slow = asyncio.create_task(scrape(served))

        async def waits() -> bool:
            return bool(await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await until(waits)
        await asyncio.sleep(0.3)
    assert of(await slow, "postroom_database_up") == 1
    assert served.doors.exposition._good_until - monotonic() > 3


async def test_attempts_and_their_times_are_those_of_all_processes(served: Served) -> None:
    """By type, transport, outcome and what became of the row; three histograms; what a limit put back."""
    await served.send(email_type="receipt")

    async def refuse(_: object) -> str:
        raise PermanentFailure("no such user", code=550)

    served.recorder.behave = refuse
    await served.send(email_type="receipt")
    samples = await scrape(served)
    of_receipts = {"queue": "email", "kind": "receipt"}
    sent = of(
        samples,
        "postroom_attempts_total",
        **of_receipts,
        transport=served.recorder.name,
        outcome="done",
        status="sent",
    )
    assert sent == 1
    for name in ("postroom_wait_seconds", "postroom_attempt_seconds", "postroom_total_seconds"):
        assert of(samples, f"{name}_count", **of_receipts) == 2
        assert of(samples, f"{name}_bucket", **of_receipts, le="+Inf") == 2
        assert (of(samples, f"{name}_sum", **of_receipts) or 0) < 100
        buckets = [value for (key, labels), value in samples.items() if key == f"{name}_bucket" and labels]
        assert buckets == sorted(buckets)
    dead = [
        value
        for (name, labels), value in samples.items()
        if name == "postroom_attempts_total" and dict(labels)["status"] == "dead_letter"
    ]
    assert dead == [1]


async def test_what_limits_put_back_is_counted(served: Served) -> None:
    """By the kind of the limit."""
    await served.set("email.limit.recipient", "1/1h")
    for _ in range(3):
        await served.send(use_queue=True)
    await served.client.post("/functions/v1/process-email-queue")
    assert of(await scrape(served), "postroom_limit_waits_total", limit="recipient") == 2
