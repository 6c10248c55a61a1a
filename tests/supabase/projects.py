"""A database as Supabase makes it, by SQL after supabase/postgres: server.sql and project.sql."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from tests.support.postgres import SETTINGS, PostgresServer, running_server

HERE = Path(__file__).parent
ADMIN = "supabase_admin"


@dataclass
class SupabaseProject:
    """A project's database. Its owner, `postgres`, is no superuser."""

    server: PostgresServer
    database: str

    @property
    def url(self) -> str:
        """As its owner, who migrates and works."""
        return self.server.url_of(self.database, "postgres")

    def execute(self, statement: str, user: str = "postgres") -> list[dict[str, Any]]:
        """Statements on a connection of their own, each committed."""
        with psycopg.connect(
            self.server.url_of(self.database, user), autocommit=True, row_factory=dict_row
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []

    def by_api(self, role: str, statement: str, claims: str = "") -> list[dict[str, Any]]:
        """As PostgREST has it run: by authenticator, as the JWT's role, with its claims."""
        with psycopg.connect(
            self.server.url_of(self.database, "authenticator"), row_factory=dict_row
        ) as connection:
            connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
            connection.execute("SELECT set_config('request.jwt.claims', %s, true)", [claims])
            connection.execute("SELECT set_config('search_path', 'public, extensions', true)")
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []


@contextmanager
def supabase_server(programs: Path | None = None, settings: str = "") -> Iterator[PostgresServer]:
    """
    A server as Supabase's: its superuser is supabase_admin.

    Args:
        programs: Whose PostgreSQL; None is the embedded one.
        settings: Further lines of postgresql.conf.
    """
    with running_server(programs, f"{SETTINGS}\nwal_level = logical\n{settings}") as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE supabase_admin SUPERUSER LOGIN CREATEDB CREATEROLE BYPASSRLS")
        _run(server, "postgres", HERE / "server.sql")
        yield server


@contextmanager
def supabase_project(server: PostgresServer, name: str | None = None) -> Iterator[SupabaseProject]:
    """A fresh project on such a server."""
    name = name or f"project_{secrets.token_hex(4)}"
    with psycopg.connect(server.url_of("postgres", ADMIN), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER postgres").format(sql.Identifier(name)))
    try:
        _run(server, name, HERE / "project.sql")
        yield SupabaseProject(server, name)
    finally:
        with psycopg.connect(server.url_of("postgres", ADMIN), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _run(server: PostgresServer, database: str, file: Path) -> None:
    with psycopg.connect(server.url_of(database, ADMIN), autocommit=True) as connection:
        connection.execute(file.read_bytes())
