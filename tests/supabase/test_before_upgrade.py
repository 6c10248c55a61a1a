"""`postroom doctor --before-upgrade`: what a person should know before postroom takes a project over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from postroom.database.before_upgrade import ARGUMENT_NAMES, FUNCTIONS, RESULTS, look_before_upgrade
from postroom.database.migrate import MigrationFailed, migrate
from tests.schedule.test_pg_cron import PG_NET
from tests.supabase.projects import ADMIN, CRON_DATABASE, command, handmade, into, supabase_project
from tests.support.postgres import PostgresServer
from tests.upgrade.conftest import Project

OLD_JOB = """
SELECT net.http_post(url := 'https://x.supabase.co/functions/v1/process-email-queue', headers := '{}'::jsonb);
"""


@pytest.fixture
def old(server_with_pg_cron: PostgresServer) -> Iterator[Project]:
    """A hand-made project, with pg_cron that calls its functions."""
    with supabase_project(server_with_pg_cron, CRON_DATABASE) as project:
        project.execute("CREATE EXTENSION pg_cron SCHEMA pg_catalog", ADMIN)
        project.execute("GRANT USAGE ON SCHEMA cron TO postgres", ADMIN)
        project.execute(PG_NET, ADMIN)
        project.execute(f"SELECT cron.schedule('mails', '* * * * *', $job${OLD_JOB}$job$)")
        project.execute("SELECT cron.schedule('report', '0 3 * * *', 'SELECT 1')")
        with handmade(project) as one:
            yield one


async def test_it_says_what_the_upgrade_will_do_and_what_it_cannot_know(old: Project) -> None:
    """Rows by age, stuck ones, copies, jobs, functions, grants, policies, triggers; looking is all."""
    old.execute(
        "INSERT INTO email_queue (to_email, subject, html) "
        "SELECT 'twice@example.com', 'Same', '<p>Same</p>' FROM generate_series(1, 3)"
    )
    old.execute(
        "CREATE FUNCTION mark_email_sent(email_id uuid, provider text) RETURNS void "
        "LANGUAGE sql SECURITY DEFINER AS 'SELECT NULL::void'"
    )
    before = old.execute("SELECT sum(xmin::text::bigint) AS written FROM email_queue"), _catalog(old)
    found = await look_before_upgrade(old.url)
    assert (
        old.execute("SELECT sum(xmin::text::bigint) AS written FROM email_queue"),
        _catalog(old),
    ) == before

    said: dict[tuple[str, str], list[str]] = {}
    for finding in found:
        said.setdefault((finding.check, finding.level), []).append(finding.found)
    assert said["refused", "ok"] == ["nothing stands in the way"]
    mails = "\n".join(said["email_queue", "warning"])
    stale, stuck = _number(mails, r"(\d+) have waited for more than 7 d"), _number(mails, r"(\d+) are stuck")
    assert "2 that wait are the same as another one (address, subject and html)" in mails
    assert said["cron", "warning"] == ["job 1 'mails' (* * * * *) calls process-email-queue: it is kept"]
    functions = "\n".join(said["functions", "warning"])
    assert "mark_email_sent(uuid, text) goes: ours is mark_email_sent(uuid)" in functions
    assert (
        "increment_rate_limit(text, integer, integer) returns integer: ours TABLE(count integer)" in functions
    )
    assert "calculate_email_retry_time(integer) has (attempts): ours (attempt_number)" in functions
    assert "mark_email_failed(uuid, text) has (" not in functions
    assert (
        "mark_email_sent(uuid, text) may be called by PUBLIC, anon, authenticated, with its owner's rights"
        in functions
    )
    assert any(line.startswith("anon has DELETE, INSERT") for line in said["grants", "warning"])
    assert said["policies", "warning"]
    assert any(" ON public.email_queue " in line for line in said["triggers", "warning"])

    # What it said becomes of the rows is what does, but for one whose own trigger refuses it.
    lines: list[str] = []
    await migrate(old.url, report=lines.append)
    done = "\n".join(line for line in lines if line.startswith("public.email_queue: "))
    assert stale - _number(done, r"(\d+) rows have waited too long") in (0, 1)
    assert stuck - _number(done, r"(\d+) rows stuck in") in (0, 1)
    after = await look_before_upgrade(old.url)
    assert after[0].found.startswith("postroom is here already")
    assert not [
        finding
        for finding in after
        if finding.check in ("functions", "policies", "grants") and finding.level != "ok"
    ]


async def test_a_look_afterwards_does_not_speak_of_postrooms_own(database_url: str) -> None:
    """Its jobs and its grant are there to stay: nobody is told to unschedule them."""
    assert {one.check for one in await look_before_upgrade(database_url) if one.level != "ok"} == {"upgrade"}


async def test_a_look_afterwards_does_not_speak_of_what_pg_cron_runs_for_postroom(old: Project) -> None:
    """The old job is named still, ours beside it are not."""
    old.execute("SELECT cron.unschedule('report')")
    await migrate(old.url)
    assert command(old.url, "cron", "use-pg-cron").returncode == 0, "the fixture's pg_net is there"
    names = {row["jobname"] for row in old.execute("SELECT jobname FROM cron.job")}
    assert {"mails", "process-email-queue"} <= names
    said = [one.found for one in await look_before_upgrade(old.url) if one.check == "cron"]
    assert said == ["job 1 'mails' (* * * * *) calls process-email-queue: it is kept"]


async def test_what_is_said_of_our_functions_is_what_they_are(new_server: PostgresServer) -> None:
    """Types, names and results, as the look compares them with those of before."""
    with supabase_project(new_server) as project:
        await migrate(project.url)
        made = project.execute(
            """
            SELECT
                proname::text AS name, oidvectortypes(proargtypes) AS types,
                array_to_string(proargnames[1:pronargs], ', ') AS names, pg_get_function_result(oid) AS result
            FROM pg_proc
            WHERE obj_description(oid, 'pg_proc') LIKE 'postroom:%'
                AND pronamespace = 'public'::regnamespace AND proname <> 'enqueue_emails'
            """
        )
    assert {one["name"]: one["types"] for one in made} == FUNCTIONS
    assert {one["name"]: one["names"] or "" for one in made} == ARGUMENT_NAMES
    assert {one["name"]: one["result"] for one in made} == RESULTS


def test_what_migrate_would_refuse_is_a_problem(old: Project) -> None:
    """Exit 1, with what to change; the same text that migrate gives."""
    assert command(old.url, "doctor", "--before-upgrade").returncode == 0
    old.execute("CREATE VIEW due AS SELECT calculate_email_retry_time(1) AS at")
    answer = command(old.url, "doctor", "--before-upgrade")
    assert answer.returncode == 1
    refused = "view due depends on function calculate_email_retry_time(integer)"
    assert f"problem  refused: {refused}" in answer.stdout
    assert answer.stderr == ""
    assert refused in command(old.url, "migrate").stderr


async def test_an_empty_project_has_nothing_to_look_at(new_server: PostgresServer) -> None:
    """No table, no function, no warning; and pg_cron is not there."""
    with supabase_project(new_server) as project:
        found = await look_before_upgrade(project.url)
    assert [finding.level for finding in found] == ["ok", "ok"]
    assert found[0].found == "tables of before: none; the others are made"


def _number(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    assert match, text
    return int(match[1])


def _catalog(project: Project) -> object:
    return project.execute(
        "SELECT array_agg(oid::text || relacl::text ORDER BY oid) FROM pg_class WHERE relnamespace = 2200"
    )


async def test_rows_of_which_nobody_knows_whether_they_are_done_stop_the_upgrade(
    new_server: PostgresServer,
) -> None:
    """A table without a status would have all that was ever sent pending; without rows it is no matter."""
    with supabase_project(new_server) as project:
        project.execute(
            """
            CREATE TABLE email_queue (
                id uuid PRIMARY KEY DEFAULT gen_random_uuid(), to_email text NOT NULL, subject text NOT NULL,
                html text NOT NULL, sent_at timestamptz, attachments jsonb
            )
            """
        )
        project.execute(
            "INSERT INTO email_queue (to_email, subject, html, sent_at) VALUES ('a@b.c', 's', 'h', now())"
        )
        sentence = "email_queue has rows and no column status, so nobody can tell which of them are done"
        (refused,) = [one for one in await look_before_upgrade(project.url) if one.level == "problem"]
        assert (refused.check, refused.found) == ("refused", sentence)
        with pytest.raises(MigrationFailed, match=sentence):
            await migrate(project.url)
        assert project.execute("SELECT to_regnamespace('postroom') AS house") == [{"house": None}]
        project.execute("DELETE FROM email_queue")
        await migrate(project.url)


EMAILS = """
    CREATE TABLE email_queue (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), to_email text NOT NULL, subject text NOT NULL,
        html text NOT NULL, {}
    )
