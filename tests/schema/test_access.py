"""Who may do what: every role against every table and every function, by doing it where that can be done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from postroom.database import migrate as upgrade
from postroom.database.migrate import migrate
from tests.support.postgres import PostgresServer, running_server

APP_ROLE = 'The shop\'s "own" role, with a näme that is nearly as long'
"""Whoever quotes it wrongly fails; the names of its policies have to be shortened."""

TABLES = ("email_queue", "webhook_retry_queue", "rate_limit_counters")
EVERYTHING = {(table, command) for table in TABLES for command in ("SELECT", "INSERT", "UPDATE", "DELETE")}
MAY: dict[str, set[tuple[str, str]]] = {
    "service_role": EVERYTHING,
    "authenticated": {("email_queue", "SELECT")},
    "anon": set(),
    "stranger": set(),
    APP_ROLE: {("email_queue", "SELECT"), ("email_queue", "INSERT")},
}
MAY_CALL = {
    "authenticated": set[str](),
    "anon": set[str](),
    "stranger": set[str](),
    APP_ROLE: {"enqueue_email", "enqueue_emails"},
}
"""service_role may call all."""

STATEMENTS: dict[str, LiteralString] = {
    "SELECT": "SELECT FROM {}",
    "INSERT": "INSERT INTO {} {}",
    "UPDATE": "UPDATE {} SET updated_at = now()",
    "DELETE": "DELETE FROM {}",
}
NEW_ROW: dict[str, LiteralString] = {
    "email_queue": "(to_email, subject, html) VALUES ('ada@example.com', 's', 'h')",
    "webhook_retry_queue": "(webhook_type, payload) VALUES ('stripe', '{}')",
    "rate_limit_counters": "(key) VALUES (gen_random_uuid()::text)",
}
ADA = {"request.jwt.claims": '{"email": "ADA@example.com", "role": "authenticated"}'}


@dataclass
class World:
    """A database on a server whose roles are this test's own."""

    server: PostgresServer
    database: str

    def url(self, user: str = "postgres") -> str:
        """Its address, for one of the roles that may log in."""
        return self.server.url_of(self.database, user)

    @contextmanager
    def as_role(self, role: str, settings: dict[str, str] | None = None) -> Iterator[psycopg.Connection]:
        """A session that acts as a role, as PostgREST does; rolled back at the end."""
        with psycopg.connect(self.url()) as connection:
            for key, value in (settings or {}).items():
                connection.execute("SELECT set_config(%s, %s, true)", [key, value])
            connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
            yield connection
            connection.rollback()

    def run(self, statement: LiteralString | sql.Composed, *, user: str = "postgres") -> None:
        """One statement, committed."""
        with psycopg.connect(self.url(user), autocommit=True) as connection:
            connection.execute(statement)

    def make_role(self, name: str, options: LiteralString = "LOGIN") -> None:
        """A role of this test's."""
        self.run(sql.SQL("CREATE ROLE {} {}").format(sql.Identifier(name), sql.SQL(options)))


@pytest.fixture(scope="module")
def roles_server() -> Iterator[PostgresServer]:
    """Roles belong to a server: here a test may make them and drop them."""
    with running_server() as server:
        yield server


