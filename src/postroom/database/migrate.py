"""
Bringing a database up to date: numbered migrations, then the functions, then the rows of before.

Numbered migrations (sql/migrations) make tables, columns, indexes and types; each runs once. The
functions and triggers (sql/schema) stand in one place and are replaced as a whole whenever they differ
(docs/decisions/0003). Callers and workers go on meanwhile: no statement waits for a lock longer than
LOCK_TIMEOUT, a step that cannot get its lock is rolled back and tried again, and whatever was cut off
is taken up by the next migrate.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from uuid import UUID

import asyncpg

from postroom.database.connect import name_of
from postroom.database.connection import unavailable
from postroom.errors import PostroomError, SchemaError
from postroom.failpoints import reach
from postroom.version import VERSION, is_newer

LOCK_TIMEOUT_MS = 1200
"""For a step that needs one lock: who queues behind it waits for that long, and for the step itself."""
FIRST_LOCK_TIMEOUT_MS = 600
FURTHER_LOCK_TIMEOUT_MS = 150
"""
For a step that needs three: together below deadlock_timeout (1 s). A caller that has queued behind us for
that long looks for a deadlock, and would be its victim if it found us waiting with a lock in hand.
"""
IDLE_TIMEOUT_MS = 5000
"""
Between two statements of a step: where this process stands still (a laptop that was shut), the server ends
the step and lets the callers go on. Not shorter: on a busy machine a process waits for its turn for seconds.
"""
LOCK_PATIENCE_S = 300.0
BATCH_ROWS = 500
_LOCK_KEY = 7_305_512_000_001  # pg_advisory_xact_lock: one migrate at a time
_STEP_KEY = (
    _LOCK_KEY + 1
)  # one step at a time: that of a migrate which was killed may still run in the server
QUEUES = ("public.email_queue", "public.webhook_retry_queue")
TABLES = (*QUEUES, "public.rate_limit_counters")
_TABLES_PART = "00_tables.sql"  # what the migrations add up to: for readers, and a test
LAST_PART = "60_callers.sql"  # replaces the old functions: after the rows of before are settled

# A function in another schema whose types fit better is taken before one of pg_catalog: whoever may create in
# public would run his code as the owner (CVE-2018-1058).
_NO_SEARCH_PATH = "SET LOCAL search_path = '';"
LAST_STEPS = "SELECT postroom.drop_replaced_functions();\nSELECT postroom.let_triggers_find_names();"

Report = Callable[[str], None]


class MigrationFailed(PostroomError):
    """The upgrade cannot be done as the database stands; the message says what to change."""


@dataclass(frozen=True)
class Migration:
    """One numbered file of sql/migrations."""

    version: int
    name: str
    text: str

    @property
    def breaking(self) -> bool:
        """Whether older programs must not go on with the schema that it makes."""
        return self.text.startswith("-- breaking")

    @property
    def outside_transaction(self) -> bool:
        """Whether its statements run one by one (CREATE INDEX CONCURRENTLY allows no transaction)."""
        return "-- outside a transaction" in self.text[:200]


@dataclass
class Pending:
    """What `migrate` would do; empty where the database is up to date."""

    steps: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.steps)


def migrations() -> list[Migration]:
    """The numbered migrations, in order."""
    found = [
        Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8"))
        for entry in (files("postroom") / "sql" / "migrations").iterdir()
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name))
    ]
    return sorted(found, key=lambda migration: migration.version)


def schema_parts() -> dict[str, str]:
    """The files of sql/schema that migrate applies, by name, in their order."""
    folder = files("postroom") / "sql" / "schema"
    names = sorted(entry.name for entry in folder.iterdir() if re.fullmatch(r"\d\d_\w+\.sql", entry.name))
    names.remove(_TABLES_PART)
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


def schema_digest() -> str:
    """Tells whether the functions of a database are those of this program."""
    return hashlib.sha256("".join(schema_parts().values()).encode()).hexdigest()


def latest_version() -> int:
    """The schema version that this program makes and needs."""
    return migrations()[-1].version


def preflight_sql() -> str:
    """Stops where the upgrade could not be finished, before anything is changed."""
    return (files("postroom") / "sql" / "preflight.sql").read_text(encoding="utf-8")


def record_sql(migration: Migration) -> str:
    """Writes down that a migration has run."""
    return (
        "INSERT INTO postroom.migrations (version, name, breaking)\n"
        f"VALUES ({migration.version}, '{migration.name}', {str(migration.breaking).lower()})\n"
        "ON CONFLICT DO NOTHING;\n"
    )


def done_sql() -> str:
    """Writes down that the functions are this program's and the rows of before are settled."""
    rows = [f"('functions', {latest_version()}, '{schema_digest()}', '{VERSION}')"]
    rows += [f"('rows of {table}', 1, 'settled', '{VERSION}')" for table in QUEUES]
    return (
        f"INSERT INTO postroom.repeatables (name, version, digest, program)\nVALUES {', '.join(rows)}\n"
        "ON CONFLICT (name) DO UPDATE\n"
        "SET version = EXCLUDED.version, digest = EXCLUDED.digest, program = EXCLUDED.program,\n"
        "    applied_at = clock_timestamp();\n"
    )


