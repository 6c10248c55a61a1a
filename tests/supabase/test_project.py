"""A Supabase project, by its own tools and roles: pushed, worked on, taken over, and gone back from."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections import Counter
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from postroom.database import migrate as upgrade
from postroom.database.migrate import migrate, pending
from postroom.supabase.migrations import export_migrations
from tests.schedule.test_pg_cron import NAMES, PG_NET
from tests.supabase.projects import (
    ADMIN,
    CRON_DATABASE,
    SupabaseProject,
    handmade,
    ids_in,
    into,
    postroom,
    push,
    push_command,
    supabase_project,
)
from tests.support.node import NodeTools
from tests.support.postgres import PostgresServer
from tests.support.waiting import until
from tests.upgrade.callers import old_callers

ROOT = Path(__file__).parents[2]
PUSH_S_MAX = 100
SERVICE = '{"role": "service_role"}'
OTHERS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

INSERT = "INSERT INTO email_queue (to_email, subject, html) VALUES ('{}', 's', 'h') RETURNING status"
ENQUEUE = """
    SELECT enqueue_email(
        to_email => 'ada@example.com', subject => 's', html => 'h', idempotency_key => 'order-17'
    )
"""


async def test_supabase_db_push_makes_a_project_that_works(
    project: SupabaseProject, tools: NodeTools, tmp_path: Path
) -> None:
    """
    By the Supabase CLI, as `postgres`: `migrate --check` is content, and a second push has nothing to do.

    Default privileges had given all that is new in public to anon and authenticated: they reach nothing.
    service_role queues by the API; a worker of the owner's delivers; a person sees his own by his JWT.
    """
    migrations = tmp_path / "supabase" / "migrations"
    written = export_migrations(migrations)
    push(tools, tmp_path, project.url)
    assert not await pending(project.url)
    assert postroom(project, "migrate", "--check") == "up to date\n"
    history = project.execute("SELECT version FROM supabase_migrations.schema_migrations ORDER BY version")
    assert [row["version"] for row in history] == [path.name.partition("_")[0] for path in written]
    assert "up to date" in push(tools, tmp_path, project.url)

    ada = json.dumps({"role": "authenticated", "email": "Ada@Example.com", "sub": secrets.token_hex(4)})
    for role, claims in (("anon", '{"role": "anon"}'), ("authenticated", ada)):
        for statement in (
            "INSERT INTO email_queue (to_email, subject, html) VALUES ('eve@example.com', 's', 'h')",
            "SELECT enqueue_email('eve@example.com', 's', 'h')",
            "SELECT * FROM get_email_queue_batch(1)",
            "SELECT * FROM webhook_retry_queue",
            "SELECT * FROM postroom.settings",
            *(["SELECT * FROM email_queue"] if role == "anon" else []),
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                project.by_api(role, statement, claims)

    for address in ("ada@example.com", "bob@example.com"):
        made = project.by_api("service_role", INSERT.format(address), SERVICE)
        assert made == [{"status": "pending"}]
    first, second = (project.by_api("service_role", ENQUEUE, SERVICE) for _ in range(2))
    assert first == second

    postroom(project, "worker", "--drain", **into(tmp_path / "mail"))
    assert len(list((tmp_path / "mail" / "new").iterdir())) == 3
    seen = "SELECT to_email, status FROM email_queue"
    assert (
        project.by_api("authenticated", seen, ada) == [{"to_email": "ada@example.com", "status": "sent"}] * 2
    )
    assert project.by_api("authenticated", seen) == []
    claim = project.by_api("authenticated", "SELECT auth.jwt() ->> 'email' AS email", ada)
    assert claim == [{"email": "Ada@Example.com"}]


async def test_a_later_release_is_pushed_after_what_the_project_has_made_meanwhile(
    new_server: PostgresServer, tools: NodeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project has pushed one of its own between two releases: the CLI asks for no --include-all."""
    migrations = tmp_path / "supabase" / "migrations"
    ours = upgrade.migrations()
    with supabase_project(new_server) as project:
        with monkeypatch.context() as patch:
            patch.setattr(upgrade, "migrations", lambda: ours[:-1])
            last = export_migrations(migrations)[-1]
            push(tools, tmp_path, project.url)
            assert not await pending(project.url)
        own = str(int(last.name[:4]) + 1) + "0228120000_orders.sql"
        (migrations / own).write_text("CREATE TABLE public.orders (id bigint PRIMARY KEY);")
        push(tools, tmp_path, project.url)
        assert await pending(project.url)
        export_migrations(migrations)
        assert "Applying migration" in push(tools, tmp_path, project.url)
        assert not await pending(project.url)


