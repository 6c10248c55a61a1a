"""
What a person looks at before postroom takes over a hand-made project; nothing is changed by it.

It needs none of postroom's tables, and runs in one read-only transaction.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import timedelta

import asyncpg

from postroom.database.connect import name_of
from postroom.database.connection import unavailable
from postroom.database.migrate import QUEUES, TABLES, preflight_sql
from postroom.errors import PostroomError
from postroom.finding import Finding, ok, problem, warning
from postroom.wording import count_of

LOOK_S = 300.0
"""For all of it; counting needs a pass over each queue where no index helps."""

FUNCTIONS = {
    "calculate_email_retry_time": "integer",
    "calculate_webhook_retry_time": "integer",
    "get_email_queue_batch": "integer",
    "mark_email_sent": "uuid",
    "mark_email_failed": "uuid, text",
    "get_webhook_retry_batch": "integer",
    "mark_webhook_processed": "uuid",
    "mark_webhook_failed": "uuid, text",
    "increment_rate_limit": "text, integer, integer",
    "cleanup_rate_limit_counters": "",
    "enqueue_email": "text, text, text, text, text, text, jsonb, text, timestamp with time zone, "
    "integer, integer, text, jsonb",
}
"""The functions that migrate replaces, whatever their arguments, and the arguments that they have then."""

ARGUMENT_NAMES = {
    "calculate_email_retry_time": "attempt_number",
    "calculate_webhook_retry_time": "attempt_number",
    "get_email_queue_batch": "batch_size",
    "mark_email_sent": "email_id",
    "mark_email_failed": "email_id, error_message",
    "get_webhook_retry_batch": "batch_size",
    "mark_webhook_processed": "webhook_id",
    "mark_webhook_failed": "webhook_id, error_message",
    "increment_rate_limit": "p_key, p_increment, p_limit",
    "cleanup_rate_limit_counters": "",
    "enqueue_email": "to_email, subject, html, from_email, reply_to, email_type, metadata, idempotency_key, "
    "send_at, priority, max_attempts, text, headers",
}
RESULTS = {
    "calculate_email_retry_time": "timestamp with time zone",
    "calculate_webhook_retry_time": "timestamp with time zone",
    "get_email_queue_batch": "TABLE(id uuid, to_email text, subject text, html text, from_email text, "
    "reply_to text, attempts integer, max_attempts integer, email_type text, metadata jsonb)",
    "mark_email_sent": "void",
    "mark_email_failed": "void",
    "get_webhook_retry_batch": "TABLE(id uuid, webhook_type text, webhook_event_id text, payload jsonb, "
    "headers jsonb, attempts integer, max_attempts integer, metadata jsonb)",
    "mark_webhook_processed": "void",
    "mark_webhook_failed": "void",
    "increment_rate_limit": "TABLE(count integer)",
    "cleanup_rate_limit_counters": "void",
    "enqueue_email": "uuid",
}

# A default that is the same for each row, and calls nothing: as PostgreSQL writes a literal.
_LITERAL = re.compile(r"(?:'(?:[^']|'')*'|\(?-?[0-9.]+\)?|true|false)(?:::[^()']+(?:\([0-9,]+\))?(?:\[\])*)*")

_STATE = ("status", "attempts", "max_attempts", "error_count", "metadata", "created_at", "updated_at")
_COUNTED = ("priority", "crashes", "lease_no")
_ENDS = ("headers", "next_retry_at", "last_error", "failed_at")
_OURS = ("leased_by", "waits_for", "planned_under", "dead_reason", "attempt_log", "wanted_at", "due_at")
MAY_BE_NULL = {
    "email_queue": (
        *_ENDS,
        *_OURS,
        "from_email",
        "reply_to",
        "email_type",
        "sent_at",
        "text",
        "idempotency_key",
    ),
    "webhook_retry_queue": (
        *_ENDS,
        *_OURS,
        "webhook_event_id",
        "last_error_at",
        "processed_at",
        "event_type",
        "lane",
        "lane_place",
    ),
}
ALWAYS_WRITTEN = {
    "email_queue": (*_STATE, *_COUNTED, "to_email", "subject", "html"),
    "webhook_retry_queue": (
        *_STATE,
        *_COUNTED,
        "handlers_done",
        "handlers_stopped",
        "lane_holds",
        "webhook_type",
        "payload",
    ),
}
"""As migrations 0024 to 0027 have them; a test compares what is said here with what they do."""

STALE_DAYS = 7
LEASED_MINUTES = 15


async def look_before_upgrade(database_url: str) -> list[Finding]:
    """
    What the upgrade of this database would meet.

    Returns:
        Problems are what migrate refuses; warnings are what a person should know first.

    Raises:
        DatabaseUnavailable: No connection.
        PostroomError: The look took too long, or this user may not look.
    """
    try:
        connection = await asyncpg.connect(database_url, statement_cache_size=0, timeout=10)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        raise unavailable(error, name_of(database_url)) from error
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(
                "SET LOCAL search_path = ''; SET LOCAL lock_timeout = '2s'; "
                f"SET LOCAL statement_timeout = '{LOOK_S:.0f}s'"
            )
            return await _look(connection)
    except asyncpg.PostgresError as error:
        may_not = isinstance(error, asyncpg.InsufficientPrivilegeError)
        advice = "; name the tables' owner in POSTROOM_DATABASE_URL" if may_not else ""
        raise PostroomError(f"the look before the upgrade ended: {error}{advice}") from error
    finally:
        await connection.close(timeout=5)


async def _look(connection: asyncpg.Connection) -> list[Finding]:
    there = [
        table for table in TABLES if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table)
    ]
    is_here = await connection.fetchval("SELECT to_regclass('postroom.migrations') IS NOT NULL")
    found = [_look_at_house(is_here, there)]
    found += await _look_at_refusals(connection)
    for queue in QUEUES:
        if queue in there:
            found += await _look_at_rows(connection, queue)
            found += await _look_at_columns(connection, queue)
    if not is_here:
        found += await _look_at_attachments(connection)
    found += await _look_at_jobs(connection)
    found += await _look_at_functions(connection)
    if there:
        found += await _look_at_grants(connection, there, is_here)
        found += await _look_at_policies(connection, there)
        found += await _look_at_triggers(connection, there)
    return found


def _look_at_house(is_here: bool, there: list[str]) -> Finding:
    if is_here:
        return warning(
            "upgrade",
            "postroom is here already: what follows is what an upgrade would find now",
            "run `postroom migrate --check`",
        )
    names = ", ".join(table.removeprefix("public.") for table in there)
    return ok("upgrade", f"tables of before: {names or 'none'}; the others are made")


async def _look_at_refusals(connection: asyncpg.Connection) -> list[Finding]:
    """What stops migrate before it has changed anything."""
    try:
        async with connection.transaction():
            await connection.execute(preflight_sql())
    except asyncpg.PostgresError as error:
        hint = getattr(error, "hint", None) or "Change what is named."
        return [problem("refused", str(error.args[0]), hint.replace("Nothing was changed.", "").strip())]
    return [ok("refused", "nothing stands in the way")]


async def _look_at_rows(connection: asyncpg.Connection, queue: str) -> list[Finding]:
    name = queue.removeprefix("public.")
    done = "sent" if name == "email_queue" else "processed"
    columns = await connection.fetchval(
        """
        SELECT array_agg(attribute.attname::text)
        FROM pg_catalog.pg_attribute AS attribute
        WHERE attribute.attrelid = to_regclass($1) AND attribute.attnum > 0 AND NOT attribute.attisdropped
        """,
        queue,
    )
    if "status" not in columns:
        return []  # refused, where there are rows

    def times(*names: str) -> str:
        return ", ".join(f"queued.{name}" for name in names if name in columns) or "NULL::timestamptz"

    due = f"GREATEST(COALESCE({times('created_at', 'updated_at')}), {times('next_retry_at')})"
    row = await connection.fetchrow(
        f"""
        SELECT
            count(*) FILTER (WHERE waits) AS waiting,
            count(*) FILTER (WHERE waits AND age < interval '1 hour') AS hour,
            count(*) FILTER (WHERE waits AND age >= interval '1 hour' AND age < interval '1 day') AS day,
            count(*) FILTER (WHERE waits AND age >= interval '1 day' AND age < $1) AS week,
            count(*) FILTER (WHERE (waits OR is_held) AND age >= $1) AS stale,
            count(*) FILTER (WHERE is_held AND age < $1 AND seen < $2) AS leased,
            count(*) FILTER (WHERE is_held AND age < $1 AND seen >= $2) AS stuck,
            count(*) FILTER (WHERE NOT waits AND NOT is_held) AS other
        FROM (
            SELECT
                queued.status::text = 'pending' AS waits,
                queued.status::text = 'processing' AS is_held,
                COALESCE(clock_timestamp() - {due}, interval '0') AS age,
                clock_timestamp() - GREATEST({times("created_at", "updated_at", "next_retry_at")}) AS seen
            FROM {queue} AS queued
            WHERE queued.status::text NOT IN ('sent', 'processed', 'failed', 'dead_letter')
        ) AS live
        """,  # noqa: S608 - names of ours
        timedelta(days=STALE_DAYS),
        timedelta(minutes=LEASED_MINUTES),
    )
    assert row is not None
    found = [
        ok(
            name,
            f"{row['waiting']:,} wait: {row['hour']:,} for less than an hour, "
            f"{row['day']:,} for less than a day, {row['week']:,} for less than {STALE_DAYS} days",
        )
    ]
    if row["stale"]:
        found.append(
            warning(
                name,
                f"{row['stale']:,} have waited for more than {STALE_DAYS} days: "
                "they become dead letters, and are not sent",
                "to have them sent: `postroom migrate --deliver-newer-than all` (or 30d); "
                "to send some: `postroom dead-letters retry` afterwards",
            )
        )
    if row["stuck"]:
        found.append(
            warning(
                name,
                f"{row['stuck']:,} are stuck in 'processing' for more than {LEASED_MINUTES} minutes: "
                "they become due, and go out again where their caller had got that far",
                f"set those that are done to '{done}' before you migrate",
            )
        )
    if row["leased"]:
        kept = f"who keep them for {LEASED_MINUTES} minutes"
        found.append(ok(name, f"{row['leased']:,} are in the hands of callers now, {kept}"))
    if row["other"]:
        found.append(
            warning(
                name, f"{row['other']:,} have another status: they are left alone", "look at them yourself"
            )
        )
    return [*found, *await _look_at_duplicates(connection, queue)]


async def _look_at_columns(connection: asyncpg.Connection, queue: str) -> list[Finding]:
    """Columns that may not be NULL, where what postroom writes would be refused."""
    name = queue.removeprefix("public.")
    rows = await connection.fetch(
        """
        SELECT attribute.attname::text AS name, attribute.attname = ANY ($2::text[]) AS is_known
        FROM pg_catalog.pg_attribute AS attribute
        WHERE attribute.attrelid = to_regclass($1)
            AND attribute.attnum > 0
            AND NOT attribute.attisdropped
            AND attribute.attnotnull
            AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_index AS index
                WHERE index.indrelid = attribute.attrelid
                    AND index.indisprimary
                    AND attribute.attnum = ANY (index.indkey)
            )
            AND (
                attribute.attname = ANY ($2::text[])
                OR (
                    NOT attribute.atthasdef
                    AND attribute.attidentity = ''
                    AND attribute.attname <> ALL ($3::text[])
                )
            )
        ORDER BY attribute.attnum
        """,
        queue,
        MAY_BE_NULL[name],
        ALWAYS_WRITTEN[name],
    )
    refuses = "enqueue_email and HTTP cannot queue" if name == "email_queue" else "no event can be stored"
    return [
        warning(
            "columns",
            f"{name}.{row['name']} may not be NULL: that is dropped, since postroom writes NULL there",
            "a program of yours that reads it must take a NULL",
        )
        if row["is_known"]
        else warning(
            "columns",
            f"{name}.{row['name']} may not be NULL and has no default: {refuses}",
            f"ALTER TABLE {name} ALTER COLUMN {row['name']} DROP NOT NULL, or give it a default",
        )
        for row in rows
    ]


async def _look_at_duplicates(connection: asyncpg.Connection, queue: str) -> list[Finding]:
    """What would be done twice; only what waits, which is little beside what has ended."""
    name = queue.removeprefix("public.")
    if name == "email_queue":
        key, alike = "lower(queued.to_email), queued.subject, md5(queued.html)", "address, subject and html"
    else:
        key, alike = "queued.webhook_type, NULLIF(queued.webhook_event_id, '')", "event id"
    count = await connection.fetchval(
        f"""
        SELECT COALESCE(sum(alike.copies - 1), 0)::bigint
        FROM (
            SELECT count(*) AS copies
            FROM (
                SELECT ROW({key}) AS key
                FROM {queue} AS queued
                WHERE queued.status::text IN ('pending', 'processing')
            ) AS live
            WHERE live.key IS NOT NULL
            GROUP BY live.key
            HAVING count(*) > 1
        ) AS alike
        """  # noqa: S608 - names of ours
    )
    if not count:
        return []
    return [
        warning(
            name,
            f"{count:,} that wait are the same as another one ({alike}): each of them goes out",
            "set those that should not to 'failed' before you migrate",
        )
    ]


async def _look_at_attachments(connection: asyncpg.Connection) -> list[Finding]:
    """A hand-made column of this name: what of it goes out, and what makes a mail a dead letter."""
    column = await connection.fetchrow(
        """
        SELECT
            pg_catalog.format_type(known.atttypid, NULL) AS kind,
            pg_catalog.format_type(known.atttypid, known.atttypmod) AS type,
            CASE known.attgenerated WHEN '' THEN pg_catalog.pg_get_expr(made.adbin, made.adrelid) END
                AS by_default
        FROM pg_catalog.pg_attribute AS known
        JOIN pg_catalog.pg_attribute AS state
            ON state.attrelid = known.attrelid AND state.attname = 'status' AND NOT state.attisdropped
        LEFT JOIN pg_catalog.pg_attrdef AS made ON made.adrelid = known.attrelid AND made.adnum = known.attnum
        WHERE known.attrelid = to_regclass('public.email_queue') AND known.attname = 'attachments'
            AND NOT known.attisdropped
        """
    )
    if column is None:
        return []
    kind = column["kind"]
    says_nothing = await _attachments_by_default(connection, column["by_default"], column["type"])
    row = await connection.fetchrow(
        """
        SELECT count(*) AS attached, count(*) FILTER (WHERE NOT waiting.has_files) AS other
        FROM (
            SELECT jsonb_typeof(read.held) IN ('array', $1) AND NOT EXISTS (
                SELECT
                FROM jsonb_array_elements(
                    CASE jsonb_typeof(read.held) WHEN 'array' THEN read.held END
                ) AS file (file)
                WHERE jsonb_typeof(file.file) <> 'object' OR NOT file.file ?& '{filename,content}'
            ) AS has_files
            FROM public.email_queue AS queued
            CROSS JOIN LATERAL (SELECT to_jsonb(queued.attachments) AS held) AS read
            WHERE queued.status::text IN ('pending', 'processing')
                AND read.held NOT IN ('null', '[]', '{}', '""', '"[]"', 'false', '0')
                AND read.held IS DISTINCT FROM $2::text::jsonb
        ) AS waiting
        """,
        "string" if kind == "text" else "array",  # a text may be JSON, and only an attempt finds out
        says_nothing,
    )
    assert row is not None
    found = [ok("attachments", f"email_queue.attachments is there, and stays {kind}")]
    if row["attached"]:
        found = [
            warning(
                "attachments",
                f"{row['attached']:,} that wait have something in email_queue.attachments ({kind}): "
                'files as [{"filename", "content": base64}] go out with them'
                + (
                    f", and {row['other']:,} hold something else: they become dead letters"
                    if row["other"]
                    else ""
                ),
                "look at them before you migrate: none goes out without what is there",
            )
        ]
    return found


async def _attachments_by_default(
    connection: asyncpg.Connection, expression: str | None, kind: str
) -> str | None:
    """As JSON, what says nothing of a row: as postroom.attachments_by_default has it once it is there."""
    if expression is None or not _LITERAL.fullmatch(expression):
        return None
    value: str = await connection.fetchval(f"SELECT pg_catalog.to_jsonb(({expression})::{kind})::text")
    held = json.loads(value)
    if isinstance(held, str):
        with suppress(ValueError):
            held = json.loads(held)
    first = held[0] if isinstance(held, list) and held else None
    has_files = isinstance(first, dict) and first.keys() >= {"filename", "content"}
    return None if has_files else value


async def _look_at_jobs(connection: asyncpg.Connection) -> list[Finding]:
    if not await connection.fetchval("SELECT to_regclass('cron.job') IS NOT NULL"):
        return []
    try:
        async with connection.transaction():
            rows = await connection.fetch(
                """
                SELECT job.jobid, job.jobname::text AS name, job.schedule, job.command, job.active
                FROM cron.job AS job
                ORDER BY job.jobid
                """
            )
    except asyncpg.InsufficientPrivilegeError:
        user = await connection.fetchval("SELECT quote_ident(current_user)")
        return [warning("cron", "this user may not read cron.job", f"GRANT USAGE ON SCHEMA cron TO {user}")]
    called = [*FUNCTIONS, "process-email-queue", "process-webhook-retries", "send-email"]
    ours = await _own_jobs(connection)
    found = []
    for row in rows:
        if (row["jobid"], row["name"]) in ours:
            continue
        calls = [name for name in called if name in row["command"]]
        if not calls:
            continue
        named = f" '{row['name']}'" if row["name"] else ""
        when = row["schedule"] if row["active"] else f"{row['schedule']}, not active"
        found.append(
            warning(
                "cron",
                f"job {row['jobid']}{named} ({when}) calls {', '.join(calls)}: it is kept",
                f"once postroom works: SELECT cron.unschedule({row['jobid']})",
            )
        )
    return found or [ok("cron", "no job calls the queues")]


async def _own_jobs(connection: asyncpg.Connection) -> set[tuple[int, str]]:
    """Id and name of postroom's own jobs in cron.job, whoever runs them; none where it has not been here."""
    if not await connection.fetchval("SELECT to_regclass('postroom.jobs') IS NOT NULL"):
        return set()
    rows = await connection.fetch(
        """
        SELECT COALESCE(job.pg_cron_jobid, job.jobid) AS jobid, job.jobname AS name
        FROM postroom.jobs AS job
        WHERE job.builtin
        """
    )
    return {(row["jobid"], row["name"]) for row in rows}