def literal(value: str | None) -> str:
    """A text as SQL has it; None is NULL."""
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


async def migrate(
    database_url: str,
    *,
    app_role: str | None = None,
    deliver_newer_than: str = "7d",
    report: Report = lambda _line: None,
) -> None:
    """
    Bring the database up to date; safe to call twice, at once, and after a call that was cut off.

    Args:
        database_url: Of the owner of the tables; no superuser is needed.
        app_role: A role that may insert e-mails, call enqueue_email and read.
        deliver_newer_than: A span such as `7d`, or `all`: rows from before postroom that have waited for
            longer become dead letters.
        report: Takes one line for each thing that was found or done.

    Raises:
        MigrationFailed: Something in the database stands in the way; nothing of that step was done.
        SchemaError: The database was migrated by a newer postroom.
        DatabaseUnavailable: No connection.
    """
    connection = await _connect(database_url)
    connection.add_log_listener(lambda _, message: _report_notice(str(message.message), report))
    try:
        async with _alone(database_url, report):
            await _migrate(connection, app_role, deliver_newer_than, report)
    except asyncpg.PostgresError as error:
        raise _explained(error) from error
    finally:
        await connection.close(timeout=5)


async def pending(database_url: str) -> Pending:
    """What `migrate` would do to this database."""
    connection = await _connect(database_url)
    try:
        return await _pending(connection)
    finally:
        await connection.close(timeout=5)


async def require_schema(connection: asyncpg.Connection) -> None:
    """
    Refuse to work on a schema that does not fit this program.

    Raises:
        SchemaError: It is older than this program needs, or newer in a way that breaks it.
    """
    steps = await _pending(connection)
    if steps:
        raise SchemaError(f"the database is not up to date ({steps.steps[0]}): run `postroom migrate`")


# The steps


async def _migrate(
    connection: asyncpg.Connection, app_role: str | None, deliver_newer_than: str, report: Report
) -> None:
    to_do = await _pending(connection)
    if app_role is not None and await _fetchval(
        connection, "SELECT to_regrole(quote_ident($1)) IS NULL", app_role
    ):
        raise MigrationFailed(
            f"--app-role: there is no role {app_role!r}: make it (CREATE ROLE ... LOGIN), then migrate again"
        )
    if to_do:
        async with connection.transaction():
            await connection.execute(f"{_NO_SEARCH_PATH}\n{preflight_sql()}")
        reach("migrate.preflight.after")
        for migration in await _missing(connection):
            report(f"migration {migration.version:04d} {migration.name}")
            await _apply(connection, migration, report)
        parts = schema_parts()
        first = "\n".join(text for name, text in parts.items() if name != LAST_PART)
        await _in_transaction(
            connection, f"SET LOCAL check_function_bodies = off;\n{first}", report, locked=TABLES
        )
        await _settle_old_rows(connection, deliver_newer_than, report)
        await _in_transaction(
            connection,
            f"{parts[LAST_PART]}\nSELECT postroom.grant_access({literal(app_role)});",
            report,
            locked=TABLES,
        )
        await _settle_old_rows(connection, deliver_newer_than, report)
        await _in_transaction(connection, f"{LAST_STEPS}\n{done_sql()}", report)
    else:
        await _in_transaction(connection, f"SELECT postroom.grant_access({literal(app_role)});", report)
    report(f"up to date: version {latest_version():04d}")


