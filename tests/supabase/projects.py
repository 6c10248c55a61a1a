"""A database as Supabase makes it, by SQL after supabase/postgres: server.sql and project.sql."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from tests.support.node import NodeTools
from tests.support.postgres import SETTINGS, PostgresServer, running_server
from tests.upgrade.conftest import HANDMADE, OWN_ROLES, Project

HERE = Path(__file__).parent
PUSH_S_MAX = 100
ADMIN = "supabase_admin"
CRON_DATABASE = "house"
PRELOADED = f"shared_preload_libraries = 'pg_cron'\ncron.database_name = '{CRON_DATABASE}'\n"


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


@contextmanager
def handmade(project: SupabaseProject) -> Iterator[Project]:
    """The project with a hand-made queue in it, rows in every state, and roles of its own."""
    mark = secrets.token_hex(4)
    one = Project(project.server, project.database, "postgres", f"shop {mark}", f"reports_{mark}")
    for role in (one.shop, one.reports):
        project.execute(f'CREATE ROLE "{role}" LOGIN')
    project.execute(HANDMADE)
    project.execute(OWN_ROLES.format(shop=f'"{one.shop}"', reports=f'"{one.reports}"'))
    try:
        yield one
    finally:
        for role in (one.shop, one.reports):
            project.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"', ADMIN)


def command(url: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command line, on a database."""
    return subprocess.run(
        [sys.executable, "-m", "postroom", *arguments],
        env=os.environ | {"POSTROOM_DATABASE_URL": url} | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def push_command(tools: NodeTools, url: str) -> list[str]:
    """`supabase db push` to a database."""
    return [str(tools.supabase), "db", "push", "--yes", "--db-url", f"{url}?sslmode=disable"]


def push(tools: NodeTools, folder: Path, url: str) -> str:
    """`supabase db push`, by the real program; returns what it says."""
    done = subprocess.run(
        push_command(tools, url),
        cwd=folder,
        env=tools.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PUSH_S_MAX,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def postroom(project: SupabaseProject | Project, *arguments: str, **settings: str) -> str:
    """The command line, as the project's owner."""
    done = command(project.url, *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def into(maildir: Path) -> dict[str, str]:
    """Settings of a worker that delivers into a folder."""
    return {"POSTROOM_TRANSPORT": f"maildir:{maildir}", "POSTROOM_FROM": "shop@example.com"}


def ids_in(maildir: Path) -> Counter[UUID]:
    """Which e-mails lie in a folder: a Message-ID is made of the row's id."""
    mails = (path.read_text(errors="replace") for path in (maildir / "new").iterdir())
    found = (re.search(r"^Message-ID: <([0-9a-f-]{36})@", mail, re.MULTILINE) for mail in mails)
    return Counter(UUID(match[1]) for match in found if match)


def _run(server: PostgresServer, database: str, file: Path) -> None:
    with psycopg.connect(server.url_of(database, ADMIN), autocommit=True) as connection:
        connection.execute(file.read_bytes())