"""
REFUSED = {
    "status text DEFAULT 'queued'": (
        "email_queue.status has the default 'queued', and what is to be sent is called 'pending'"
    ),
    "priority integer DEFAULT 3": "email_queue.priority is integer, not integer NOT NULL",
    "lease_no text": "email_queue.lease_no is text, not bigint NOT NULL",
    "text text GENERATED ALWAYS AS (html) STORED": "email_queue.text is generated, not text",
    "due_at timestamptz": "email_queue has a column due_at of its own, a name that postroom needs",
}
REFUSED_TABLES = {
    "CREATE VIEW email_queue AS SELECT 1 AS id": "email_queue is a view, not a plain table",
    "CREATE TABLE webhook_retry_queue (id uuid) PARTITION BY HASH (id)": (
        "webhook_retry_queue is a partitioned table, not a plain table"
    ),
    EMAILS.replace("TABLE", "UNLOGGED TABLE").format("status text"): (
        "email_queue is unlogged: a crash of the server would empty it"
    ),
    "CREATE TABLE rate_limit_counters (key text, window_end timestamptz, PRIMARY KEY (key, window_end))": (
        "rate_limit_counters.key is not unique by itself, and postroom keeps one row a key"
    ),
    "CREATE TYPE state AS ENUM ('pending', 'sent');"
    + EMAILS.format("status state DEFAULT 'pending', attachments jsonb"): (
        "email_queue.status is public.state, not text"
    ),
}


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [*[(EMAILS.format(column), said) for column, said in REFUSED.items()], *REFUSED_TABLES.items()],
)
async def test_tables_that_mean_something_else_stop_the_upgrade(
    new_server: PostgresServer, tables: str, sentence: str
) -> None:
    """They were taken over half or wrongly: rows that no worker finds, calls that fail. It is said before."""
    with supabase_project(new_server) as project:
        project.execute(tables)
        (refused,) = [one for one in await look_before_upgrade(project.url) if one.level == "problem"]
        assert (refused.check, refused.found) == ("refused", sentence)
        assert refused.advice
        with pytest.raises(MigrationFailed, match=re.escape(sentence)):
            await migrate(project.url)
        assert project.execute("SELECT to_regnamespace('postroom') AS house") == [{"house": None}]


async def test_a_check_that_refuses_what_postroom_writes_is_replaced(new_server: PostgresServer) -> None:
    """
    As one that refuses a status: five attempts at most, though six are the default now. Others stay.

    To whom mail goes, and what comes in, is the project's to say: it may keep a test system from strangers.
    """
    with supabase_project(new_server) as project:
        project.execute(
            EMAILS.format(
                "status text DEFAULT 'pending', attempts int DEFAULT 0, "
                "max_attempts int DEFAULT 5 CONSTRAINT few CHECK (max_attempts BETWEEN 1 AND 5), "
                "CONSTRAINT short CHECK (length(subject) < 500), "
                "CONSTRAINT sane CHECK (attempts <= max_attempts), "
                "CONSTRAINT house CHECK (to_email LIKE '%@shop.example')"
            )
        )
        project.execute(
            """
            CREATE TABLE webhook_retry_queue (
                id uuid PRIMARY KEY DEFAULT gen_random_uuid(), payload jsonb NOT NULL,
                webhook_type text NOT NULL CONSTRAINT source CHECK (webhook_type = 'shop')
            )
            """
        )
        lines: list[str] = []
        await migrate(project.url, report=lines.append)
        replaced = "constraint few on public.email_queue refuses what postroom writes: dropped"
        assert [line for line in lines if "refuses what" in line] == [
            f"{replaced}, kept in postroom.replaced_objects"
        ]
        project.execute("SELECT enqueue_email('a@shop.example', 's', 'h')")
        project.execute(
            "INSERT INTO email_queue (to_email, subject, html) VALUES ('b@shop.example', 's', 'h')"
        )
        kept = project.execute("SELECT conname::text FROM pg_constraint WHERE contype = 'c' ORDER BY 1")
        own = ("few", "house", "sane", "short", "source")
        assert [row["conname"] for row in kept if row["conname"] in own] == [
            "house",
            "sane",
            "short",
            "source",
        ]


STRICT = """
CREATE TABLE email_queue (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    to_email      text NOT NULL,
    subject       text NOT NULL,
    html          text NOT NULL,
    from_email    text NOT NULL DEFAULT 'Shop <shop@example.com>',
    attempts      integer NOT NULL DEFAULT 0,
    next_retry_at timestamptz NOT NULL DEFAULT now(),
    status        text NOT NULL DEFAULT 'pending',
    email_type    text NOT NULL DEFAULT 'other',
    metadata      jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    place         bigint NOT NULL GENERATED ALWAYS AS IDENTITY
);
CREATE TABLE webhook_retry_queue (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    webhook_type     text NOT NULL,
    webhook_event_id text NOT NULL,
    payload          jsonb NOT NULL,
    headers          jsonb NOT NULL DEFAULT '{}',
    event_type       text NOT NULL,
    next_retry_at    timestamptz NOT NULL DEFAULT now(),
    tenant           uuid NOT NULL
);
CREATE FUNCTION get_email_queue_batch(batch_size int) RETURNS SETOF email_queue LANGUAGE sql AS $$
    UPDATE email_queue SET status = 'processing' WHERE id IN (
        SELECT id FROM email_queue WHERE status = 'pending' AND next_retry_at <= now() LIMIT batch_size
    ) RETURNING *
