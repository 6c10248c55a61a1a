"""`postroom migrate` over a hand-made project, while its callers go on (contract §1, Upgrade)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID

import psycopg
import pytest

from postroom.database.connect import Database
from postroom.database.migrate import MigrationFailed, migrate
from tests.queue.conftest import House, Recorder
from tests.support.waiting import until
from tests.upgrade.callers import old_callers
from tests.upgrade.conftest import QUEUES, Project

FATE = {"email_queue": "email_type", "webhook_retry_queue": "metadata ->> 'upgrade'"}

# Columns that settling a row may change.
SETTLED = {"status", "last_error", "updated_at", "failed_at"}


def fates(project: Project, table: str) -> dict[str, str]:
    """What has to become of each row, by its id."""
    return {
        row["id"]: row["fate"]
        for row in project.execute(f"SELECT id::text AS id, {FATE[table]} AS fate FROM {table}", "postgres")
    }


def states(project: Project, table: str, fate: str) -> set[tuple[Any, ...]]:
    """The different states of all rows of one fate."""
    return {
        tuple(row.values())
        for row in project.execute(
            f"SELECT DISTINCT status, last_error, dead_reason, failed_at IS NOT NULL AS has_failed "
            f"FROM {table} WHERE {FATE[table]} = '{fate}'",
            "postgres",
        )
    }


async def test_the_upgrade_changes_what_it_settles_and_nothing_else(project_on_each: Project) -> None:
    """
    Old callers enqueue, claim and settle all the time, by the old functions, then by ours, without one error.

    Old columns stay to the byte, the project's own triggers fire for no row that is not settled, and
    what waits goes out once.
    """
    project = project_on_each
    tables = [*QUEUES, "rate_limit_counters"]
    columns = {table: project.columns(table) for table in tables}
    before = {table: project.rows(table, columns[table]) for table in tables}
    for table in QUEUES:
        unwritten = [name for name in columns[table] if name not in SETTLED]
        before[f"{table} unwritten"] = project.rows(table, unwritten)
    fate = {table: fates(project, table) for table in QUEUES}
    lines: list[str] = []

    with old_callers(project) as traffic:
        await until(lambda: min(traffic.calls[name] for name in ("delivered", "both", "inserted")) >= 3)
        project.execute("DELETE FROM touched")
        await migrate(project.url, report=lines.append)
        seen = traffic.total()
        await until(lambda: traffic.total() > seen + 10)
    assert traffic.errors == []

    # 1. Every row but the settled ones, and those that an old caller has sent meanwhile: to the byte. Of the
    # settled ones: each column that settling does not write.
    theirs = {str(email) for email in traffic.sent}
    for table in QUEUES:
        settled = {row for row, what in fate[table].items() if what in ("stuck", "stale")} - theirs
        kept = fate[table].keys() - settled - theirs
        assert len(kept) > 90
        after = project.rows(table, columns[table])
        assert [row for row in kept if after[row] != before[table][row]] == []
        unwritten = [name for name in columns[table] if name not in SETTLED]
        after = project.rows(table, unwritten)
        assert [row for row in settled if after[row] != before[f"{table} unwritten"][row]] == []
        touches = Counter(
            touch["id"]
            for touch in project.execute(
                f"SELECT id::text AS id FROM touched WHERE queue = '{table}'", "postgres"
            )
        )
        assert {row: n for row, n in touches.items() if row in fate[table].keys() - theirs} == dict.fromkeys(
            settled, 1
        )
    counters = project.rows("rate_limit_counters", columns["rate_limit_counters"])
    changed = before["rate_limit_counters"].items() - counters.items()
    assert {key for key, _ in changed} == {"signup:10.0.0.1"}

    # 2. The settled rows, and those that nobody could settle.
    for table in QUEUES:
        assert states(project, table, "stale") == {("dead_letter", "stale at upgrade", "stale", True)}
    assert ("processing", None, None, False) in states(project, "email_queue", "held")
    assert states(project, "email_queue", "refused") == {
        ("pending", None, None, False),
        ("processing", None, None, False),
    }

    # 3. What was replaced is kept, and the default for new rows is ours.
    texts = project.execute("SELECT kind, name, definition FROM postroom.replaced_objects")
    assert {"function": 9, "policy": 5, "constraint": 1}.items() <= Counter(t["kind"] for t in texts).items()
    assert any("SECURITY DEFINER" in t["definition"] and "RETURNS boolean" in t["definition"] for t in texts)
    assert any("auth.users" in t["definition"] for t in texts)
    assert any(t["name"] == "get_email_queue_batch()" for t in texts)
    assert project.execute("SELECT count(*) AS n FROM email_queue WHERE max_attempts = 5")[0]["n"] > 700

    # 4. It was all told.
    told = "\n".join(lines)
    for what in (
        "41 rows stuck",
        "function enqueue_email(text,text,text)",
        "policy everything",
        "status_check",
    ):
        assert what in told, told

    await everything_goes_out_once(project, fate["email_queue"], traffic.sent)


async def everything_goes_out_once(project: Project, fate: dict[str, str], sent: Counter[UUID]) -> None:
    """A worker delivers what waits, once, and none of what is stale, sent, failed or in other hands."""
    database = await Database.open(project.url)
    house = House(database, Recorder())
    for key in ("email.limit.global", "email.limit.recipient"):
        await house.set(key, "off")
    async with house.working(house.engine()):
        await house.until(
            """NOT EXISTS (
                SELECT FROM email_queue
                WHERE status IN ('pending', 'processing')
                    AND (next_retry_at IS NULL OR next_retry_at < now() + interval '1 hour')
                    AND email_type IS DISTINCT FROM 'held'
                    AND email_type IS DISTINCT FROM 'refused'
            )"""
        )
    await database.close()
    delivered = Counter(house.recorder.handed_over) + sent
    assert set(delivered.values()) == {1}
    due = {row for row, what in fate.items() if what in ("deliver", "stuck")}
    got = {str(email) for email in delivered}
    assert due <= got
    assert not (fate.keys() - due) & got


async def test_nobody_outside_may_do_anything_and_who_could_insert_still_can(project: Project) -> None:
    """Default privileges, PUBLIC and policies had given anon everything."""
    assert project.as_role("anon", "SELECT enqueue_email('a@example.com', 's', 'h')")
    await migrate(project.url)
    refused = [
        "SELECT * FROM email_queue",
        "SELECT * FROM webhook_retry_queue",
        "SELECT * FROM rate_limit_counters",
        "INSERT INTO email_queue (to_email, subject, html) VALUES ('a@example.com', 's', 'h')",
        "SELECT * FROM postroom.settings",
        "SELECT enqueue_email('a@example.com', 's', 'h')",
        "SELECT * FROM get_email_queue_batch(1)",
        "SELECT mark_email_sent(gen_random_uuid())",
        "SELECT * FROM increment_rate_limit('k', 1, 1)",
        "SELECT cleanup_rate_limit_counters()",
        "SELECT postroom.grant_access()",
    ]
    for statement in refused:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            project.as_role("anon", statement)
        if "email_queue" not in statement or not statement.startswith("SELECT *"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                project.as_role("authenticated", statement)
    callable_by_anon = project.execute(
        """
        SELECT proc.oid::regprocedure::text
        FROM pg_proc AS proc
        WHERE (
                proc.pronamespace = 'postroom'::regnamespace
                OR obj_description(proc.oid, 'pg_proc') LIKE 'postroom:%'
            )
            AND (
                has_function_privilege('anon', proc.oid, 'EXECUTE')
                OR has_function_privilege('authenticated', proc.oid, 'EXECUTE')
            )
        """
    )
    assert callable_by_anon == []
    insert = "INSERT INTO email_queue (to_email, subject, html) VALUES ('a@example.com', 's', 'h')"
    for role in (project.shop, project.reports):
        project.execute(insert, role)
    assert (
        len(project.execute("SELECT * FROM email_queue", project.shop)) == 100
    )  # those of spring, as before
    assert project.as_role("service_role", "SELECT enqueue_email('a@example.com', 's', 'h')")
    assert project.as_role("service_role", "SELECT * FROM get_email_queue_batch(1)")


async def test_an_owner_upon_whom_row_level_security_is_forced_works_all_the_same(project: Project) -> None:
    """It saw no row: nothing was settled, nothing delivered, and nobody said so."""
    for table in QUEUES:
        project.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    assert project.execute("SELECT * FROM email_queue") == []
    lines: list[str] = []
    await migrate(project.url, report=lines.append)
    assert any("41 rows stuck" in line for line in lines), lines
    project.execute("SELECT enqueue_email('a@example.com', 's', 'h')")
    assert len(project.execute("SELECT * FROM get_email_queue_batch(5)")) == 5
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        project.as_role("anon", "SELECT * FROM email_queue")


async def test_an_app_role_may_queue_and_read(project: Project) -> None:
    """`--app-role`: insert, enqueue_email and read, no more; one that is not there is named."""
    with pytest.raises(MigrationFailed, match="no role 'nobody here'"):
        await migrate(project.url, app_role="nobody here")
    await migrate(project.url, app_role=project.shop)
    project.execute("SELECT enqueue_email('a@example.com', 's', 'h')", project.shop)
    project.execute(
        "INSERT INTO email_queue (to_email, subject, html) VALUES ('b@example.com', 's', 'h')", project.shop
    )
    assert len(project.execute("SELECT * FROM email_queue", project.shop)) > 700
    for statement in ("SELECT * FROM get_email_queue_batch(1)", "DELETE FROM email_queue"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            project.execute(statement, project.shop)


@pytest.mark.parametrize(
    ("newer_than", "stale", "pending"), [("all", 0, 62), ("365d", 0, 62), ("30d", 51, 11), ("2h", 62, 0)]
)
async def test_how_old_is_too_old_can_be_said(
    project: Project, newer_than: str, stale: int, pending: int
) -> None:
    """`--deliver-newer-than SPAN|all`; rows that wait for a time in the future are never too old."""
    await migrate(project.url, deliver_newer_than=newer_than)
    found = Counter(
        row["status"]
        for row in project.execute("SELECT status FROM email_queue WHERE email_type = 'stale'", "postgres")
    )
    assert found["dead_letter"] == stale
    assert found["pending"] == pending
    later = project.execute(
        "SELECT DISTINCT status FROM email_queue WHERE to_email LIKE 'later%'", "postgres"
    )
    assert later == [{"status": "pending"}]


async def test_a_view_over_an_old_function_stops_the_upgrade_before_anything_changes(
    project: Project,
) -> None:
    """It is named, with the function; once it is gone the upgrade goes through."""
    project.execute("CREATE VIEW next_mails AS SELECT * FROM get_email_queue_batch(5)")
    before = {table: project.rows(table, ["*"]) for table in QUEUES}
    with pytest.raises(MigrationFailed) as refusal:
        await migrate(project.url)
    assert "view next_mails" in str(refusal.value)
    assert "get_email_queue_batch(integer)" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert project.execute("SELECT to_regnamespace('postroom') AS house")[0]["house"] is None
    assert {table: project.rows(table, ["*"]) for table in QUEUES} == before
    project.execute("DROP VIEW next_mails")
    await migrate(project.url)


async def test_a_second_migrate_changes_nothing(project: Project) -> None:
    """Nor do two at once get in each other's way."""
    lines: list[str] = []
    await asyncio.gather(*(migrate(project.url, report=lines.append) for _ in range(2)))
    assert sum("function enqueue_email(text,text,text) replaced" in line for line in lines) == 1
    everything = catalog(project)
    rows = {table: project.rows(table, ["*", "xmin"]) for table in QUEUES}
    lines.clear()
    await migrate(project.url, report=lines.append)
    assert len(lines) == 1
    assert catalog(project) == everything
    assert {table: project.rows(table, ["*", "xmin"]) for table in QUEUES} == rows


def catalog(project: Project) -> dict[str, list[str]]:
    """Every row of the catalogs that a migration may change, with the transaction that wrote it."""
    names = (
        "pg_class",
        "pg_proc",
        "pg_policy",
        "pg_trigger",
        "pg_attribute",
        "pg_namespace",
        "pg_constraint",
    )
    mine = {
        name: [
            row["row"]
            for row in project.execute(
                # Not what vacuum and analyze write in place.
                f"SELECT ROW(c.xmin, (to_jsonb(c) - '{{relpages,reltuples,relallvisible,relallfrozen,"
                f"relfrozenxid,relminmxid,relhasindex}}'::text[]))::text AS row FROM {name} AS c ORDER BY 1",
                "postgres",
            )
        ]
        for name in names
    }
    house = ("migrations", "repeatables", "replaced_objects", "settings", "old_leases", "refused_rows")
    return mine | {
        name: [row["row"] for row in project.execute(f"SELECT t::text AS row FROM postroom.{name} AS t")]
        for name in house
    }