async def _look_at_functions(connection: asyncpg.Connection) -> list[Finding]:
    rows = await connection.fetch(
        """
        SELECT
            proc.proname::text AS name,
            pg_catalog.oidvectortypes(proc.proargtypes) AS arguments,
            COALESCE(array_to_string(proc.proargnames[1:proc.pronargs], ', '), '') AS argument_names,
            pg_catalog.pg_get_function_result(proc.oid) AS result,
            proc.prosecdef AS definer,
            (
                SELECT string_agg(DISTINCT acl.role, ', ' ORDER BY acl.role)
                FROM (
                    SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS role
                    FROM pg_catalog.aclexplode(
                        COALESCE(proc.proacl, pg_catalog.acldefault('f', proc.proowner))
                    ) AS acl
                    WHERE acl.grantee IN (0, to_regrole('anon'), to_regrole('authenticated'))
                ) AS acl
            ) AS open_to
        FROM pg_catalog.pg_proc AS proc
        WHERE proc.pronamespace = 'public'::pg_catalog.regnamespace
            AND proc.proname = ANY ($1::text[])
            AND COALESCE(pg_catalog.obj_description(proc.oid, 'pg_proc'), '') NOT LIKE 'postroom:%'
        ORDER BY 1, 2
        """,
        list(FUNCTIONS),
    )
    if not rows:
        return []
    called = [f"{row['name']}({row['arguments']})" for row in rows]
    found = [
        ok(
            "functions",
            f"{count_of(len(rows), 'function')} replaced, the text kept in postroom.replaced_objects: "
            + ", ".join(called),
        )
    ]
    for row, name in zip(rows, called, strict=True):
        if row["arguments"] != FUNCTIONS[row["name"]]:
            found.append(
                warning(
                    "functions",
                    f"{name} goes: ours is {row['name']}({FUNCTIONS[row['name']]})",
                    "see that every call fits ours",
                )
            )
        elif row["argument_names"] != ARGUMENT_NAMES[row["name"]]:
            found.append(
                warning(
                    "functions",
                    f"{name} has ({row['argument_names']}): ours ({ARGUMENT_NAMES[row['name']]})",
                    "supabase.rpc() and whoever else calls it by these names has to say ours",
                )
            )
        if row["result"] != RESULTS[row["name"]]:
            found.append(
                warning(
                    "functions",
                    f"{name} returns {row['result']}: ours {RESULTS[row['name']]}",
                    "see that its callers take that answer",
                )
            )
        if row["open_to"]:
            definer = ", with its owner's rights" if row["definer"] else ""
            found.append(
                warning(
                    "functions",
                    f"{name} may be called by {row['open_to']}{definer}: they will not be able to",
                    "who calls it from a browser calls your own function instead, which uses service_role",
                )
            )
    return found


