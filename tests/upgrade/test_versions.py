"""Programs and databases of different age, the exported files, and rights that are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import asyncpg
import psycopg
import pytest

from postroom.database import migrate as migrate_module
from postroom.database.migrate import (
    MigrationFailed,
    migrate,
    pending,
    require_schema,
    schema_parts,
)
from postroom.errors import SchemaError
from postroom.supabase.migrations import export_migrations
from postroom.version import is_newer
from tests.support.postgres import PostgresServer, running_server
from tests.upgrade.conftest import Project, handmade_project
from tests.upgrade.end_state import end_state
from tests.upgrade.test_upgrade import catalog

SEND = ["send", "--to", "ada@example.com", "--subject", "Hi", "--html", "<p>Hi</p>"]


def postroom(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, as a person calls it."""
    return subprocess.run(
        [sys.executable, "-m", "postroom", *arguments],
        env={**os.environ, "POSTROOM_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_check_says_whether_the_database_is_behind(project: Project) -> None:
    """Exit 1 and what is missing; after a migrate exit 0. It changes nothing itself."""
    behind = postroom(project.url, "migrate", "--check")
    assert behind.returncode == 1
    assert "to do: migration 0002 email_queue" in behind.stdout.splitlines()
    assert project.execute("SELECT to_regnamespace('postroom') AS house") == [{"house": None}]
    done = postroom(project.url, "migrate")
    assert done.returncode == 0, done.stderr
    assert "41 rows stuck in 'processing' are due again" in done.stdout
    assert postroom(project.url, "migrate", "--check").returncode == 0


def test_an_older_program_refuses_a_newer_breaking_schema_and_no_other(project: Project) -> None:
    """One line says so; what only adds is no reason, and its functions are left alone."""
    assert postroom(project.url, "migrate").returncode == 0
    project.execute("INSERT INTO postroom.migrations (version, name) VALUES (9998, 'adds_a_column')")
    project.execute(
        "UPDATE postroom.repeatables SET version = 9998, digest = 'other' WHERE name = 'functions'"
    )
    for command in (["migrate"], ["migrate", "--check"], SEND):
        done = postroom(project.url, *command)
        assert done.returncode == 0, done.stderr
    assert project.execute("SELECT digest FROM postroom.repeatables WHERE name = 'functions'") == [
        {"digest": "other"}
    ]
    project.execute(
        "INSERT INTO postroom.migrations (version, name, breaking) VALUES (9999, 'retypes', true)"
    )
    for command in (["migrate"], ["migrate", "--check"], ["worker", "--drain"]):
        done = postroom(project.url, *command)
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert "newer postroom (to 9999 retypes)" in lines[0]
        assert "upgrade this program" in lines[0]


@contextmanager
def release(version: str, note: str) -> Iterator[None]:
    """Another release of the program, with the same migrations and another text in one function."""
    parts = schema_parts()
    parts["20_queue.sql"] += f"""
CREATE OR REPLACE FUNCTION postroom.note() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT '{note}' $$;
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate_module, "VERSION", version)
        patch.setattr(migrate_module, "schema_parts", lambda: dict(parts))
        yield


def functions_of(url: str) -> tuple[object, ...] | None:
    """Whose functions a database has: by the text of one, and by what is recorded."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT postroom.note(), program FROM postroom.repeatables WHERE name = 'functions'"
        ).fetchone()


@pytest.mark.parametrize("by", ["migrate", "exported files"])
async def test_an_older_release_leaves_the_functions_of_a_newer_one(
    empty_database_url: str, tmp_path: Path, by: str
) -> None:
    """A rolling deploy: both releases start and migrate, in any order; the newer functions stay."""
    with release("0.9.1", "old"):
        await migrate(empty_database_url)
        assert functions_of(empty_database_url) == ("old", "0.9.1")
    with release("0.10.0", "new"):
        assert (await pending(empty_database_url)).steps == ["functions"]
        if by == "migrate":
            await migrate(empty_database_url)
        else:
            with psycopg.connect(empty_database_url, autocommit=True) as connection:
                for path in export_migrations(tmp_path):
                    if path.stem.endswith(("_functions", "_callers", "_done")):
                        with connection.transaction():
                            connection.execute(path.read_bytes())
        assert not await pending(empty_database_url)
    with release("0.9.1", "old"):
        assert not await pending(empty_database_url)
        await migrate(empty_database_url)
        assert functions_of(empty_database_url) == ("new", "0.10.0")
        asker = await asyncpg.connect(empty_database_url)
        await require_schema(asker)
        await asker.close()
    with release("0.10.0", "other build"):
        await migrate(empty_database_url)
        assert functions_of(empty_database_url) == ("other build", "0.10.0")


def test_versions_are_in_the_order_of_their_releases() -> None:
    """By number, not by letter; what leads to a release comes before it."""
    releases = [
        "0.1.0",
        "0.2.0.dev3",
        "0.2.0a1",
        "0.2.0rc1",
        "0.2.0",
        "0.2.0.post1",
        "0.9.1",
        "0.10.0",
        "1.0",
    ]
    for older, newer in pairwise(releases):
        assert is_newer(newer, older)
        assert not is_newer(older, newer)
    assert not is_newer("1.0.0", "1.0")


def apply_by_psql(url: str, file: Path) -> None:
    """Run a file in one transaction; the first error ends it."""
    done = subprocess.run(
        ["psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", file, url],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


async def test_exported_files_make_the_same_as_migrate(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """Each file in one transaction, in the order of its name, as `supabase db push` applies them."""
    written = export_migrations(tmp_path / "supabase" / "migrations")
    files = sorted((tmp_path / "supabase" / "migrations").glob("*.sql"))
    assert files == written
    with handmade_project(postgres_server) as whole, handmade_project(postgres_server) as pushed:
        await migrate(whole.url)
        for file in files:
            apply_by_psql(pushed.url, file)
        assert not await pending(pushed.url)
        done = catalog(pushed)
        lines: list[str] = []
        await migrate(pushed.url, report=lines.append)
        assert len(lines) == 1
        assert catalog(pushed) == done
        assert end_state(pushed) == end_state(whole)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            pushed.as_role("anon", "SELECT enqueue_email('a@example.com', 's', 'h')")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "ALTER TABLE email_queue ALTER COLUMN subject TYPE varchar(200)",
            "subject is character varying, not text",
        ),
        ("ALTER TABLE webhook_retry_queue ALTER COLUMN metadata TYPE json", "metadata is json, not jsonb"),
        ("ALTER TABLE email_queue ADD COLUMN priority text", "priority is text, not integer"),
        ("REVOKE CREATE ON DATABASE {database} FROM {owner}", "may not create schema postroom"),
        (
            "ALTER FUNCTION mark_email_sent OWNER TO postgres",
            "not the owner of function mark_email_sent(uuid)",
        ),
        ("ALTER TABLE rate_limit_counters OWNER TO postgres", "not the owner of table rate_limit_counters"),
    ],
)
async def test_what_stands_in_the_way_is_named_before_anything_changes(
    project: Project, change: str, told: str
) -> None:
    """A type that we could not work on, or a right that is missing."""
    if "REVOKE" in change:
        project.execute(f"ALTER DATABASE {project.database} OWNER TO postgres", "postgres")
        project.execute(f"GRANT ALL ON SCHEMA public TO {project.owner}", "postgres")
    project.execute(change.format(database=project.database, owner=project.owner), "postgres")
    with pytest.raises(MigrationFailed) as refusal:
        await migrate(project.url)
    assert told in str(refusal.value)
    assert "Nothing was changed" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert project.execute("SELECT to_regnamespace('postroom') AS house") == [{"house": None}]


