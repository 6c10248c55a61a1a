"""sql/schema, which people read, and sql/migrations, which run, make the same database."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from postroom.database.migrate import migrate, schema_parts
from tests.schema.catalog import catalog_of, differences
from tests.support.postgres import PostgresServer

SCHEMA_FOLDER = Path(str(files("postroom"))) / "sql" / "schema"


def make_from_schema(url: str) -> None:
    """Run sql/schema alone, in its order, and the calls that migrate makes at the end of it."""
    with psycopg.connect(url) as connection:
        # As migrate does: functions name others that come after them.
        connection.execute("SET LOCAL check_function_bodies = off")
        for path in sorted(SCHEMA_FOLDER.glob("*.sql")):
            connection.execute(path.read_bytes())
        connection.execute("SELECT postroom.grant_access(), postroom.let_triggers_find_names()")


@pytest.fixture
def two_databases(postgres_server: PostgresServer) -> Iterator[tuple[str, str]]:
    """Two empty databases on one server."""
    one, other = postgres_server.create_database(), postgres_server.create_database()
    yield postgres_server.url_of(one), postgres_server.url_of(other)
    postgres_server.drop_database(one)
    postgres_server.drop_database(other)


@pytest.fixture
def two_databases_15(debian15_server: PostgresServer) -> Iterator[tuple[str, str]]:
    """The same on PostgreSQL 15."""
    one, other = debian15_server.create_database(), debian15_server.create_database()
    yield debian15_server.url_of(one), debian15_server.url_of(other)
    debian15_server.drop_database(one)
    debian15_server.drop_database(other)


async def compare(databases: tuple[str, str]) -> None:
    """Fail with a list of what the two ways do not have in common."""
    from_migrations, from_schema = databases
    await migrate(from_migrations)
    make_from_schema(from_schema)
    with psycopg.connect(from_migrations) as one, psycopg.connect(from_schema) as other:
        found = differences(catalog_of(one), catalog_of(other), names=("migrations", "schema/*.sql"))
    assert not found, "sql/migrations and sql/schema differ:\n" + "\n".join(found)


async def test_the_schema_files_say_what_the_migrations_make(two_databases: tuple[str, str]) -> None:
    """Tables, columns, constraints, indexes, triggers, functions, grants, policies, options, comments."""
    await compare(two_databases)


async def test_the_schema_files_say_what_the_migrations_make_on_postgresql_15(
    two_databases_15: tuple[str, str],
) -> None:
    """The same on the oldest release that postroom supports."""
    await compare(two_databases_15)


def test_migrate_does_not_run_the_file_of_the_tables() -> None:
    """It is for readers: an upgraded database keeps its own tables."""
    assert "00_tables.sql" not in schema_parts()
    assert (SCHEMA_FOLDER / "00_tables.sql").exists()


CHANGES: dict[LiteralString, tuple[str, str]] = {
    "ALTER TABLE public.email_queue ALTER COLUMN subject DROP NOT NULL": (
        "column public.email_queue.subject:",
        "-not null",
    ),
    "ALTER TABLE public.email_queue ALTER COLUMN max_attempts SET DEFAULT 5": (
        "column public.email_queue.max_attempts:",
        "+default 5",
    ),
    "ALTER TABLE public.email_queue ADD COLUMN colour text": (
        "column public.email_queue.colour: only in other",
        "",
    ),
    "ALTER TABLE public.email_queue SET (fillfactor = 70)": ("relation public.email_queue:", "fillfactor=70"),
    "ALTER TABLE postroom.workers ALTER COLUMN begun SET STORAGE EXTENDED": (
        "column postroom.workers.begun:",
        "+storage x",
    ),
    "ALTER TABLE public.email_queue DISABLE ROW LEVEL SECURITY": (
        "relation public.email_queue:",
        "+row security false",
    ),
    "ALTER TABLE postroom.workers DROP CONSTRAINT workers_queue_check": (
        "constraint workers_queue_check on postroom.workers: only in one",
        "",
    ),
    "DROP INDEX public.postroom_email_due": ("index public.postroom_email_due: only in one", ""),
    "DROP TRIGGER postroom_wake ON public.email_queue": (
        "trigger postroom_wake on public.email_queue: only in one",
        "",
    ),
    "ALTER TABLE public.email_queue DISABLE TRIGGER postroom_wake": (
        "trigger postroom_wake on public.email_queue:",
        "",
    ),
    "ALTER FUNCTION postroom.wake(text) RESET search_path": ("function postroom.wake(text):", "-"),
    "GRANT EXECUTE ON FUNCTION postroom.wake(text) TO anon": (
        "function postroom.wake(text):",
        "anon=X/postgres",
    ),
    "GRANT SELECT (subject) ON public.email_queue TO anon": (
        "column public.email_queue.subject:",
        "anon=r/postgres",
    ),
    'DROP POLICY "postroom: service_role may do everything" ON public.email_queue': (
        "policy postroom: service_role may do everything on public.email_queue: only in one",
        "",
    ),
    "COMMENT ON FUNCTION public.mark_email_sent(uuid) IS 'other'": (
        "comment function public.mark_email_sent(uuid):",
        "+other",
    ),
    "ALTER TYPE postroom.begun_row ADD ATTRIBUTE colour text": (
        "column postroom.begun_row.colour: only in other",
        "",
    ),
}


def test_a_difference_is_named(database_url: str) -> None:
    """The comparison can fail, for each kind of object, and says what differs."""
    with psycopg.connect(database_url) as connection:
        before = catalog_of(connection)
        connection.rollback()
        for change, (named, difference) in CHANGES.items():
            connection.execute(change)
            found = differences(before, catalog_of(connection), names=("one", "other"))
            connection.rollback()
            assert any(entry.startswith(named) and difference in entry for entry in found), (change, found)


async def test_bodies_are_compressed_by_lz4_where_the_server_has_it(debian15_url: str) -> None:
    """By the columns' own setting, whatever the server's default is."""
    await migrate(debian15_url)
    with psycopg.connect(debian15_url) as db:
        (has,) = db.execute(
            "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
        ).fetchall()[0]
        found = db.execute(
            """
            SELECT attname FROM pg_attribute
            WHERE attcompression = 'l' AND attrelid IN (
                'public.email_queue'::regclass, 'public.webhook_retry_queue'::regclass,
                'postroom.webhook_requests'::regclass
            )
            ORDER BY attname
            """
        ).fetchall()
        assert found == ([("body",), ("html",), ("payload",), ("text",)] if has else [])