@pytest.fixture
def world(roles_server: PostgresServer) -> Iterator[World]:
    """An empty database, and no roles but the superuser."""
    one = World(roles_server, roles_server.create_database())
    yield one
    roles_server.drop_database(one.database)
    with psycopg.connect(roles_server.url, autocommit=True) as connection:
        names = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname <> 'postgres' AND rolname NOT LIKE 'pg\\_%'"
        )
        for (name,) in names.fetchall():
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def assert_access_is_as_promised(world: World) -> None:
    """The whole matrix; one line for each cell that differs."""
    world.run("INSERT INTO email_queue (to_email, subject, html) VALUES ('Ada@Example.com', 's', 'h')")
    world.run("INSERT INTO webhook_retry_queue (webhook_type, payload) VALUES ('stripe', '{}')")
    world.run("INSERT INTO rate_limit_counters (key) VALUES ('a key')")
    wrong = []
    with psycopg.connect(world.url()) as connection:
        # What is new has no line in MAY yet.
        assert {row[0] for row in connection.execute(RELATIONS_IN_PUBLIC)} == set(TABLES)
    for role, may in MAY.items():
        with world.as_role(role, ADA) as connection:
            done = {cell for cell in EVERYTHING if works(connection, *cell)}
            wrong += [f"{role} may not {command} {table}" for table, command in may - done]
            wrong += [f"{role} may {command} {table}" for table, command in done - may]
        with psycopg.connect(world.url()) as connection:
            tables, functions = privileges_in_house(connection, role)
            all_functions = {row[0] for row in connection.execute(OUR_FUNCTIONS)}
        if role == "service_role":
            wrong += [f"{role} may not call {name}" for name in all_functions - functions]
            assert len(tables) > 30
            # Its owner runs what stands there (postroom.give_back).
            assert {name for name in tables if name.endswith(" postroom.replaced_objects")} == {
                "SELECT postroom.replaced_objects"
            }
            assert {name for name in tables if "cron." in name or name.endswith("schema cron")} == {
                "SELECT cron.job",
                "SELECT cron.job_run_details",
                "USAGE on schema cron",
            }
        else:
            wrong += [f"{role} may {privilege}" for privilege in tables]
            names = {name.partition("(")[0] for name in functions}
            wrong += [f"{role} may call {name}" for name in names - MAY_CALL[role]]
            wrong += [f"{role} may not call {name}" for name in MAY_CALL[role] - names]
    assert not wrong, "\n".join(wrong)


def works(connection: psycopg.Connection, table: str, command: str) -> bool:
    """Whether the command does something; undone."""
    statement = sql.SQL(STATEMENTS[command]).format(sql.Identifier(table), sql.SQL(NEW_ROW[table]))
    try:
        with connection.transaction(force_rollback=True):
            return connection.execute(statement).rowcount > 0
    except psycopg.errors.InsufficientPrivilege:
        return False


RELATIONS_IN_PUBLIC: LiteralString = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('i', 'I', 'c')
"""

# Every schema that is neither PostgreSQL's nor the application's, so that one that is made later is in it.
OUR_SCHEMAS: LiteralString = """
    SELECT oid FROM pg_namespace
    WHERE NOT starts_with(nspname, 'pg_') AND nspname NOT IN ('information_schema', 'public')
"""

OUR_FUNCTIONS: LiteralString = f"""
    SELECT proc.oid::regprocedure::text, proc.oid, proc.pronamespace
    FROM pg_proc AS proc
    WHERE pronamespace IN ({OUR_SCHEMAS})
        OR (pronamespace = 'public'::regnamespace AND obj_description(proc.oid, 'pg_proc') LIKE 'postroom:%%')