async def _pending(connection: asyncpg.Connection) -> Pending:
    if not await _fetchval(connection, "SELECT to_regclass('postroom.repeatables') IS NOT NULL"):
        return Pending([f"migration {m.version:04d} {m.name}" for m in migrations()])
    newer = await _fetchrow(
        connection,
        """
        SELECT version, name
        FROM postroom.migrations
        WHERE version > $1 AND breaking
        ORDER BY version
        LIMIT 1
        """,
        latest_version(),
    )
    if newer is not None:
        raise SchemaError(
            f"the database was migrated by a newer postroom (to {newer['version']:04d} {newer['name']}), "
            f"and this program knows {latest_version():04d}: upgrade this program"
        )
    steps = [f"migration {m.version:04d} {m.name}" for m in await _missing(connection)]
    applied = await _fetchrow(
        connection, "SELECT version, digest, program FROM postroom.repeatables WHERE name = 'functions'"
    )
    # Functions of a newer program are left alone: they keep every signature that we call.
    if applied is None or not (
        applied["digest"] == schema_digest()
        or applied["version"] > latest_version()
        or is_newer(applied["program"], VERSION)
    ):
        steps.append("functions")
    return Pending(steps)


async def _missing(connection: asyncpg.Connection) -> list[Migration]:
    done: set[int] = set()
    if await _fetchval(connection, "SELECT to_regclass('postroom.migrations') IS NOT NULL"):
        done = {row["version"] for row in await _fetch(connection, "SELECT version FROM postroom.migrations")}
    return [migration for migration in migrations() if migration.version not in done]


async def _apply(connection: asyncpg.Connection, migration: Migration, report: Report) -> None:
    if not migration.outside_transaction:
        await _in_transaction(
            connection, f"{migration.text}\n{record_sql(migration)}", report, version=migration.version
        )
        return
    for statement in _statements(migration.text):
        reach("migrate.index.before")
        await _build_index(connection, statement, report)
        reach("migrate.index.after")
    await connection.execute(record_sql(migration))
    reach("migrate.record.after")


async def _in_transaction(
    connection: asyncpg.Connection,
    script: str,
    report: Report,
    *,
    locked: Sequence[str] = (),
    version: int | None = None,
) -> None:
    """
    Run a script in one transaction, again and again until it gets its locks in time.

    Args:
        locked: The tables that the script changes, where it is more than one: locked before it begins, since
            a script that stops in the middle to wait for a lock makes others wait for those that it holds.
        version: The migration that it is; nothing is done where that is recorded already.
    """
    timeouts = [FIRST_LOCK_TIMEOUT_MS, *[FURTHER_LOCK_TIMEOUT_MS] * len(locked)]
    locks = [
        f"SET LOCAL lock_timeout = '{timeout}ms'; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;"
        for timeout, table in zip(timeouts, locked, strict=False)
    ]

    async def once() -> None:
        async with connection.transaction():
            await _begin_step(connection)
            if version is not None and version not in {m.version for m in await _missing(connection)}:
                return
            reach("migrate.step.before")
            await connection.execute("\n".join([*locks, script]))
            reach("migrate.step.inside")
        reach("migrate.step.after")

    await _with_patience(connection, once, report)


async def _begin_step(connection: asyncpg.Connection) -> None:
    await connection.execute(
        f"{_NO_SEARCH_PATH}\n"
        f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'; SET LOCAL statement_timeout = 0;\n"
        f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_MS}ms';\n"
        "SET LOCAL client_min_messages = notice;\n"
        f"SELECT pg_advisory_xact_lock({_STEP_KEY});"
    )


