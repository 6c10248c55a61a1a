"""Going back from postroom (docs/how-to/supabase.md): what a project had is there again, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from postroom.database.migrate import migrate, pending
from postroom.supabase.migrations import export_migrations
from tests.schedule.test_pg_cron import PG_NET
from tests.supabase.projects import (
    ADMIN,
    CRON_DATABASE,
    SupabaseProject,
    command,
    handmade,
    ids_in,
    into,
    postroom,
    push,
    supabase_project,
)
from tests.support.node import NodeTools
from tests.support.postgres import PostgresServer
from tests.support.waiting import until
from tests.upgrade.callers import Traffic, handle_events, old_callers
from tests.upgrade.conftest import Project

GIVE_BACK = "CALL postroom.give_back()"
HANDLER = """
CREATE TABLE handled (event_id uuid);
CREATE FUNCTION on_event(payload jsonb, event_id text) RETURNS void LANGUAGE sql AS
    'INSERT INTO public.handled VALUES ($2::uuid)';
"""
SOURCE = """
[webhooks.live]
scheme = "none"
[[webhooks.live.handlers]]
name = "handled"
sql = "public.on_event"
"""
BULK = 600
IN_HAND = "status = 'processing' AND leased_by IS NOT NULL"

OWN_THINGS = {
    "functions": """
        SELECT
            proc.oid::regprocedure::text, md5(pg_get_functiondef(proc.oid)), proc.proowner::regrole::text,
            (
                SELECT array_agg(acl::text ORDER BY acl::text)
                FROM unnest(COALESCE(proc.proacl, acldefault('f', proc.proowner))) AS held (acl)
            )::text
        FROM pg_proc AS proc WHERE proc.pronamespace = 'public'::regnamespace
    """,
    "triggers": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "policies": """
        SELECT tablename::text, policyname::text, roles::text, cmd, qual, with_check
        FROM pg_policies WHERE schemaname = 'public'
    """,
    "tables": """
        SELECT
            relname::text, relrowsecurity,
            (SELECT array_agg(acl::text ORDER BY acl::text) FROM unnest(relacl) AS held (acl))::text
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
    """,
    "columns": """
        SELECT attrelid::regclass::text, attname::text, format_type(atttypid, atttypmod), attacl::text
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
    """,
}


def own_things(project: Project) -> dict[str, set[tuple[object, ...]]]:
    """What the project's own hands have made, with who may do what."""
    return {
        name: {tuple(row.values()) for row in project.execute(query)} for name, query in OWN_THINGS.items()
    }