"""


def privileges_in_house(connection: psycopg.Connection, role: str) -> tuple[set[str], set[str]]:
    """What a role may do in schema postroom with tables, and which of our functions it may call."""
    tables = connection.execute(
        f"""
        SELECT privilege || ' ' || class.oid::regclass
        FROM pg_class AS class
        CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
            AS privilege
        WHERE class.relnamespace IN ({OUR_SCHEMAS})
            AND class.relkind IN ('r', 'p', 'v', 'm', 'f')
            AND (has_table_privilege(%(role)s, class.oid, privilege)
                OR privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
                AND has_any_column_privilege(%(role)s, class.oid, privilege))
        UNION ALL
        SELECT privilege || ' on schema ' || ours.oid::regnamespace
        FROM ({OUR_SCHEMAS}) AS ours
        CROSS JOIN unnest(ARRAY['USAGE', 'CREATE']) AS privilege
        WHERE has_schema_privilege(%(role)s, ours.oid, privilege)
        UNION ALL
        SELECT privilege || ' ' || class.oid::regclass
        FROM pg_class AS class
        CROSS JOIN unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS privilege
        WHERE class.relnamespace IN ({OUR_SCHEMAS}) AND class.relkind = 'S'
            AND has_sequence_privilege(%(role)s, class.oid, privilege)
        UNION ALL
        SELECT privilege || ' ' || name
        FROM unnest(%(public)s::text[]) AS name
        CROSS JOIN unnest(ARRAY['TRUNCATE', 'REFERENCES', 'TRIGGER']) AS privilege
        WHERE has_table_privilege(%(role)s, name, privilege)
        """,
        {"role": role, "public": list(TABLES)},
    )
    functions = connection.execute(
        sql.SQL("SELECT ours.name FROM ({}) AS ours (name, oid, namespace)").format(sql.SQL(OUR_FUNCTIONS))
        + sql.SQL(
            """
            WHERE has_function_privilege(%(role)s, ours.oid, 'EXECUTE')
            """
        ),
        {"role": role},
    )
    return {row[0] for row in tables}, {row[0] for row in functions}


async def plain(world: World) -> None:
    """An empty project; the superuser migrates."""
    await migrate(world.url(), app_role=APP_ROLE)


async def default_privileges(world: World) -> None:
    """What is made is everybody's by default, as in an old Supabase project and worse."""
    for role in ("anon", "authenticated"):
        world.make_role(role, "NOLOGIN")
    world.run("GRANT ALL ON SCHEMA public TO PUBLIC, anon, authenticated")
    for kind in ("TABLES", "FUNCTIONS", "SEQUENCES", "TYPES", "SCHEMAS"):
        for place in ("",) if kind == "SCHEMAS" else ("", "IN SCHEMA public"):
            world.run(
                sql.SQL("ALTER DEFAULT PRIVILEGES {} GRANT ALL ON {} TO PUBLIC, anon, authenticated").format(
                    sql.SQL(place), sql.SQL(kind)
                )
            )
    await migrate(world.url(), app_role=APP_ROLE)


async def owner_makes_roles(world: World) -> None:
    """The owner of the database is no superuser, and may make roles."""
    world.make_role("owner", "LOGIN CREATEROLE")
    world.run(sql.SQL("ALTER DATABASE {} OWNER TO owner").format(sql.Identifier(world.database)))
    await migrate(world.url("owner"), app_role=APP_ROLE)


async def roles_come_later(world: World) -> None:
    """The owner may not make roles: the migration says so and goes on; a later one grants."""
    world.make_role("owner")
    world.run(sql.SQL("ALTER DATABASE {} OWNER TO owner").format(sql.Identifier(world.database)))
    told: list[str] = []
    await migrate(world.url("owner"), app_role=APP_ROLE, report=told.append)
    for role in ("service_role", "authenticated", "anon"):
        assert any(role in line and "owner may not make it" in line for line in told), told
        world.make_role(role, "NOLOGIN")
    told.clear()
    await migrate(world.url("owner"), report=told.append)
    assert not any("missing" in line for line in told)


async def a_later_release_under_defaults_in_our_schemas(world: World) -> None:
    """What is made by a later release, in schemas where somebody has given anon whatever is new."""
    # A release without pauses and bulk actions.
    ours, parts = upgrade.migrations(), upgrade.schema_parts()
    earlier = {name: text for name, text in parts.items() if name != "54_bulk_actions.sql"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upgrade, "migrations", lambda: [one for one in ours if one.version <= 20])
        patch.setattr(upgrade, "schema_parts", lambda: earlier)
        await migrate(world.url(), app_role=APP_ROLE)
    for schema in ("postroom", "cron", "public"):
        for kind in ("TABLES", "FUNCTIONS", "SEQUENCES"):
            world.run(
                sql.SQL(
                    "ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT ALL ON {} TO PUBLIC, anon, authenticated"
                ).format(sql.Identifier(schema), sql.SQL(kind))
            )
    world.run("GRANT USAGE ON SCHEMA postroom TO anon, authenticated")
    await migrate(world.url())


