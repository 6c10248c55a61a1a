"""Cleanup: what is old goes, what lives stays, and nobody waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from postroom.database.connect import Database
from postroom.jobs import CLEANUP
from postroom.schedule.cleanup import Cleaned, cleanup

EMAILS = """
    INSERT INTO email_queue (
        to_email, subject, html, text, status, dead_reason, sent_at, failed_at, created_at
    )
    SELECT
        status || n || '@example.com', 's', 'h', 't', status,
        CASE WHEN status = 'dead_letter' OR status = 'failed' AND n % 2 = 0 THEN 'permanent' END,
        CASE WHEN status = 'sent' THEN now() - n * interval '1 day' END,
        CASE WHEN status IN ('dead_letter', 'failed') THEN now() - n * interval '1 day' END,
        now() - interval '400 days'
    FROM unnest('{pending, processing, sent, failed, dead_letter}'::text[]) AS status
    CROSS JOIN generate_series(1, 200, 1) AS n
"""
WEBHOOKS = """
    INSERT INTO webhook_retry_queue (
        webhook_type, webhook_event_id, payload, status, dead_reason, processed_at, failed_at, created_at
    )
    SELECT
        'stripe', status || n, '{"id": 1}', status,
        CASE WHEN status = 'dead_letter' OR status = 'failed' AND n % 2 = 0 THEN 'permanent' END,
        CASE WHEN status = 'processed' THEN now() - n * interval '1 day' END,
        CASE WHEN status IN ('dead_letter', 'failed') THEN now() - n * interval '1 day' END,
        now() - interval '400 days'
    FROM unnest('{pending, processing, processed, failed, dead_letter}'::text[]) AS status
    CROSS JOIN generate_series(1, 200, 1) AS n
"""
COUNTS = """
    SELECT 'email ' || status AS name, count(*) FROM email_queue GROUP BY status
    UNION ALL
    SELECT 'webhook ' || status, count(*) FROM webhook_retry_queue GROUP BY status
"""
ALL = {f"{queue} {status}": 200 for queue in ("email", "webhook") for status in ("pending", "processing")}
ALL |= {f"{queue} {status}": 200 for queue in ("email", "webhook") for status in ("failed", "dead_letter")}
ALL |= {"email sent": 200, "webhook processed": 200}


@pytest.fixture
async def filled(database: Database) -> Database:
    """Two hundred rows of each status in both queues, which have ended 1 to 200 days ago."""
    await database.execute(EMAILS)
    await database.execute(WEBHOOKS)
    return database


async def counts(database: Database) -> dict[str, int]:
    """Rows by queue and status."""
    return {row["name"]: row["count"] for row in await database.fetch(COUNTS)}


async def setting(database: Database, key: str, value: str) -> None:
    """Change one."""
    await database.execute("SELECT postroom.set_setting($1, $2)", key, value)


def by_rule(found: list[Cleaned]) -> dict[str, int]:
    """What was found, by step and rule."""
    return {f"{each.step.name} {rule}": count for each in found for rule, count in each.counts.items()}


async def test_what_ended_long_enough_ago_goes_and_nothing_else(filled: Database) -> None:
    """By the defaults: done 30 days, discarded 90; dead letters stay, and so does whatever still waits."""
    found = await cleanup(filled, CLEANUP)
    left = ALL | {"email sent": 29, "webhook processed": 29, "email failed": 144, "webhook failed": 144}
    assert await counts(filled) == left
    assert by_rule(found) == {
        "e-mails sent": 171,
        "e-mails failed": 56,
        "webhook events processed": 171,
        "webhook events failed": 56,
    }
    assert by_rule(await cleanup(filled, CLEANUP)) == {}


async def test_failed_rows_of_an_old_caller_are_left_alone(filled: Database) -> None:
    """Only what a person has discarded is postroom's to forget; also where the dead letter had no reason."""
    await setting(filled, "retention.failed", "1m")
    await filled.execute(
        "UPDATE email_queue SET dead_reason = NULL WHERE to_email = 'dead_letter1@example.com'"
    )
    await filled.execute(
        """
        SELECT postroom.discard_dead_emails(ARRAY(
            SELECT id FROM email_queue WHERE to_email = 'dead_letter1@example.com'
        ))
        """
    )
    await filled.execute(
        """
        UPDATE email_queue SET failed_at = now() - interval '1 day'
        WHERE to_email = 'dead_letter1@example.com'
        """
    )
    await cleanup(filled, CLEANUP)
    left = await filled.fetch("SELECT DISTINCT dead_reason FROM email_queue WHERE status = 'failed'")
    assert [row["dead_reason"] for row in left] == [None]
    assert (await counts(filled))["email failed"] == 100