$$;
"""


async def test_columns_that_may_not_be_null_refuse_nothing_of_ours(
    new_server: PostgresServer, tmp_path: Path
) -> None:
    """
    Many a hand-made table has next_retry_at NOT NULL DEFAULT now(): enqueue_email and the door failed on it.

    What is dropped, and what cannot be helped, is said before and told by migrate; gone back, their own
    function finds what we have written without a time.
    """
    with supabase_project(new_server) as project:
        project.execute(STRICT)
        said = [
            finding.found for finding in await look_before_upgrade(project.url) if finding.check == "columns"
        ]
        dropped = [line.partition(" ")[0] for line in said if "is dropped" in line]
        assert dropped == [
            "email_queue.from_email",
            "email_queue.next_retry_at",
            "email_queue.email_type",
            "webhook_retry_queue.webhook_event_id",
            "webhook_retry_queue.headers",
            "webhook_retry_queue.event_type",
            "webhook_retry_queue.next_retry_at",
        ]
        (left,) = [line for line in said if "is dropped" not in line]
        assert left == (
            "webhook_retry_queue.tenant may not be NULL and has no default: no event can be stored"
        )
        lines: list[str] = []
        await migrate(project.url, report=lines.append)
        told = re.findall(r"NOT NULL of column (\w+) on public\.(\w+) dropped", "\n".join(lines))
        assert sorted(f"{table}.{column}" for column, table in told) == sorted(dropped)
        (left,) = [line for line in lines if "may not be NULL" in line]
        assert left.startswith(
            "column tenant of public.webhook_retry_queue may not be NULL and has no default"
        )

        project.execute("SELECT enqueue_email('a@example.com', 's', 'h')")
        project.execute(
            """SELECT enqueue_emails('[{"to_email": "b@example.com", "subject": "s", "html": "h"}]')"""
        )
        project.execute(
            "INSERT INTO email_queue (to_email, subject, html) VALUES ('c@example.com', 's', 'h')"
        )
        assert command(project.url, "worker", "--drain", **into(tmp_path)).returncode == 0
        assert project.execute("SELECT DISTINCT status FROM email_queue") == [{"status": "sent"}]
        project.execute("SELECT enqueue_email('d@example.com', 's', 'h')")
        assert command(project.url, "psql", "-c", "CALL postroom.give_back()").returncode == 0
        assert project.execute("SELECT to_email FROM get_email_queue_batch(5)") == [
            {"to_email": "d@example.com"}
        ]