async def again_and_again(world: World) -> None:
    """Nothing is lost or won by a second migrate, nor by one after somebody gave everything away."""
    await migrate(world.url(), app_role=APP_ROLE)
    await migrate(world.url(), app_role=APP_ROLE)
    world.run("GRANT ALL ON ALL TABLES IN SCHEMA public, postroom TO PUBLIC, anon, authenticated")
    world.run("GRANT ALL ON ALL FUNCTIONS IN SCHEMA public, postroom TO PUBLIC, anon, authenticated")
    world.run("GRANT SELECT (key) ON rate_limit_counters TO anon")
    world.run("GRANT ALL ON SCHEMA cron TO PUBLIC, anon")
    world.run("GRANT ALL ON ALL TABLES IN SCHEMA cron TO PUBLIC, anon, authenticated")
    await migrate(world.url())


@pytest.mark.parametrize(
    "arrive",
    [
        plain,
        default_privileges,
        owner_makes_roles,
        roles_come_later,
        a_later_release_under_defaults_in_our_schemas,
        again_and_again,
    ],
)
async def test_every_role_may_do_what_the_contract_says_and_nothing_else(
    world: World, arrive: Callable[[World], Awaitable[None]]
) -> None:
    """Each table and command is tried out; each function's right to EXECUTE is read."""
    world.make_role("stranger")
    world.make_role(APP_ROLE)
    await arrive(world)
    assert_access_is_as_promised(world)


OWN_MAIL: dict[str | None, list[str]] = {
    '{"email": "ada@example.com"}': ["Ada@Example.com", "ada@example.com"],
    '{"email": "ADA@EXAMPLE.COM"}': ["Ada@Example.com", "ada@example.com"],
    '{"email": "bob@example.com"}': ["bob@example.com"],
    '{"email": "nobody@example.com"}': [],
    '{"email": ""}': [],
    '{"email": null}': [],
    '{"email": ["ada@example.com"]}': [],
    '{"email": "%"}': [],
    '{"EMAIL": "ada@example.com"}': [],
    '{"sub": "1"}': [],
    "[]": [],
    '"ada@example.com"': [],
    "null": [],
    "{}": [],
    "": [],
    None: [],
}


async def test_authenticated_sees_its_own_mail_alone(world: World) -> None:
    """By the e-mail in request.jwt.claims, case aside; claims without one see nothing."""
    await migrate(world.url())
    world.run(
        """
        INSERT INTO email_queue (to_email, subject, html)
        SELECT address, 's', 'h'
        FROM unnest('{ada@example.com, Ada@Example.com, bob@example.com, "", "{}", "null"}'::text[])
            AS address
        """
    )
    for claims, seen in OWN_MAIL.items():
        with world.as_role(
            "authenticated", {"request.jwt.claims": claims} if claims is not None else {}
        ) as one:
            rows = one.execute("SELECT to_email FROM email_queue").fetchall()
        assert sorted(row[0] for row in rows) == seen, claims


async def test_claims_that_are_no_json_see_nothing(world: World) -> None:
    """They are an error, which shows nothing either."""
    await migrate(world.url())
    world.run("INSERT INTO email_queue (to_email, subject, html) VALUES ('ada@example.com', 's', 'h')")
    with (
        world.as_role("authenticated", {"request.jwt.claims": '{"email": "ada@example.com"'}) as connection,
        pytest.raises(psycopg.errors.InvalidTextRepresentation),
    ):
        connection.execute("SELECT to_email FROM email_queue")


