"""Checks of the server: whether what it acknowledges is safe, and whether it can be used as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from postroom.database.connect import Database
from postroom.database.snapshots import OLD_SNAPSHOT_S, read_snapshot_holders
from postroom.errors import PostroomError
from postroom.finding import Finding, ok, problem, warning
from postroom.wording import count_of, duration

CLOCK_OFF_S = 2.0
STATEMENT_TIMEOUT_S_MIN = 10.0
HEARD_S = 5.0
CONNECTIONS_LEFT_MIN = 0.1

_DURABLE = {"on", "remote_apply", "remote_write", "local"}


async def check_server(database: Database, *, listen_url: bool) -> list[Finding]:
    """
    Look at the server.

    Args:
        listen_url: Whether POSTROOM_LISTEN_URL is set.

    Raises:
        DatabaseUnavailable: It does not answer.
    """
    row = await database.fetchrow(_SETTINGS_SQL)
    assert row is not None
    return [
        ok("server", f"PostgreSQL {row['server_version']}, {database.name}"),
        *_check_durability(row),
        *await _check_standbys(database, row),
        *_check_reach(row),
        await _check_clock(database),
        *await _check_snapshots(database),
        *_check_vacuum(row),
        *_check_creators(row),
        _check_connections(row),
        await _check_listening(database, listen_url),
    ]


_SETTINGS_SQL = """
    SELECT
        current_setting('server_version') AS server_version,
        current_setting('synchronous_commit') AS synchronous_commit,
        current_setting('fsync') AS fsync,
        current_setting('full_page_writes') AS full_page_writes,
        current_setting('synchronous_standby_names') AS synchronous_standby_names,
        current_setting('autovacuum') AS autovacuum,
        current_setting('default_transaction_read_only') AS read_only,
        pg_is_in_recovery() AS is_standby,
        (SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout') AS statement_timeout_ms,
        (
            SELECT string_agg(COALESCE(role.rolname, 'all roles'), ', ' ORDER BY role.rolname)
            FROM pg_db_role_setting AS own
            LEFT JOIN pg_roles AS role ON role.oid = own.setrole
            WHERE 'synchronous_commit=off' = ANY (own.setconfig)
                AND own.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        ) AS not_durable_for,
        (
            SELECT string_agg(class.relname, ', ' ORDER BY class.relname)
            FROM pg_class AS class
            WHERE class.oid IN (
                    to_regclass('public.email_queue'), to_regclass('public.webhook_retry_queue'),
                    to_regclass('public.rate_limit_counters')
                )
                AND class.reloptions && ARRAY['autovacuum_enabled=false', 'autovacuum_enabled=off']
        ) AS not_vacuumed,
        (
            SELECT string_agg(DISTINCT COALESCE(role.rolname, 'PUBLIC'), ', ')
            FROM pg_namespace AS schema
            CROSS JOIN LATERAL aclexplode(schema.nspacl) AS acl
            LEFT JOIN pg_roles AS role ON role.oid = acl.grantee
            WHERE schema.nspname = 'public' AND acl.privilege_type = 'CREATE'
                AND acl.grantee NOT IN (schema.nspowner, to_regrole(quote_ident(current_user)))
                AND NOT COALESCE(role.rolsuper, false)
        ) AS creators,
        current_setting('max_connections')::integer AS max_connections,
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections
"""


def _check_durability(row: Any) -> list[Finding]:
    found = []
    if row["synchronous_commit"] not in _DURABLE:
        found.append(
            problem(
                "durability",
                f"synchronous_commit is {row['synchronous_commit']}: a crash loses acknowledged commits",
                "ALTER DATABASE … SET synchronous_commit = on (or the role, or postgresql.conf)",
            )
        )
    elif row["not_durable_for"]:
        found.append(
            warning(
                "durability",
                f"synchronous_commit is off for {row['not_durable_for']}: a crash loses what they queued",
                "ALTER ROLE … SET synchronous_commit = on",
            )
        )
    found += [
        problem(
            "durability",
            f"{name} is off: a crash of the machine can destroy the database",
            f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()",
        )
        for name in ("fsync", "full_page_writes")
        if row[name] != "on"
    ]
    return found or [ok("durability", "what is committed is on the disk")]


async def _check_standbys(database: Database, row: Any) -> list[Finding]:
    rows = await database.fetch(
        """
        SELECT
            COALESCE(NULLIF(standby.application_name, ''), 'process ' || standby.pid) AS name,
            standby.sync_state
        FROM pg_stat_replication AS standby
        ORDER BY 1
        """
    )
    if not rows:
        return []
    if all(standby["sync_state"] is None for standby in rows):
        return [
            warning(
                "standbys",
                f"there are {len(rows)}, and this role may not see whether they are synchronous",
                "GRANT pg_monitor to it, and run doctor again",
            )
        ]
    names = ", ".join(str(standby["name"]) for standby in rows)
    if any(standby["sync_state"] in ("sync", "quorum") for standby in rows):
        if row["synchronous_commit"] == "local":
            return [
                warning(
                    "standbys",
                    "synchronous_commit is local: a failover loses what had not reached the standby",
                    "ALTER DATABASE … SET synchronous_commit = on",
                )
            ]
        return [ok("standbys", f"synchronous, of {names}")]
    return [
        warning(
            "standbys",
            f"{names}: asynchronous, so a failover loses the last commits that were acknowledged",
            "set synchronous_standby_names on the primary where no e-mail may be lost by a failover",
        )
    ]


def _check_reach(row: Any) -> list[Finding]:
    found = []
    if row["is_standby"]:
        found.append(
            problem("address", "this server is a standby: nothing can be written", "name the primary")
        )
    elif row["read_only"] == "on":
        found.append(
            problem(
                "address", "default_transaction_read_only is on", "switch it off for this role and database"
            )
        )
    timeout_s = row["statement_timeout_ms"] / 1000
    if 0 < timeout_s < STATEMENT_TIMEOUT_S_MIN:
        found.append(
            warning(
                "statement_timeout",
                f"is {duration(timeout_s)}: a claim or a settle of a large batch may be cancelled",
                f"give this role {STATEMENT_TIMEOUT_S_MIN:g} s or more, or 0",
            )
        )
    return found


async def _check_clock(database: Database) -> Finding:
    before = datetime.now(UTC)
    there = await database.fetchval("SELECT clock_timestamp()")
    after = datetime.now(UTC)
    off_s = max((there - after).total_seconds(), (before - there).total_seconds(), 0.0)
    if off_s <= CLOCK_OFF_S:
        return ok("clock", "this machine and the database agree")
    return warning(
        "clock",
        f"this machine and the database are {duration(off_s)} apart",
        "let NTP set both; the database's clock decides what is due",
    )


async def _check_snapshots(database: Database) -> list[Finding]:
    return [
        warning(
            "open transaction",
            f"{holder}: nothing is vacuumed meanwhile, and the queue slows down",
            f"end it: {holder.advice}",
        )
        for holder in await read_snapshot_holders(database)
    ] or [ok("open transactions", f"none older than {duration(OLD_SNAPSHOT_S)}")]


def _check_creators(row: Any) -> list[Finding]:
    """A function in public whose types fit better is taken before PostgreSQL's own: CVE-2018-1058."""
    if not row["creators"]:
        return []
    return [
        warning(
            "schema public",
            f"{row['creators']} may create in it, and so have functions run by others who use this database",
            f"REVOKE CREATE ON SCHEMA public FROM {row['creators']}",
        )
    ]


def _check_vacuum(row: Any) -> list[Finding]:
    if row["autovacuum"] != "on":
        return [problem("vacuum", "autovacuum is off: claims slow down", "ALTER SYSTEM SET autovacuum = on")]
    if row["not_vacuumed"]:
        return [
            problem(
                "vacuum",
                f"autovacuum is off for {row['not_vacuumed']}: claims slow down",
                "ALTER TABLE … RESET (autovacuum_enabled)",
            )
        ]
    return [ok("vacuum", "on")]


def _check_connections(row: Any) -> Finding:
    left = 1 - row["connections"] / row["max_connections"]
    found = f"{row['connections']} of {row['max_connections']} in use"
    if left >= CONNECTIONS_LEFT_MIN:
        return ok("connections", found)
    return warning("connections", found, "raise max_connections, or put a pooler in front")


async def _check_listening(database: Database, listen_url: bool) -> Finding:
    """Whether a NOTIFY arrives: it wakes a worker at once, else it polls."""
    if database.pooled and not listen_url:
        return warning(
            "wake-up",
            "a pooler stands before the database, so no NOTIFY arrives: workers look once a second",
            "name the server itself in POSTROOM_LISTEN_URL",
        )
    async with _notified(database) as heard:
        if await heard():
            return ok("wake-up", "a NOTIFY arrives")
    advice = (
        "name the server itself in POSTROOM_LISTEN_URL"
        if listen_url
        else "see whether a pooler stands between"
    )
    return warning("wake-up", f"no NOTIFY arrived within {HEARD_S:g} s: workers look once a second", advice)


@asynccontextmanager
async def _notified(database: Database) -> AsyncIterator[Callable[[], Any]]:
    channel, word = "postroom_doctor", f"{id(database)}"
    arrived = asyncio.Event()

    def callback(_channel: str, payload: str) -> None:
        if payload == word:
            arrived.set()

    listener = database.listen([channel], callback)

    async def heard() -> bool:
        try:
            async with asyncio.timeout(HEARD_S):
                while not listener.hears:
                    await asyncio.sleep(0.01)
                await database.execute("SELECT pg_notify($1, $2)", channel, word)
                await arrived.wait()
        except (TimeoutError, PostroomError):
            return False
        return True

    try:
        yield heard
    finally:
        await listener.close()


async def check_access(database: Database) -> list[Finding]:
    """Look at roles and grants; the schema must be there."""
    missing = await database.fetchval(
        """
        SELECT string_agg(wanted.role, ', ' ORDER BY wanted.role)
        FROM unnest(ARRAY['service_role', 'authenticated', 'anon']) AS wanted (role)
        WHERE to_regrole(wanted.role) IS NULL
        """
    )
    found = []
    if missing:
        found.append(
            warning(
                "roles",
                f"missing: {missing}",
                "only who calls as one of them, such as a Supabase client, needs them: then let somebody "
                "who may CREATE ROLE make them (NOLOGIN), and run `postroom migrate`",
            )
        )
    rows = await database.fetch(_GRANTS_SQL)
    if rows:
        first = rows[0]
        more = f", and {count_of(len(rows) - 1, 'more grant')}" if len(rows) > 1 else ""
        found.append(
            problem(
                "access",
                f"{first['who']} may {first['privilege']} {first['what']}{more}",
                "run `postroom migrate`, which takes it back",
            )
        )
    open_tables = await database.fetchval(
        """
        SELECT string_agg(class.relname, ', ' ORDER BY class.relname)
        FROM pg_class AS class
        WHERE class.oid IN (
                'public.email_queue'::regclass, 'public.webhook_retry_queue'::regclass,
                'public.rate_limit_counters'::regclass
            )
            AND NOT class.relrowsecurity
        """
    )
    if open_tables:
        found.append(
            problem("access", f"row level security is off for {open_tables}", "run `postroom migrate`")
        )
    return found or [ok("access", "roles and grants are as they should be")]


# What PUBLIC and anon may do with what is ours, and authenticated besides reading its own e-mails.
_GRANTS_SQL = """
    SELECT
        CASE grant_.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grant_.grantee)::text END AS who,
        grant_.privilege_type AS privilege,
        object.name AS what
    FROM (
        SELECT class.oid::regclass::text AS name, class.relacl AS acl
        FROM pg_class AS class
        WHERE class.oid IN (
                'public.email_queue'::regclass, 'public.webhook_retry_queue'::regclass,
                'public.rate_limit_counters'::regclass
            )
            OR (class.relnamespace = 'postroom'::regnamespace AND class.relkind = 'r')
        UNION ALL
        SELECT proc.oid::regprocedure::text, COALESCE(proc.proacl, acldefault('f', proc.proowner))
        FROM pg_proc AS proc
        WHERE proc.pronamespace = 'postroom'::regnamespace
            OR (
                proc.pronamespace = 'public'::regnamespace
                AND obj_description(proc.oid, 'pg_proc') LIKE 'postroom:%'
            )
        UNION ALL
        SELECT 'schema postroom', namespace.nspacl
        FROM pg_namespace AS namespace
        WHERE namespace.nspname = 'postroom'
    ) AS object
    CROSS JOIN LATERAL aclexplode(object.acl) AS grant_
    WHERE grant_.grantee IN (0, to_regrole('anon')::oid, to_regrole('authenticated')::oid)
        AND NOT (
            grant_.grantee = to_regrole('authenticated')::oid
            AND object.name IN ('email_queue', 'public.email_queue')
            AND grant_.privilege_type = 'SELECT'
        )
    ORDER BY 1, 3, 2
"""