@contextmanager
def worker(project: Project, folder: Path, *queues: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of ours that delivers into a folder; killed at the end of the block, if it lives."""
    (folder / "postroom.toml").write_text(SOURCE)
    process = subprocess.Popen(
        [sys.executable, "-m", "postroom", "worker"],
        env=os.environ | {"POSTROOM_DATABASE_URL": project.url} | into(folder / "mail"),
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def kill_with_leases(process: subprocess.Popen[bytes], project: Project) -> set[UUID]:
    """Kill a worker at a moment when it has mails in hand; returns those."""
    while True:
        process.send_signal(signal.SIGSTOP)
        in_hand = {row["id"] for row in project.execute(f"SELECT id FROM email_queue WHERE {IN_HAND}")}
        if in_hand:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return in_hand
        process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.01)


def delivered(folder: Path) -> int:
    """How many mails a worker has put into its folder."""
    return len(list((folder / "mail" / "new").glob("*")))


def claim_and_send_all(project: Project) -> tuple[Counter[UUID], Counter[UUID]]:
    """What waits goes out by the old programs' own statements: mails, and events."""
    sent, handled = Counter[UUID](), Counter[UUID]()
    for table, done, counted in (
        ("email_queue", "sent", sent),
        ("webhook_retry_queue", "processed", handled),
    ):
        counted.update(
            row["id"]
            for row in project.execute(
                f"UPDATE {table} SET status = '{done}' WHERE status = 'pending' "
                "AND NOT COALESCE(metadata ? 'legal_hold', false) RETURNING id"
            )
        )
    return sent, handled


async def test_what_is_in_flight_while_a_project_is_taken_over_and_given_back_is_done_once(
    project: SupabaseProject, tools: NodeTools, tmp_path: Path
) -> None:
    """
    Old callers enqueue, claim and settle all the time: by their functions, ours, and their own again.

    Beside them a worker of ours is killed with leases in hand, and another is drained. In the end each mail
    was sent once and each event handled once, but for mails that the killed one had begun: they are parked.
    """
    export_migrations(tmp_path / "supabase" / "migrations")
    with handmade(project) as old:
        old.execute(HANDLER)
        before = {row["id"] for row in old.execute("SELECT id FROM email_queue")}
        with old_callers(old, handle_events) as traffic:
            await until(lambda: min(traffic.calls[name] for name in ("delivered", "both", "noted")) >= 3)
            push(tools, tmp_path, project.url)
            for key, value in (
                ("email.limit.global", "off"),
                ("email.limit.recipient", "off"),
                ("email.on_uncertain", "park"),
            ):
                old.execute(f"SELECT postroom.set_setting('{key}', '{value}')")

            with worker(old, tmp_path) as first:
                await until(lambda: delivered(tmp_path) > 0)
                old.execute(
                    "INSERT INTO email_queue (to_email, subject, html) "
                    f"SELECT 'bulk' || n || '@example.com', 'Bulk', 'h' FROM generate_series(1, {BULK}) AS n"
                )
                old.execute(
                    "INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload, metadata) "
                    "SELECT 'live', gen_random_uuid(), '{}', '{\"upgrade\": \"live\"}' "
                    f"FROM generate_series(1, {BULK})"
                )
                in_hand = await kill_with_leases(first, old)

            with worker(old, tmp_path) as second:
                seen = delivered(tmp_path)
                await until(lambda: delivered(tmp_path) > seen + 20)
                second.send_signal(signal.SIGTERM)
                assert second.wait(60) == 0
            # The killed one was seen a moment ago.
            assert "was seen" in command(old.url, "psql", "-c", GIVE_BACK).stderr
            old.execute("UPDATE postroom.workers SET seen_at = now() - interval '1 minute'")
            postroom(old, "psql", "-c", GIVE_BACK)
            back = traffic.total()
            await until(lambda: traffic.total() > back + 30)
        assert traffic.errors == []
        parked = _assert_done_once(old, before, traffic, ids_in(tmp_path / "mail"))
        assert parked <= in_hand


def _assert_done_once(old: Project, before: set[UUID], traffic: Traffic, by_us: Counter[UUID]) -> set[UUID]:
    """Every mail and event accounted for, from the outside; returns the mails that nobody may send again."""
    assert not old.execute("SELECT FROM webhook_retry_queue WHERE status = 'processing'")
    held = old.execute("SELECT to_email FROM email_queue WHERE status = 'processing' ORDER BY 1")
    assert [row["to_email"] for row in held] == ["held@example.com", "hold-stuck@example.com"]
    mails, events = claim_and_send_all(old)
    rows = {
        row["id"]: row for row in old.execute("SELECT id, status, dead_reason, email_type FROM email_queue")
    }
    made = sum(traffic.calls[name] for name in ("delivered", "both", "inserted")) + BULK
    assert (before <= rows.keys(), len(rows)) == (True, len(before) + made)

    sent = by_us + traffic.sent + mails
    assert by_us.total() > 20
    assert max(sent.values()) == 1
    for id_, row in rows.items():
        if row["status"] == "sent":
            assert id_ in sent or row["email_type"] == "keep", row
        else:
            assert id_ not in sent or row["dead_reason"] == "uncertain", row
            given_up = row["status"] == "failed" or row["dead_reason"] in ("stale", "uncertain", "exhausted")
            assert given_up or row["email_type"] in ("held", "refused"), row
    ours = Counter(
        row["id"]
        for row in old.execute(
            "SELECT queue.id FROM handled "
            "JOIN webhook_retry_queue AS queue ON queue.webhook_event_id = handled.event_id::text"
        )
    )
    live = {
        row["id"] for row in old.execute("SELECT id FROM webhook_retry_queue WHERE webhook_type = 'live'")
    }
    assert len(live) == traffic.calls["noted"] + BULK
    done = ours + traffic.handled + events
    assert ours.total() > 0
    assert {done[event] for event in live} == {1}
    dead = old.execute("SELECT id, last_error FROM webhook_retry_queue WHERE dead_reason = 'permanent'")
    assert all(ours[row["id"]] == 1 and "done before: handled" in row["last_error"] for row in dead)
    return {id_ for id_, row in rows.items() if row["dead_reason"] == "uncertain"}


async def test_a_project_gone_back_from_wholly_is_as_it_was(project: SupabaseProject) -> None:
    """
    Its functions, for whom they were, its policies, privileges and triggers; of ours, the columns alone.

    Default privileges give a function that is made anew to anybody, and these run as their definer. A later
    migrate takes the project over anew.
    """
    with handmade(project) as old:
        for statement in (
            "REVOKE ALL ON FUNCTION mark_email_sent(uuid) FROM PUBLIC, anon, authenticated",
            f'GRANT EXECUTE ON FUNCTION mark_email_sent(uuid) TO "{old.reports}" WITH GRANT OPTION',
            "REVOKE ALL ON webhook_retry_queue FROM anon",
            "GRANT UPDATE (status) ON webhook_retry_queue TO authenticated",
        ):
            old.execute(statement)
        before = own_things(old)
        with old_callers(old) as traffic:
            await migrate(old.url)
            seen = traffic.total()
            await until(lambda: traffic.total() > seen + 20)
            postroom(old, "psql", "-c", GIVE_BACK)
            back = traffic.total()
            await until(lambda: traffic.total() > back + 20)
        assert traffic.errors == []
        assert max(traffic.sent.values()) == 1
        after = own_things(old)
        columns = before.pop("columns")
        assert columns <= after.pop("columns")
        assert after == before
        schemas = old.execute("SELECT to_regnamespace('postroom') AS house, to_regnamespace('cron') AS cron")
        assert schemas == [{"house": None, "cron": None}]
        await migrate(old.url)
        assert not await pending(old.url)
        postroom(old, "psql", "-c", GIVE_BACK)
        assert own_things(old)["functions"] == before["functions"]


async def test_of_a_function_that_was_made_anew_the_last_one_is_given_back(
    new_server: PostgresServer,
) -> None:
    """Another deploy of the project has made it anew over ours, with another return type, and for fewer."""
    made = (
        "CREATE FUNCTION mark_email_sent(email_id uuid) RETURNS {} LANGUAGE sql AS 'SELECT true::{}'",
        "REVOKE ALL ON FUNCTION mark_email_sent(uuid) FROM PUBLIC, anon, authenticated",
    )
    with supabase_project(new_server) as project:
        project.execute(made[0].format("boolean", "boolean"))
        await migrate(project.url)
        project.execute("DROP FUNCTION mark_email_sent")
        for statement in made:
            project.execute(statement.format("text", "text"))
        project.execute("UPDATE postroom.repeatables SET digest = 'of another release'")
        await migrate(project.url)
        postroom(project, "psql", "-c", GIVE_BACK)
        found = project.execute(
            """
            SELECT
                pg_get_function_result('mark_email_sent(uuid)'::regprocedure) AS gives,
                has_function_privilege('anon', 'mark_email_sent(uuid)', 'EXECUTE') AS for_anon
            """
        )
        assert found == [{"gives": "text", "for_anon": False}]


async def test_a_project_that_comes_again_is_met_as_the_first_time(new_server: PostgresServer) -> None:
    """What old callers hold then keeps its 15 minutes, what has waited for more than 7 days is stale."""
    with supabase_project(new_server) as project:
        await migrate(project.url)
        project.execute("SELECT enqueue_email(n || '@example.com', 's', 'h') FROM generate_series(1, 3) AS n")
        postroom(project, "psql", "-c", GIVE_BACK)
        for statement in (
            "UPDATE email_queue SET status = 'processing', updated_at = now() "
            "WHERE to_email = '1@example.com'",
            "UPDATE email_queue SET created_at = now() - interval '9 days' WHERE to_email = '2@example.com'",
            "INSERT INTO email_queue (to_email, subject, html, next_retry_at) "
            "VALUES ('4@example.com', 's', 'h', now() + interval '1 hour')",
        ):
            project.execute(statement)
        await migrate(project.url)
        claimed = project.execute("SELECT to_email FROM get_email_queue_batch(10)")
        assert claimed == [{"to_email": "3@example.com"}]
        stale = project.execute("SELECT to_email FROM email_queue WHERE status = 'dead_letter'")
        assert stale == [{"to_email": "2@example.com"}]


async def test_a_new_project_gone_back_from_is_open_to_nobody(new_server: PostgresServer) -> None:
    """Its tables are postroom's own: what default privileges had given to anon is not put back."""
    with supabase_project(new_server) as project:
        await migrate(project.url)
        project.execute("SELECT enqueue_email('ada@example.com', 's', 'h')")
        postroom(project, "psql", "-c", GIVE_BACK)
        for role in ("anon", "authenticated"):
            for table in ("email_queue", "webhook_retry_queue", "rate_limit_counters"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    project.by_api(role, f"SELECT * FROM {table}")
        assert project.by_api("service_role", "SELECT status FROM email_queue") == [{"status": "pending"}]


async def test_what_would_be_hurt_by_going_back_is_named_first(new_server: PostgresServer) -> None:
    """
    A view of a person's on what would go; nothing is changed.

    A forgotten transaction holds it up, and no caller beside it; a call that is cut off is taken up again.
    """
    with supabase_project(new_server) as project, handmade(project) as old:
        of_before = own_things(old)
        await migrate(old.url)
        before = own_things(old)
        for view in (
            "SELECT id, due_at FROM email_queue",
            "SELECT * FROM postroom.settings",
            "SELECT calculate_email_retry_time(1) AS at",
        ):
            old.execute(f"CREATE VIEW mine AS {view}")
            refused = command(old.url, "psql", "-c", GIVE_BACK)
            assert refused.returncode == 1
            assert "needed by view public.mine" in refused.stderr
            old.execute("DROP VIEW mine")
        assert own_things(old) == before

        with old.connect() as forgotten, old_callers(old) as traffic:
            with forgotten.transaction():
                forgotten.execute("SELECT count(*) FROM email_queue")
                process = subprocess.Popen(
                    [sys.executable, "-m", "postroom", "psql", "-c", GIVE_BACK],
                    env=os.environ | {"POSTROOM_DATABASE_URL": old.url},
                )
                swapped = "SELECT to_regprocedure('get_email_queue_batch()') AS old"
                await until(lambda: old.execute(swapped)[0]["old"] is not None)
                seen = traffic.total()
                await until(lambda: traffic.total() > seen + 20)
                assert process.poll() is None
                # Cut off in the middle, the next call does the rest.
                old.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    f"WHERE datname = current_database() AND query = '{GIVE_BACK}'"
                )
                assert process.wait(60) == 1
            postroom(old, "psql", "-c", GIVE_BACK)
            assert old.execute("SELECT to_regnamespace('postroom') AS house") == [{"house": None}]
            assert own_things(old)["policies"] == of_before["policies"]
            seen = traffic.total()
            await until(lambda: traffic.total() > seen + 20)
        assert traffic.errors == []


@pytest.mark.parametrize("column", ["ours", "the project's own"])
async def test_mails_with_attachments_are_not_given_to_programs_that_know_none(
    new_server: PostgresServer, column: str
) -> None:
    """They are to be sent before; those in a column that the project had already, its own programs know."""
    with supabase_project(new_server) as project, handmade(project) as old:
        if column != "ours":
            old.execute("ALTER TABLE email_queue ADD COLUMN attachments jsonb")
        await migrate(old.url)
        old.execute(
            "INSERT INTO email_queue (to_email, subject, html, attachments) "
            """VALUES ('ada@example.com', 's', 'h', '[{"filename": "a.txt", "content": "aGk="}]')"""
        )
        refused = command(old.url, "psql", "-c", GIVE_BACK)
        if column == "ours":
            assert refused.returncode == 1
            assert "1 e-mails with attachments wait" in refused.stderr
            old.execute("UPDATE email_queue SET status = 'failed' WHERE attachments IS NOT NULL")
            postroom(old, "psql", "-c", GIVE_BACK)
        assert old.execute("SELECT to_regnamespace('postroom') AS house") == [{"house": None}]


async def test_pg_cron_calls_nothing_of_ours_afterwards(server_with_pg_cron: PostgresServer) -> None:
    """Its jobs of ours go; the project's own stay."""
    with supabase_project(server_with_pg_cron, CRON_DATABASE) as project:
        project.execute("CREATE EXTENSION pg_cron SCHEMA pg_catalog", ADMIN)
        project.execute("GRANT USAGE ON SCHEMA cron TO postgres", ADMIN)
        project.execute(PG_NET, ADMIN)
        project.execute("SELECT cron.schedule('report', '0 3 * * *', 'SELECT 1')")
        postroom(project, "migrate", POSTROOM_PUBLIC_URL="https://mail.example.com")
        jobs = "SELECT jobname::text FROM cron.job ORDER BY 1"
        assert len(project.execute(jobs)) == 4
        postroom(project, "psql", "-c", GIVE_BACK)
        assert project.execute(jobs) == [{"jobname": "report"}]