async def test_a_plain_insert_of_an_app_role_wakes_a_sleeping_worker(world: World) -> None:
    """The role needs no right on anything but email_queue; its e-mail is due, and whole."""
    world.make_role(APP_ROLE)
    await migrate(world.url(), app_role=APP_ROLE)
    world.run("SELECT postroom.register_worker(gen_random_uuid(), 'email', 'h', 1, 'v', true, true, '{}')")
    with psycopg.connect(world.url(), autocommit=True) as listener:
        listener.execute("LISTEN postroom_email")
        with psycopg.connect(world.url(APP_ROLE_IN_URL)) as application:
            application.execute(
                "INSERT INTO email_queue (to_email, subject, html) VALUES ('ada@example.com', 's', 'h')"
            )
            application.execute("SELECT enqueue_email('bob@example.com', 's', 'h', idempotency_key => 'k')")
            application.execute("SELECT enqueue_email('bob@example.com', 's', 'h', idempotency_key => 'k')")
        assert [note.channel for note in listener.notifies(timeout=30, stop_after=1)] == ["postroom_email"]
        claimed = listener.execute("SELECT to_email FROM get_email_queue_batch(10)").fetchall()
    assert sorted(claimed) == [("ada@example.com",), ("bob@example.com",)]


APP_ROLE_IN_URL = APP_ROLE.replace("%", "%25").replace(" ", "%20").replace('"', "%22").replace("ä", "%C3%A4")

WORKERS_WAY: tuple[LiteralString, ...] = (
    "SELECT enqueue_email('ada@example.com', 's', 'h', idempotency_key => 'k')",
    "SELECT postroom.register_worker(%(worker)s, 'email', 'h', 1, 'v', true, false, '{}')",
    "CREATE TEMPORARY TABLE claimed AS SELECT * FROM postroom.claim_emails(%(worker)s, 10, 'a@b.example')",
    """
    SELECT postroom.begin_emails(%(worker)s, array_agg(id), array_agg(lease_no), '{}', '{}') FROM claimed
    """,
    "SELECT postroom.extend_email_leases(%(worker)s, array_agg(id), array_agg(lease_no)) FROM claimed",
    """
    SELECT postroom.settle_emails(
        %(worker)s, array_agg(id), array_agg(lease_no), '{permanent}', '{550 no}', '{NULL}', '{NULL}'
    )
    FROM claimed
    """,
    "SELECT postroom.retry_dead_emails(array_agg(id)) FROM email_queue",
    "SELECT mark_email_failed(id, 'x'), mark_email_sent(id) FROM get_email_queue_batch()",
    "SELECT postroom.set_setting('lease', '30s')",
    "SELECT * FROM increment_rate_limit('email:global', 1, 10)",
    "SELECT cleanup_rate_limit_counters()",
    "INSERT INTO webhook_retry_queue (webhook_type, payload) VALUES ('stripe', '{}')",
    "SELECT mark_webhook_failed(id, 'x'), mark_webhook_processed(id) FROM get_webhook_retry_batch()",
    "SELECT postroom.forget_worker(%(worker)s)",
    "SELECT postroom.offer_jobs('{reconcile}')",
    "SELECT postroom.lead_cron(%(worker)s, 'h', 1, 'v', '{reconcile}')",
    """
    CREATE TEMPORARY TABLE begun AS
    SELECT postroom.begin_run(%(worker)s, 1002, clock_timestamp() + interval '1 hour', 1) AS runid
    """,
    "SELECT postroom.extend_runs(%(worker)s, array_agg(runid)) FROM begun",
    "SELECT postroom.end_run(%(worker)s, runid, 'succeeded', 'x') FROM begun",
    "SELECT * FROM postroom.fail_dead_runs()",
    "SELECT postroom.resign_cron(%(worker)s)",
    "SELECT cron.unschedule(cron.schedule('mine', '30 seconds', 'SELECT 1'))",
    "SELECT cron.schedule_in_database('mine', '30 seconds', 'SELECT 1', current_database()::text)",
)


@pytest.mark.parametrize("option", ["BYPASSRLS", "NOBYPASSRLS"])
async def test_service_role_may_go_a_workers_whole_way(world: World, option: LiteralString) -> None:
    """Every call of a worker and of an old caller, whether or not row level security concerns the role."""
    world.make_role("service_role", option)
    await migrate(world.url())
    with world.as_role("service_role") as connection:
        for statement in WORKERS_WAY:
            connection.execute(statement, {"worker": "5f0d5c8e-1d5e-4c39-8d5a-0a7c2b8e9f10"})
        sent = connection.execute("SELECT status, error_count FROM email_queue").fetchall()
        processed = connection.execute("SELECT status FROM webhook_retry_queue").fetchall()
    assert sent == [("sent", 2)]
    assert processed == [("processed",)]