async def _look_at_grants(connection: asyncpg.Connection, there: list[str], is_here: bool) -> list[Finding]:
    rows = await connection.fetch(
        """
        SELECT
            class.relname::text AS "table",
            CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS role,
            string_agg(DISTINCT acl.privilege_type, ', ' ORDER BY acl.privilege_type) AS rights,
            acl.grantee = to_regrole('authenticated') AND class.relname = 'email_queue' AS keeps_reading
        FROM pg_catalog.pg_class AS class
        CROSS JOIN LATERAL pg_catalog.aclexplode(class.relacl) AS acl
        WHERE class.oid = ANY ($1::text[]::regclass[])
            AND acl.grantee IN (0, to_regrole('anon'), to_regrole('authenticated'))
        GROUP BY class.relname, acl.grantee
        ORDER BY 1, 2
        """,
        there,
    )
    return [
        warning(
            "grants",
            f"{row['role']} has {row['rights']} on {row['table']}: taken away"
            + (", but to read one's own e-mails" if row["keeps_reading"] else ""),
            "a browser that writes there with the anon key is refused then: let it call a function of yours",
        )
        for row in rows
        if not (is_here and row["keeps_reading"] and row["rights"] == "SELECT")  # that is what we grant
    ]


async def _look_at_policies(connection: asyncpg.Connection, there: list[str]) -> list[Finding]:
    rows = await connection.fetch(
        """
        SELECT
            policy.polname::text AS name,
            policy.polrelid::regclass::text AS "table",
            (
                SELECT string_agg(CASE role.oid WHEN 0 THEN 'PUBLIC' ELSE role.oid::regrole::text END, ', ')
                FROM unnest(policy.polroles) AS role (oid)
            ) AS roles
        FROM pg_catalog.pg_policy AS policy
        WHERE policy.polrelid = ANY ($1::text[]::regclass[])
            AND policy.polroles && ARRAY[0, to_regrole('anon'), to_regrole('authenticated')]::oid[]
            AND policy.polname NOT LIKE 'postroom: %'
        ORDER BY 2, 1
        """,
        there,
    )
    return [
        warning(
            "policies",
            f"policy {row['name']!r} on {row['table'].removeprefix('public.')} speaks for {row['roles']}: "
            "replaced, its text kept",
            "a role of your own that lives by it gets it in its own name",
        )
        for row in rows
    ]


async def _look_at_triggers(connection: asyncpg.Connection, there: list[str]) -> list[Finding]:
    rows = await connection.fetch(
        """
        SELECT trigger.tgname::text AS name, pg_catalog.pg_get_triggerdef(trigger.oid) AS text
        FROM pg_catalog.pg_trigger AS trigger
        JOIN pg_catalog.pg_proc AS proc ON proc.oid = trigger.tgfoid
        WHERE trigger.tgrelid = ANY ($1::text[]::regclass[])
            AND NOT trigger.tgisinternal
            AND proc.pronamespace IS DISTINCT FROM to_regnamespace('postroom')
        ORDER BY trigger.tgrelid::regclass::text, 1
        """,
        there,
    )
    return [
        warning(
            "triggers",
            f"{row['text'].removeprefix('CREATE TRIGGER ')}: kept, and fires for what workers write too",
            "one that sends the mail itself sends it twice: DROP TRIGGER as the first worker starts",
        )
        for row in rows
    ]