async def test_a_push_that_is_cut_off_is_taken_up_again(
    new_server: PostgresServer, tools: NodeTools, tmp_path: Path
) -> None:
    """A forgotten transaction holds it up, callers go on, somebody kills it: the next push does the rest."""
    written = export_migrations(tmp_path / "supabase" / "migrations")
    with supabase_project(new_server) as project, handmade(project) as old:

        def done() -> int:
            made = "SELECT to_regclass('supabase_migrations.schema_migrations') IS NOT NULL AS made"
            if not project.execute(made)[0]["made"]:
                return 0
            return len(project.execute("SELECT 1 FROM supabase_migrations.schema_migrations"))

        with old.connect() as forgotten, forgotten.transaction():
            forgotten.execute("SELECT count(*) FROM email_queue")
            process = subprocess.Popen(push_command(tools, project.url), cwd=tmp_path, env=tools.environment)
            try:
                await until(lambda: done() == 1)
                with old_callers(old) as traffic:
                    await until(lambda: traffic.total() > 100)
                assert traffic.errors == []
                assert done() == 1
            finally:
                process.kill()
                process.wait()
        # What the server had of it already goes on there.
        others = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await until(lambda: not project.execute(others, ADMIN))
        push(tools, tmp_path, project.url)
        assert done() == len(written)
        assert not await pending(project.url)


async def test_old_callers_do_what_is_left_once_our_worker_is_gone(
    new_server: PostgresServer, tools: NodeTools, tmp_path: Path
) -> None:
    """
    Its callers enqueue, claim and settle: while it is pushed, beside our worker, and after we are gone.

    They get no error, wait for no lock longer than 2 s, and no mail is lost or sent by both.
    """
    export_migrations(tmp_path / "supabase" / "migrations")
    with supabase_project(new_server) as project, handmade(project) as old:
        waiting = {
            row["id"]
            for row in old.execute(
                "SELECT id FROM email_queue WHERE email_type IN ('deliver', 'traffic') AND status = 'pending'"
            )
        }
        events = {
            row["id"]
            for row in old.execute(
                "SELECT id FROM webhook_retry_queue "
                "WHERE metadata ->> 'upgrade' = 'deliver' AND status = 'pending'"
            )
        }
        assert min(len(waiting), len(events)) > 0
        with old_callers(old) as traffic:
            await until(lambda: min(traffic.calls[name] for name in ("delivered", "both", "inserted")) >= 3)
            push(tools, tmp_path, project.url)
            assert not await pending(project.url)
            postroom(old, "settings", "set", "email.limit.global", "20/60s")
            seen = traffic.total()
            postroom(old, "worker", "--queues", "email", "--drain", **into(tmp_path / "mail"))
            await until(lambda: traffic.total() > seen + 10)
        assert traffic.errors == []
        by_us = ids_in(tmp_path / "mail")
        assert by_us

        # We are gone; what waits is claimed by the old callers, by the functions that they know.
        by_them: Counter[UUID] = Counter(traffic.sent)
        handled: set[UUID] = set()
        with old.connect() as connection:
            connection.execute(
                "UPDATE email_queue SET next_retry_at = now() "
                "WHERE status = 'pending' AND email_type IN ('deliver', 'traffic')"
            )
            while batch := connection.execute("SELECT id FROM get_email_queue_batch(50)").fetchall():
                ids = [row["id"] for row in batch]
                by_them.update(ids)
                connection.execute("SELECT mark_email_sent(id) FROM unnest(%s::uuid[]) AS id", [ids])
            while batch := connection.execute("SELECT id FROM get_webhook_retry_batch(50)").fetchall():
                ids = [row["id"] for row in batch]
                handled.update(ids)
                connection.execute("SELECT mark_webhook_processed(id) FROM unnest(%s::uuid[]) AS id", [ids])
        assert events <= handled
        assert max((by_us + by_them).values()) == 1
        sent = {row["id"] for row in old.execute("SELECT id FROM email_queue WHERE status = 'sent'")}
        assert waiting <= sent


async def test_pg_cron_and_pg_net_as_supabase_enables_them(server_with_pg_cron: PostgresServer) -> None:
    """`postgres` may only read cron.job; pg_cron has our jobs, and they reach us by pg_net."""
    with supabase_project(server_with_pg_cron, CRON_DATABASE) as project:
        await migrate(project.url)
        assert project.execute("SELECT to_regnamespace('cron') AS made") == [{"made": None}]
        project.execute("CREATE EXTENSION pg_cron SCHEMA pg_catalog", ADMIN)
        for statement in (
            "GRANT USAGE ON SCHEMA cron TO postgres WITH GRANT OPTION",
            "GRANT ALL ON ALL FUNCTIONS IN SCHEMA cron TO postgres WITH GRANT OPTION",
            "GRANT ALL ON ALL TABLES IN SCHEMA cron TO postgres WITH GRANT OPTION",
            "REVOKE ALL ON TABLE cron.job FROM postgres",
            "GRANT SELECT ON TABLE cron.job TO postgres WITH GRANT OPTION",
        ):
            project.execute(statement, ADMIN)
        project.execute(PG_NET, ADMIN)
        postroom(project, "migrate", POSTROOM_PUBLIC_URL="https://mail.example.com")
        jobs = project.execute("SELECT jobname::text, command FROM cron.job ORDER BY jobname")
        assert [job["jobname"] for job in jobs] == ["alerts", *NAMES]
        for job in jobs[1:]:
            project.execute(job["command"])
        asked = project.execute("SELECT url FROM net.asked ORDER BY id", ADMIN)
        assert [row["url"] for row in asked] == [
            f"https://mail.example.com/functions/v1/{name}" for name in NAMES
        ]