async def test_service_role_may_call_what_a_new_version_adds_to_schema_cron(world: World) -> None:
    """It had the schema of version 1; nobody else gets the new function."""
    await migrate(world.url())
    world.run("DROP FUNCTION cron.schedule_in_database")
    world.run("COMMENT ON SCHEMA cron IS 'postroom: jobs and their history, version 1'")
    await migrate(world.url())
    with world.as_role("service_role") as connection:
        connection.execute(WORKERS_WAY[-1])
        may = connection.execute(
            """
            SELECT role, has_function_privilege(role, proc.oid, 'EXECUTE')
            FROM pg_proc AS proc, unnest('{service_role, authenticated, anon}'::text[]) AS role
            WHERE proc.proname = 'schedule_in_database'
            """
        ).fetchall()
    assert dict(may) == {"service_role": True, "authenticated": False, "anon": False}


MONITORING: tuple[LiteralString, ...] = (
    """
SELECT status, COUNT(*) as count, MIN(created_at) as oldest_pending, MAX(created_at) as newest_pending
FROM email_queue GROUP BY status;
    """,
    """
SELECT status, COUNT(*) as count, AVG(attempts) as avg_attempts, MIN(created_at) as oldest_pending
FROM webhook_retry_queue GROUP BY status;
    """,
    """
SELECT d.jobid, d.status, d.start_time, d.end_time,
  CASE WHEN j.command LIKE '%process-email-queue%' THEN 'Email Queue'
       WHEN j.command LIKE '%process-webhook-retries%' THEN 'Webhook Retry' ELSE 'Other' END as job_type
FROM cron.job_run_details d JOIN cron.job j ON d.jobid = j.jobid
WHERE d.jobid IN (19, 20) ORDER BY d.start_time DESC LIMIT 20;
    """,
    "SELECT COUNT(*) as failed_emails FROM email_queue WHERE status = 'dead_letter';",
    "SELECT COUNT(*) as failed_webhooks FROM webhook_retry_queue WHERE status = 'dead_letter';",
)


VIEWS: tuple[LiteralString, ...] = (
    "email_queue_status",
    "webhook_queue_status",
    "net_runs",
    "dead_letter_counts",
)


@pytest.mark.parametrize("user", ["owner", "service"])
async def test_the_monitoring_queries_say_what_is(world: World, user: str) -> None:
    """As they stand in the contract, for the owner and for service_role; the saved views say the same."""
    world.make_role("owner", "LOGIN CREATEROLE")
    world.run(sql.SQL("ALTER DATABASE {} OWNER TO owner").format(sql.Identifier(world.database)))
    await migrate(world.url("owner"))
    world.make_role("service", "LOGIN IN ROLE service_role")
    world.run(
        """
        INSERT INTO email_queue (to_email, subject, html, status, created_at)
        SELECT 'ada@example.com', 's', 'h', status, timestamptz '2026-01-01' + n * interval '1 day'
        FROM unnest('{pending, processing, sent, failed, dead_letter}'::text[])
            WITH ORDINALITY AS s (status, n)
        CROSS JOIN LATERAL generate_series(1, n)
        """
    )
    world.run(
        """
        INSERT INTO webhook_retry_queue (webhook_type, payload, status, attempts, created_at)
        SELECT 'stripe', '{}', status, attempts, '2026-01-01'
        FROM unnest(ARRAY['pending', 'processed', 'dead_letter']) AS status
        CROSS JOIN generate_series(1, 4) AS attempts
        """
    )
    world.run("SELECT postroom.begin_run(gen_random_uuid(), jobid, NULL, 1) FROM postroom.jobs")
    with psycopg.connect(world.url(user)) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        emails, webhooks, runs, failed_emails, failed_webhooks = [
            connection.execute(query).fetchall() for query in MONITORING
        ]
    by_status: dict[str, Any] = {row[0]: row[1:] for row in emails}
    assert {status: row[0] for status, row in by_status.items()} == {
        "pending": 1, "processing": 2, "sent": 3, "failed": 4, "dead_letter": 5,
    }  # fmt: skip
    assert [at.isoformat() for at in by_status["pending"][1:]] == ["2026-01-02T00:00:00+00:00"] * 2
    assert {row[0]: (row[1], float(row[2])) for row in webhooks} == {
        "pending": (4, 2.5), "processed": (4, 2.5), "dead_letter": (4, 2.5),
    }  # fmt: skip
    assert {(jobid, status, job_type) for jobid, status, _, _, job_type in runs} == {
        (19, "running", "Email Queue"),
        (20, "running", "Webhook Retry"),
    }
    assert (failed_emails, failed_webhooks) == ([(5,)], [(4,)])
    with psycopg.connect(world.url(user)) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        saved = [set(connection.execute(f"TABLE postroom.{view}").fetchall()) for view in VIEWS]
    assert saved == [set(emails), set(webhooks), set(runs), {(5, 4)}]


