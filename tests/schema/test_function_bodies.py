"""Every function of ours is read by a checker: what it names is there, whichever branch runs first."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from postroom.database.migrate import migrate

PLPGSQL_CHECK = Path("/usr/share/postgresql/15/extension/plpgsql_check.control")

OURS = """
    (
        pronamespace = 'postroom'::regnamespace
        OR (pronamespace = 'public'::regnamespace AND obj_description(proc.oid, 'pg_proc') LIKE 'postroom:%')
    )
"""

OTHER_TYPE = "target type is different type than source type"
VOLATILE = "routine is marked as VOLATILE, should be STABLE"
CONSTANT = "immutable expression without parameters found"
NOT_SANITIZED = "text type variable is not sanitized"
HANDLE_WEBHOOKS = (
    "postroom.handle_webhooks(uuid,uuid[],bigint[],text,text,interval,text[],jsonb[],double precision[])"
)
ACCEPTED = {
    # A count or a sum becomes an integer, once a call; the cast that it asks for would cost the same.
    ("performance", "*", OTHER_TYPE),
    ("warning", "*", OTHER_TYPE),
    # They look between two writes of the same claim, and see what it has leased so far.
    ("performance", "postroom.first_live_email(bigint,jsonb,timestamp with time zone)", VOLATILE),
    ("performance", "postroom.first_live_webhook(bigint,jsonb,timestamp with time zone)", VOLATILE),
    # It locks rows, which no STABLE function may.
    ("performance", "postroom.lock_dead_letters(text,uuid[])", VOLATILE),
    # Statements that are put together from parts. Each part is a constant of grant_access or is quoted there:
    # p_rest is a constant with %I in it,
    ("security", "postroom.make_policy(regclass,text,text)", NOT_SANITIZED),
    # the command is one of four words, and a policy's expression is what pg_policies says of the policy that
    # it replaces.
    ("security", "postroom.grant_access(text)", NOT_SANITIZED),
    # the object's name is what its regclass, regprocedure or regrole says.
    ("security", "postroom.revoke_all(text,text,text)", NOT_SANITIZED),
    # What the upgrade has written down, in a table that its owner alone writes; and names of ours.
    ("security", "postroom.give_back_functions()", NOT_SANITIZED),
    ("security", "postroom.give_back_rights(text,bigint)", NOT_SANITIZED),
    ("security", "postroom.give_back_table(text)", NOT_SANITIZED),
    # The path is what pg_settings says of the database's own, quoted as PostgreSQL keeps it.
    ("security", "postroom.let_triggers_find_names()", NOT_SANITIZED),
    # The function of a handler, quoted by whoever has read the settings.
    ("security", HANDLE_WEBHOOKS, NOT_SANITIZED),
    # The whole statement is a constant: what it names is there only where pg_cron is.
    ("performance", "postroom.read_cron_jobs()", CONSTANT),
    ("performance", "postroom.use_pg_cron(text)", CONSTANT),
}


def accepted(level: str, function: str, message: str) -> bool:
    """Whether a finding is in the list, with its reason."""
    return (level, function, message) in ACCEPTED or (level, "*", message) in ACCEPTED


async def test_plpgsql_check_finds_nothing_in_our_functions(debian15_url: str) -> None:
    """No errors; nothing unused, shadowed, of a wrong type or volatility; no statement open to injection."""
    if not PLPGSQL_CHECK.exists():
        pytest.skip("needs Debian's package postgresql-15-plpgsql-check")
    await migrate(debian15_url)
    with psycopg.connect(debian15_url) as connection:
        connection.execute("CREATE EXTENSION plpgsql_check")
        # In place of pg_cron and pg_net, so that statements which name what is theirs are read too.
        connection.execute("SELECT postroom.make_cron_schema(true)")
        connection.execute("DROP VIEW cron.job_run_details")
        connection.execute("CREATE TABLE cron.job_run_details AS SELECT * FROM postroom.cron_runs")
        connection.execute("CREATE SCHEMA net")
        connection.execute(
            """
            CREATE FUNCTION net.http_post(url text, body jsonb, headers jsonb, timeout_milliseconds integer)
            RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'
            """
        )
        found = connection.execute(CHECK).fetchall()
        triggers = connection.execute("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").fetchone()
    assert triggers is not None
    assert len({function for _, function, *_ in found}) > 30, "the checker has seen our functions"
    assert len({table for table, *_ in found}) == 5, "and the trigger functions with each of their tables"
    wrong = [
        f"{function} on {table}, line {line}: {level}: {message} {query or ''}"
        for table, function, level, line, message, query in found
        if level is not None and not accepted(level, function, message)
    ]
    assert not wrong, "\n".join(wrong)
    unneeded = ACCEPTED - {(level, function, message) for _, function, level, _, message, _ in found}
    assert all(function == "*" for _, function, _ in unneeded), f"no longer needed: {unneeded}"


# A row a function even where nothing is found.
CHECK = f"""
    SELECT
        trigger.tgrelid::regclass::text, proc.oid::regprocedure::text,
        found.level, found.lineno, found.message, found.query
    FROM pg_proc AS proc
    JOIN pg_language AS language ON language.oid = proc.prolang AND lanname = 'plpgsql'
    LEFT JOIN pg_trigger AS trigger ON trigger.tgfoid = proc.oid
    LEFT JOIN LATERAL plpgsql_check_function_tb(
        proc.oid, COALESCE(trigger.tgrelid, 0), fatal_errors => false, all_warnings => true
    ) AS found ON true
    WHERE {OURS}