async def _build_index(connection: asyncpg.Connection, statement: str, report: Report) -> None:
    """Build one index while others write. What an interrupted build left is invalid and is dropped."""
    match = re.search(r"INDEX CONCURRENTLY IF NOT EXISTS (\w+)", statement)
    assert match, f"not an index that can be taken up again: {statement[:80]}"
    name = match[1]

    async def once() -> None:
        await _drop_invalid_index(connection, name)
        await connection.execute(statement)
        if await _is_invalid(connection, name):
            raise asyncpg.LockNotAvailableError(f"index {name} is being built by a migrate that was cut off")

    # In no transaction, so it cannot be SET LOCAL.
    await connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_MS}ms'; SET statement_timeout = 0;")
    try:
        await _with_patience(connection, once, report)
    finally:
        await connection.execute("RESET lock_timeout; RESET statement_timeout;")


async def _drop_invalid_index(connection: asyncpg.Connection, name: str) -> None:
    if not await _is_invalid(connection, name):
        return
    try:
        await connection.execute(f"DROP INDEX CONCURRENTLY public.{name}")
    except asyncpg.InternalServerError as error:
        # The server goes on building it for a migrate that was killed, and both mark it at the same moment:
        # "tuple concurrently updated".
        if "concurrently" not in str(error):
            raise
        raise asyncpg.LockNotAvailableError(f"index {name} is being built or dropped: {error}") from error


async def _is_invalid(connection: asyncpg.Connection, name: str) -> bool:
    return bool(
        await _fetchval(
            connection,
            "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid)",
            f"public.{name}",
        )
    )


async def _with_patience(
    connection: asyncpg.Connection, once: Callable[[], Awaitable[None]], report: Report
) -> None:
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    told = False
    while True:
        try:
            await once()
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            holders = await _long_transactions(connection)
            if time.monotonic() > give_up_at:
                raise MigrationFailed(
                    f"a lock could not be had within {LOCK_PATIENCE_S:.0f} s ({error}); {holders}. "
                    "End what holds it, then migrate again: it goes on where it stopped"
                ) from error
            if not told:
                report(f"waiting for a lock; {holders}")
                told = True
            # Others get their turn between two tries: nobody queues behind us for longer than the time-out.
            await asyncio.sleep(random.uniform(0.2, 1.0))


async def _long_transactions(connection: asyncpg.Connection) -> str:
    rows = await _fetch(
        connection,
        """
        SELECT pid, usename, extract(EPOCH FROM clock_timestamp() - xact_start)::integer AS age_s
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
            -- Our own, which holds the migration lock, holds up nobody.
            AND NOT EXISTS (
                SELECT FROM pg_locks
                WHERE pg_locks.pid = pg_stat_activity.pid
                    AND locktype = 'advisory' AND (classid::bigint << 32) + objid::bigint = $1
            )
        ORDER BY xact_start
        LIMIT 3
        """,
        _LOCK_KEY,
    )
    if not rows:
        return "no other transaction is open now"
    return "open transactions: " + ", ".join(
        f"pid {row['pid']} of {row['usename']} since {row['age_s']} s" for row in rows
    )


async def _settle_old_rows(connection: asyncpg.Connection, deliver_newer_than: str, report: Report) -> None:
    stale = None if deliver_newer_than == "all" else deliver_newer_than
    if stale is not None and await _fetchval(connection, "SELECT postroom.span($1) IS NULL", stale):
        raise MigrationFailed(f"--deliver-newer-than {stale}: write a span such as 12h or 7d, or all")
    for table in QUEUES:
        if await _fetchval(
            connection, "SELECT EXISTS (SELECT FROM postroom.repeatables WHERE name = $1)", f"rows of {table}"
        ):
            continue
        found = {"stuck": 0, "leased": 0, "stale": 0, "refused": 0}
        give_up_at = time.monotonic() + LOCK_PATIENCE_S
        while await _fetchval(
            connection, "SELECT postroom.has_old_rows($1::text::regclass, postroom.span($2))", table, stale
        ):
            await _settle_pass(connection, table, stale, found, report)
            if time.monotonic() > give_up_at:
                raise MigrationFailed(
                    f"{table}: rows in 'processing' stay locked; "
                    f"{await _long_transactions(connection)}. Migrate again"
                )
        _report_rows(table, found, report)


