"""Who may create in schema public cannot make the owner run its code: see traps.py."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from postroom.database.migrate import migrate, pending
from postroom.supabase.migrations import export_migrations
from tests.hostile.traps import set_traps, sprung
from tests.support.postgres import PostgresServer

OLD_TABLES = """
    CREATE TABLE email_queue (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), to_email text NOT NULL, subject text NOT NULL,
        html text NOT NULL, status text DEFAULT 'pending', created_at timestamptz DEFAULT now()
    );
    INSERT INTO email_queue (to_email, subject, html, status) VALUES ('a@b.example', 's', 'h', 'processing');
    CREATE FUNCTION mark_email_sent(email_id uuid) RETURNS void LANGUAGE sql AS 'SELECT';
    GRANT CREATE ON SCHEMA public TO PUBLIC
"""


@pytest.fixture(scope="module")
def trapped(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with old tables, in which somebody who may create in public has been before."""
    name, mallory = postgres_server.create_database(), f"mallory_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_server.url_of(name), autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(mallory)))
        owner.execute(OLD_TABLES)
    with psycopg.connect(postgres_server.url_of(name, mallory), autocommit=True) as connection:
        set_traps(connection)
    yield name
    postgres_server.drop_database(name)
    with psycopg.connect(postgres_server.url, autocommit=True) as owner:
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(mallory)))


@pytest.fixture
def trapped_url(postgres_server: PostgresServer, trapped: str) -> Iterator[str]:
    """A copy of it, as its superuser."""
    name = postgres_server.create_database(template=trapped)
    yield postgres_server.url_of(name)
    postgres_server.drop_database(name)


async def test_migrate_takes_no_function_or_operator_in_public_for_one_of_pg_catalog(
    trapped_url: str,
) -> None:
    """It runs as the owner, often as a superuser: nothing of the traps is run, the first time and later."""
    for _ in range(2):
        await migrate(trapped_url)
        assert not await pending(trapped_url)
    with psycopg.connect(trapped_url) as owner:
        assert sprung(owner) == []


async def test_the_exported_files_do_not_either(trapped_url: str, tmp_path: Path) -> None:
    """They are run by another program, as the owner as well."""
    with psycopg.connect(trapped_url, autocommit=True) as owner:
        for file in export_migrations(tmp_path):
            owner.execute(file.read_text().encode())
        assert sprung(owner) == []
    assert not await pending(trapped_url)