"""

# PostgreSQL itself reads the body of a function in SQL when it is made, where check_function_bodies is on;
# migrate has it off, since functions name others that come after them.
MAKE_AGAIN = f"""
    DO $$
    DECLARE
        v_text text;
    BEGIN
        SET LOCAL check_function_bodies = on;
        FOR v_text IN
            SELECT pg_get_functiondef(proc.oid)
            FROM pg_proc AS proc
            JOIN pg_language AS language ON language.oid = proc.prolang AND lanname = 'sql'
            WHERE {OURS}
        LOOP
            EXECUTE v_text;
        END LOOP;
    END;
    $$
"""


def test_functions_in_sql_hold_when_their_bodies_are_checked(database_url: str) -> None:
    """What they name is there, and what they return has the type that they promise."""
    with psycopg.connect(database_url) as connection:
        connection.execute(MAKE_AGAIN)


async def test_functions_in_sql_hold_on_postgresql_15(debian15_url: str) -> None:
    """The same on the oldest release."""
    await migrate(debian15_url)
    with psycopg.connect(debian15_url) as connection:
        connection.execute(MAKE_AGAIN)


DEFINER_WITH_A_REASON = {
    "postroom.wake_on_insert()",
    "postroom.forget_request()",
    "postroom.note_seen_webhook()",
    "postroom.read_cron_jobs()",
    "postroom.read_cron_runs(bigint)",
}
"""Functions with their owner's rights; docs/decisions say why."""


def test_no_function_runs_with_its_owners_rights_without_a_reason(database_url: str) -> None:
    """SECURITY DEFINER only where a decision names it, and then with search_path pinned."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            f"SELECT proc.oid::regprocedure::text, proconfig FROM pg_proc AS proc WHERE prosecdef AND {OURS}"
        ).fetchall()
    assert {name for name, _ in rows} == DEFINER_WITH_A_REASON
    assert all('search_path=""' in (options or []) for _, options in rows)
    decisions = "".join(path.read_text() for path in Path("docs/decisions").glob("*.md"))
    for name in DEFINER_WITH_A_REASON:
        assert name.removeprefix("postroom.").removesuffix("()") in decisions


def test_a_search_path_of_the_caller_changes_no_function(database_url: str) -> None:
    """Every function of ours in plpgsql pins it, or what is a caller's own would be taken for ours."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            f"""
            SELECT proc.oid::regprocedure::text
            FROM pg_proc AS proc
            JOIN pg_language AS language ON language.oid = proc.prolang AND lanname = 'plpgsql'
            WHERE {OURS} AND NOT EXISTS (
                SELECT FROM unnest(proconfig) AS setting WHERE setting LIKE 'search_path=%'
            )
            """
        ).fetchall()
    # A procedure with a SET clause may not commit; these name everything in full.
    assert sorted(rows) == [("postroom.give_back()",), (HANDLE_WEBHOOKS,)]