async def _settle_pass(
    connection: asyncpg.Connection, table: str, stale: str | None, found: dict[str, int], report: Report
) -> None:
    last_id: UUID | None = None

    async def once() -> None:
        nonlocal last_id
        async with connection.transaction():
            await _begin_step(connection)
            row = await connection.fetchrow(
                "SELECT * FROM postroom.settle_old_rows($1::text::regclass, postroom.span($2), $3, $4)",
                table,
                stale,
                last_id,
                BATCH_ROWS,
            )
            reach("migrate.rows.inside")
        reach("migrate.rows.after")
        assert row is not None
        last_id = row["last_id"]
        for what in found:
            found[what] += row[what]

    while True:
        await _with_patience(connection, once, report)
        if last_id is None:
            await asyncio.sleep(0.05)
            return


def _report_notice(message: str, report: Report) -> None:
    if not message.endswith(", skipping"):  # IF NOT EXISTS, where it exists
        report(message)


def _report_rows(table: str, found: dict[str, int], report: Report) -> None:
    said = {
        "stuck": "stuck in 'processing' are due again",
        "leased": "in 'processing' by old callers keep their lease of 15 minutes",
        "stale": "have waited too long: dead letters (`postroom dead-letters list --reason stale`)",
        "refused": "are refused by their own trigger or constraint: see postroom.refused_rows",
    }
    for what, count in found.items():
        if count:
            report(f"{table}: {count} rows {said[what]}")


# Helpers


async def _fetch(connection: asyncpg.Connection, query: str, *arguments: object) -> list[asyncpg.Record]:
    if not connection.is_in_transaction():
        async with connection.transaction():
            return await _fetch(connection, query, *arguments)
    await connection.execute(_NO_SEARCH_PATH)
    rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
    return rows


async def _fetchrow(connection: asyncpg.Connection, query: str, *arguments: object) -> asyncpg.Record | None:
    rows = await _fetch(connection, query, *arguments)
    return rows[0] if rows else None


async def _fetchval(connection: asyncpg.Connection, query: str, *arguments: object) -> Any:
    row = await _fetchrow(connection, query, *arguments)
    return None if row is None else row[0]


# By the simple protocol: a prepared statement's portal would keep its snapshot until the transaction ends.
_LOCK_SQL = f"""
DO $$
BEGIN
    IF NOT pg_try_advisory_xact_lock({_LOCK_KEY}) THEN
        RAISE EXCEPTION 'another migrate is running' USING ERRCODE = 'lock_not_available';
    END IF;
END;
$$
"""


def _statements(text: str) -> list[str]:
    without_comments = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return [statement.strip() for statement in without_comments.split(";") if statement.strip()]


def _explained(error: asyncpg.PostgresError) -> MigrationFailed:
    parts = [str(error.args[0] if error.args else error)]
    if hint := getattr(error, "hint", None):
        parts.append(str(hint))
    elif isinstance(error, asyncpg.InsufficientPrivilegeError):
        parts.append("name the tables' owner, who may make schemas, in POSTROOM_DATABASE_URL")
    return MigrationFailed(" - ".join(parts))


async def _connect(database_url: str) -> asyncpg.Connection:
    try:
        # Statements are not kept: the types that they name change under them.
        return await asyncpg.connect(database_url, statement_cache_size=0, timeout=10, command_timeout=None)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        raise unavailable(error, name_of(database_url)) from error


@asynccontextmanager
async def _alone(database_url: str, report: Report) -> AsyncIterator[None]:
    """
    Hold the migration lock, on a connection of its own, in a transaction that has no snapshot.

    A transaction's lock: those of a session are shared by strangers behind a pooler. Without a snapshot the
    transaction does not hold up CREATE INDEX CONCURRENTLY.
    """
    holder = await _connect(database_url)
    try:
        told = False
        while True:
            transaction = holder.transaction()
            await transaction.start()
            try:
                await holder.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                await holder.execute(_LOCK_SQL)
                break
            except asyncpg.LockNotAvailableError:
                await transaction.rollback()
            if not told:
                report("another migrate is running: waiting for it")
                told = True
            await asyncio.sleep(0.2)
        yield
        await transaction.rollback()
    finally:
        await holder.close(timeout=5)
