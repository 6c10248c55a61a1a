"""Whose schema cron is: pg_cron's where it is installed, else ours over our own jobs."""

from __future__ import annotations

import asyncpg

from postroom.database.connect import Database
from postroom.errors import PostroomError

_NOT_OURS = {
    "pg_cron": "pg_cron is installed, so its tables are used; DROP EXTENSION pg_cron, then again",
    "taken": "there is a schema cron that is not postroom's: rename it, then again",
    "refused": "this user may make no schema: GRANT CREATE ON DATABASE, then again",
}


async def adopt(database: Database, public_url: str | None) -> list[str]:
    """
    Where pg_cron is installed, give it the jobs that it can run; safe to call again and again.

    Args:
        public_url: Where pg_cron's requests reach us; without one its jobs wake workers.

    Returns:
        What was done, and what else was found; a line each.
    """
    return [
        row["line"] for row in await database.fetch("SELECT postroom.use_pg_cron($1) AS line", public_url)
    ]


async def use_pg_cron(database: Database, public_url: str | None) -> list[str]:
    """
    Give schema cron over to pg_cron, installing it where that is needed and allowed.

    Raises:
        PostroomError: It cannot be installed here, or the schema is needed by others; nothing was changed.
    """
    said: list[str] = []
    if not await database.fetchval("SELECT postroom.has_pg_cron()"):
        said = await _install(database)
    return said + await adopt(database, public_url)


async def use_own(database: Database) -> str:
    """
    Make schema cron over our own jobs; returns what there is now.

    Raises:
        PostroomError: It may not be made.
    """
    now: str = await database.fetchval("SELECT postroom.make_cron_schema(true)")
    if now in _NOT_OURS:
        raise PostroomError(_NOT_OURS[now])
    return "schema cron shows postroom's jobs: cron.job, cron.job_run_details; cron.schedule() takes yours"


async def _install(database: Database) -> list[str]:
    available = await database.fetchval(
        "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_cron')"
    )
    if not available:
        raise PostroomError(
            "pg_cron is not there: install it on the server, or stay with postroom's scheduler"
        )
    try:
        async with database.transaction() as connection:
            given = await connection.fetchval("SELECT postroom.drop_cron_schema()")
            try:
                async with connection.transaction():
                    await connection.execute("CREATE EXTENSION pg_cron")
            except asyncpg.InsufficientPrivilegeError:
                user = await connection.fetchval("SELECT quote_ident(current_user)")
                return [
                    *(["schema cron is given over"] if given else []),
                    "this user may not install pg_cron: have a superuser run CREATE EXTENSION pg_cron; "
                    f"GRANT USAGE ON SCHEMA cron TO {user}; then run this again",
                ]
    except asyncpg.DependentObjectsStillExistError as error:
        raise PostroomError(f"schema cron is needed by others: {error.detail or error}") from error
    except asyncpg.PostgresError as error:
        parts = (*error.args[:1], getattr(error, "hint", None))
        raise PostroomError(
            f"pg_cron cannot be installed: {'; '.join(str(part) for part in parts if part)}"
        ) from error
    return ["pg_cron is installed"]
