"""A hand-made project of before postroom, on a real server, with an owner who is no superuser."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from tests.support.postgres import PostgresServer

HANDMADE = Path(__file__).with_name("handmade.sql").read_text(encoding="utf-8")

QUEUES = ("email_queue", "webhook_retry_queue")

# What Supabase brings: roles, schema auth, and roles of the application's own.
AROUND = """
DO $$
BEGIN
    IF to_regrole('anon') IS NULL THEN CREATE ROLE anon NOLOGIN; END IF;
    IF to_regrole('authenticated') IS NULL THEN CREATE ROLE authenticated NOLOGIN; END IF;
    IF to_regrole('service_role') IS NULL THEN CREATE ROLE service_role NOLOGIN; END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END;
$$;
CREATE SCHEMA auth;
CREATE TABLE auth.users (id uuid PRIMARY KEY, email text);
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT NULLIF(current_setting('request.jwt.claim.sub', true), '')::uuid
$$;
GRANT USAGE ON SCHEMA auth TO PUBLIC;
GRANT SELECT ON auth.users TO PUBLIC;
"""

# The policy first: a grant and then a table's lock, in one transaction, can deadlock with autovacuum.
OWN_ROLES = """
CREATE POLICY "shop reads spring" ON email_queue FOR SELECT TO {shop} USING (campaign = 'spring');
GRANT SELECT, INSERT ON email_queue TO {shop};
GRANT INSERT ON email_queue TO {reports};
"""


@dataclass
class Project:
    """One hand-made project: its addresses, and what its tables hold."""

    server: PostgresServer
    database: str
    owner: str
    shop: str
    reports: str

    @property
    def url(self) -> str:
        """As the tables' owner."""
        return self.server.url_of(self.database, self.owner)

    @property
    def superuser_url(self) -> str:
        """As the superuser, who looks and never migrates."""
        return self.server.url_of(self.database)

    def connect(self, user: str | None = None) -> psycopg.Connection[dict[str, Any]]:
        """A connection of the owner or another user, each statement on its own."""
        return psycopg.connect(
            self.server.url_of(self.database, quote(user or self.owner)),
            autocommit=True,
            row_factory=dict_row,
            prepare_threshold=None,
        )

    def execute(self, statement: str, user: str | None = None) -> list[dict[str, Any]]:
        """One statement, on a connection of its own."""
        with self.connect(user) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []

    def as_role(self, role: str, statement: str) -> list[dict[str, Any]]:
        """One statement as a role that may not log in."""
        with self.connect("postgres") as connection:
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []

    def rows(self, table: str, columns: list[str]) -> dict[str, str]:
        """Each row's text, of those columns: equal texts are equal bytes."""
        names = ", ".join(f"q.{column}" for column in columns)
        key = "key" if table == "rate_limit_counters" else "id"
        return {
            row["id"]: row["row"]
            for row in self.execute(
                f"SELECT {key}::text AS id, ROW({names})::text AS row FROM {table} AS q", "postgres"
            )
        }

    def columns(self, table: str) -> list[str]:
        """The columns that a table has now."""
        return [
            row["attname"]
            for row in self.execute(
                "SELECT attname FROM pg_attribute "
                f"WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
            )
        ]


@contextmanager
def handmade_project(server: PostgresServer) -> Iterator[Project]:
    """A fresh hand-made project on a server."""
    mark = secrets.token_hex(4)
    owner, shop, reports = f"owner_{mark}", f"shop {mark}", f"reports_{mark}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        for role, rights in ((owner, "LOGIN CREATEROLE"), (shop, "LOGIN"), (reports, "LOGIN")):
            connection.execute(sql.SQL("CREATE ROLE {} " + rights).format(sql.Identifier(role)))
    project = Project(server, server.create_database(owner=owner), owner, shop, reports)
    try:
        project.execute(AROUND, "postgres")
        project.execute(HANDMADE)
        project.execute(OWN_ROLES.format(shop=f'"{shop}"', reports=f'"{reports}"'))
        yield project
    finally:
        server.drop_database(project.database)
        with psycopg.connect(server.url, autocommit=True) as connection:
            for role in (owner, shop, reports):
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def project(postgres_server: PostgresServer) -> Iterator[Project]:
    """A hand-made project on the newest PostgreSQL."""
    with handmade_project(postgres_server) as one:
        yield one


@pytest.fixture(params=["postgresql 18", "postgresql 15"])
def project_on_each(request: pytest.FixtureRequest) -> Iterator[Project]:
    """A hand-made project on the newest and on the oldest PostgreSQL."""
    name = "postgres_server" if request.param == "postgresql 18" else "debian15_server"
    with handmade_project(request.getfixturevalue(name)) as one:
        yield one