async def test_each_setting_can_be_switched_off_or_changed(filled: Database) -> None:
    """Dead letters go where somebody says so."""
    for key in ("retention.sent", "retention.processed", "retention.failed"):
        await setting(filled, key, "off")
    await setting(filled, "retention.dead_letter", "100d")
    await cleanup(filled, CLEANUP)
    assert await counts(filled) == ALL | {"email dead_letter": 99, "webhook dead_letter": 99}


async def test_a_dry_run_counts_the_same_and_changes_nothing(filled: Database) -> None:
    """Not a byte of any row."""
    await setting(filled, "retention.body", "10d")
    whole = "SELECT md5(string_agg(e::text, '' ORDER BY id)) FROM email_queue AS e"
    before = await filled.fetchval(whole)
    dry = by_rule(await cleanup(filled, CLEANUP, dry_run=True))
    assert (await counts(filled), await filled.fetchval(whole)) == (ALL, before)
    assert by_rule(await cleanup(filled, CLEANUP)) == dry
    assert dry["e-mails body"] == 20 + 40  # sent 10 to 29 days ago, discarded 10 to 89 by a person


async def test_bodies_go_before_their_rows_where_that_is_set(filled: Database) -> None:
    """html, text, payload and the request as it came; the row and all else stay. Dead letters keep theirs."""
    await setting(filled, "retention.body", "7d")
    await filled.execute(
        """
        INSERT INTO postroom.webhook_requests (id, method, target, headers, body)
        SELECT id, 'POST', '/', '[]', 'x' FROM webhook_retry_queue
        """
    )
    await cleanup(filled, CLEANUP)
    rows = await filled.fetch(
        "SELECT status, html = '' AND text IS NULL AS emptied, count(*) FROM email_queue GROUP BY 1, 2"
    )
    emptied = {row["status"]: row["count"] for row in rows if row["emptied"]}
    assert emptied == {"sent": 23, "failed": 41}
    rows = await filled.fetch(
        """
        SELECT event.status, count(*)
        FROM webhook_retry_queue AS event LEFT JOIN postroom.webhook_requests AS request USING (id)
        WHERE request.id IS NULL AND event.payload = '{"_emptied": true}'
        GROUP BY 1
        """
    )
    assert {row["status"]: row["count"] for row in rows} == {"processed": 23, "failed": 41}
    assert await filled.fetchval("SELECT count(*) FROM postroom.webhook_requests") == sum(
        count for name, count in (await counts(filled)).items() if name.startswith("webhook")
    ) - (23 + 41)
    replayed = await filled.fetch(
        """
        SELECT postroom.replay_webhooks(array_agg(id), NULL)
        FROM webhook_retry_queue WHERE status = 'processed'
        """
    )
    assert len(replayed) == 6  # the seven younger than 7 days but the one on its edge
    assert by_rule(await cleanup(filled, CLEANUP)) == {}


async def test_a_row_that_somebody_holds_is_left_to_the_next_time(
    filled: Database, database_url: str
) -> None:
    """Nobody is waited for."""
    holder = await asyncpg.connect(database_url)
    try:
        async with holder.transaction():
            await holder.execute(
                """
                SELECT 1 FROM email_queue
                WHERE to_email IN ('sent50@example.com', 'sent60@example.com') FOR UPDATE
                """
            )
            async with asyncio.timeout(20):
                found = by_rule(await cleanup(filled, CLEANUP))
        assert found["e-mails sent"] == 169
        assert by_rule(await cleanup(filled, CLEANUP)) == {"e-mails sent": 2}
    finally:
        await holder.close()


async def test_rows_that_refuse_stop_no_others(filled: Database) -> None:
    """A table that names a row, a trigger that says no: they are counted, with the error."""
    await filled.execute(
        """
        CREATE TABLE orders (email_id uuid REFERENCES email_queue (id));
        INSERT INTO orders
        SELECT id FROM email_queue WHERE to_email IN ('sent50@example.com', 'sent60@example.com');
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF OLD.webhook_event_id = 'processed77' THEN RAISE 'kept'; END IF;
                RETURN OLD;
            END $$;
        CREATE TRIGGER keep BEFORE DELETE ON webhook_retry_queue FOR EACH ROW EXECUTE FUNCTION keep();
        """
    )
    found = await cleanup(filled, CLEANUP)
    assert by_rule(found)["e-mails sent"] == 169
    assert by_rule(found)["webhook events processed"] == 170
    assert [(each.refused, each.why) for each in found[:2]] == [
        (
            2,
            'update or delete on table "email_queue" violates foreign key constraint "orders_email_id_fkey" '
            'on table "orders"',
        ),
        (1, "kept"),
    ]