DEFINERS: LiteralString = f"""
    SELECT ours.oid::regprocedure::text, proc.prorettype = 'trigger'::regtype, proc.pronargs
    FROM ({OUR_FUNCTIONS}) AS ours (name, oid, namespace)
    JOIN pg_proc AS proc ON proc.oid = ours.oid
    WHERE proc.prosecdef
"""

PATHS: LiteralString = f"""
    SELECT
        proc.proname,
        (SELECT setting FROM unnest(proc.proconfig) AS setting WHERE setting LIKE 'search_path=%%'),
        proc.prosrc ~ '(UPDATE|INSERT INTO|DELETE FROM)\\s+(public\\.(email|webhook_retry)_queue|%%s)'
    FROM ({OUR_FUNCTIONS}) AS ours (name, oid, namespace)
    JOIN pg_proc AS proc ON proc.oid = ours.oid
"""

# A setting of their own would keep them from being inlined into their callers, which have an empty path.
INLINED = {
    *("dead_letter_is", "attached_bytes", "attachments_by_default"),
    *("next_state", "log_attempt", "recipient_key", "book_window", "old_row_fate", "is_seen_to"),
    *(
        "old_lease_ended",
        "limit_key_of",
        "limit_setting_of",
        "limit_name",
        "add_floor",
        "depth_state",
        "elapsed_ms",
    ),
}


async def test_three_triggers_and_two_readers_alone_are_security_definer(world: World) -> None:
    """The triggers cannot be called; the readers show service_role pg_cron's jobs: decisions 0016, 0012."""
    await migrate(world.url())
    with psycopg.connect(world.url()) as connection:
        found = connection.execute(DEFINERS, {}).fetchall()
    assert sorted(found) == [
        ("postroom.forget_request()", True, 0),
        ("postroom.note_seen_webhook()", True, 0),
        ("postroom.read_cron_jobs()", False, 0),
        ("postroom.read_cron_runs(bigint)", False, 1),
        ("postroom.wake_on_insert()", True, 0),
    ]


async def test_no_function_looks_names_up_in_its_callers_search_path(world: World) -> None:
    """It is empty, but where they write a queue: there triggers of the application find what they name."""
    await migrate(world.url())
    with psycopg.connect(world.url()) as connection:
        found = connection.execute(PATHS, {}).fetchall()
    # A procedure with a SET clause may not commit; these name everything in full.
    assert {name for name, path, _ in found if path is None} == INLINED | {"handle_webhooks", "give_back"}
    for name, path, writes_a_queue in found:
        if path is not None:
            assert path == ('search_path="$user", public' if writes_a_queue else 'search_path=""'), name