@pytest.fixture(scope="module")
def bare_server() -> Iterator[PostgresServer]:
    """A server on which nobody has made the three roles."""
    with running_server() as server:
        yield server


async def test_roles_that_cannot_be_made_are_named_and_get_what_they_need_later(
    bare_server: PostgresServer,
) -> None:
    """The upgrade goes on without them; the next migrate after they were made gives them their rights."""
    with psycopg.connect(bare_server.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN")
    url = bare_server.url_of(bare_server.create_database(owner="plain"), "plain")
    lines: list[str] = []
    await migrate(url, report=lines.append)
    for role in ("service_role", "authenticated", "anon"):
        assert any(f"role {role} is missing and plain may not make it" in line for line in lines)
    with psycopg.connect(bare_server.url, autocommit=True) as connection:
        for role in ("service_role", "authenticated", "anon"):
            connection.execute(f"CREATE ROLE {role}".encode())
    await migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        rights = connection.execute(
            """
            SELECT
                has_function_privilege('service_role', 'get_email_queue_batch(integer)', 'EXECUTE'),
                has_table_privilege('service_role', 'email_queue', 'DELETE'),
                has_table_privilege('authenticated', 'email_queue', 'SELECT'),
                has_table_privilege('anon', 'email_queue', 'SELECT')
            """
        ).fetchone()
    assert rights == (True, True, True, False)


async def test_a_newer_breaking_schema_is_an_error_of_its_own_kind(database_url: str) -> None:
    """Programs can tell it from others."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO postroom.migrations (version, name, breaking) VALUES (9999, 'x', true)"
        )
    with pytest.raises(SchemaError, match="upgrade this program"):
        await migrate(database_url)