async def test_it_stops_between_two_batches(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed stays done; the next one goes on."""
    from postroom.schedule import cleanup as module

    monkeypatch.setattr(module, "BATCH_PAGES", 1)
    stop = asyncio.Event()
    found = await cleanup(
        filled, CLEANUP, stop=stop, report=lambda text: None if " 0 so far" in text else stop.set()
    )
    done = found[0].counts.total()
    assert found[0].stopped
    assert 0 < sum(ALL.values()) - sum((await counts(filled)).values()) == done
    found = await cleanup(filled, CLEANUP)
    assert done + found[0].counts.total() == 171 + 56


async def test_two_at_once_do_each_row_once(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cron job and a person."""
    from postroom.schedule import cleanup as module

    monkeypatch.setattr(module, "BATCH_PAGES", 1)
    both = await asyncio.gather(cleanup(filled, CLEANUP), cleanup(filled, CLEANUP))
    assert sum(by_rule(found).get("e-mails sent", 0) for found in both) == 171
    assert (await counts(filled))["email sent"] == 29


async def test_what_is_kept_beside_the_queues_is_bounded_too(database: Database) -> None:
    """Known ids after 30 days, windows that have ended, the history of jobs, dead workers."""
    await database.execute(
        """
        INSERT INTO postroom.seen_webhooks (source, event_id, id, seen_at)
        SELECT 'stripe', 'evt_' || n, gen_random_uuid(), now() - n * interval '1 day'
        FROM generate_series(1, 40) AS n;
        INSERT INTO rate_limit_counters (key, count, window_start, window_end)
        SELECT 'mine:' || n, 1, now() - interval '1 hour', now() + (n - 5) * interval '1 minute'
        FROM generate_series(1, 10) AS n;
        INSERT INTO postroom.job_runs (jobid, command, status, start_time, end_time, scheduler, leased_until)
        SELECT
            19, 'x', 'failed', now() - n * interval '1 day', now() - n * interval '1 day',
            gen_random_uuid(), now()
        FROM generate_series(1, 20) AS n;
        SELECT postroom.begin_run(gen_random_uuid(), 19, NULL, 1, now() - interval '20 days');
        SELECT postroom.register_worker(gen_random_uuid(), 'email', 'h', 1, 'v', true, true, '{}');
        UPDATE postroom.workers SET seen_at = now() - interval '2 days';
        """
    )
    found = by_rule(await cleanup(database, CLEANUP))
    assert found == {"known event ids seen": 11, "limits ended": 5, "runs of jobs cron": 14}
    left: Any = await database.fetchrow(
        """
        SELECT
            (SELECT count(*) FROM postroom.seen_webhooks), (SELECT count(*) FROM postroom.job_runs),
            (SELECT count(*) FROM postroom.workers)
        """
    )
    assert tuple(left) == (29, 7, 0)


async def test_a_batch_reads_its_own_pages_alone(filled: Database) -> None:
    """However large the table is: the rows' addresses are the plan."""
    async with filled.transaction() as connection:
        for table, function in ((step.table, step.function) for step in CLEANUP[:2]):
            await connection.execute("SET LOCAL track_functions = 'all'")
            await connection.execute(f"ANALYZE {table}")
            pages = await connection.fetchval(f"SELECT pg_relation_size('{table}') / 8192")
            assert pages > 10
            for _ in range(8):  # also as a generic plan
                await connection.fetch(f"SELECT * FROM {function}('(1,0)', '(2,0)', true)")
            plan = await connection.fetch(
                f"""
                EXPLAIN (COSTS OFF)
                SELECT 1 FROM {table} AS t WHERE t.ctid >= '(1,0)' AND t.ctid < '(2,0)' FOR UPDATE SKIP LOCKED
                """
            )
            assert any("Tid Range Scan" in row[0] for row in plan)
            before = await connection.fetchval(_READ, table.removeprefix("public."))
            await connection.fetch(f"SELECT * FROM {function}('(1,0)', '(2,0)', true)")
            assert await connection.fetchval(_READ, table.removeprefix("public.")) == before


# Whole scans of a table in this transaction.
_READ = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = $1"
