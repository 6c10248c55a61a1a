"""
The upgrade as SQL files, as `supabase db push` runs them: by time stamp, each in one transaction.

The Supabase CLI remembers a file by its time stamp. It refuses files that are older than the last one
that a database has, and never runs one again. So files are dated when they are written, after those that are
there, and a later export adds what is new and leaves the others as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from postroom.database import migrate as upgrade
from postroom.database.migrate import Migration, literal

FIRST_FILES = (
    ("create_shared_primitives", ("house", "rate_limit_counters")),
    ("create_email_queue", ("email_queue",)),
    ("create_webhook_retry_queue", ("webhook_retry_queue",)),
)
"""Under the names that hand-made projects have, and which of our migrations are in each."""

LOCK_TRIES = 200
_STAMP = "%Y%m%d%H%M%S"


def export_migrations(
    folder: Path, *, app_role: str | None = None, deliver_newer_than: str = "7d", now: datetime | None = None
) -> list[Path]:
    """
    Write what is missing in a project's folder of migrations.

    Indexes are built without CONCURRENTLY, which no transaction allows. The files record their versions, so
    that `migrate --check` is content afterwards.

    Args:
        folder: `supabase/migrations`; made where it is missing.
        app_role: As for `migrate`; so is deliver_newer_than.
        now: When the files are written; None is the present.

    Returns:
        The files that were written, in the order in which they run; none where the folder has them all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(path for path in folder.glob("*.sql") if re.fullmatch(r"\d+_.+\.sql", path.name))
    known = {_name_of(path): path for path in there}  # of several, the last
    wanted = [(name, text) for name, text in _tables() if name not in known]
    last = list(_functions(app_role, deliver_newer_than))
    if wanted or any(name not in known or _read(known[name]) != text for name, text in last):
        wanted += last
    written = []
    for stamp, (name, text) in zip(_stamps(there, now or datetime.now(UTC)), wanted, strict=False):
        path = folder / f"{stamp}_{name}.sql"
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _name_of(path: Path) -> str:
    return path.stem.partition("_")[2]


def _stamps(there: Sequence[Path], now: datetime) -> Iterator[str]:
    """A second apart, after each that is there."""
    at = now
    for path in there:
        stamp = path.name.partition("_")[0]
        if len(stamp) == 14:
            try:
                found = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
            except ValueError:  # a number that is no time
                continue
            at = max(at, found + timedelta(seconds=1))
    while True:
        yield at.strftime(_STAMP)
        at += timedelta(seconds=1)


def _tables() -> Iterator[tuple[str, str]]:
    """What is made once: each runs one of our migrations, the first ones under names that projects know."""
    by_name = {migration.name: migration for migration in upgrade.migrations()}
    for number, (name, ours) in enumerate(FIRST_FILES):
        texts = [_migration_sql(by_name.pop(our)) for our in ours]
        yield name, _file(*([upgrade.preflight_sql()] if number == 0 else []), *texts)
    for migration in by_name.values():
        yield f"postroom_{migration.version:04d}_{migration.name}", _file(_migration_sql(migration))


def _functions(app_role: str | None, deliver_newer_than: str) -> Iterator[tuple[str, str]]:
    """What every release brings anew, as a whole."""
    parts = upgrade.schema_parts()
    first = "\n".join(text for name, text in parts.items() if name != upgrade.LAST_PART)
    yield (
        "postroom_functions",
        _file(
            _lock_sql(upgrade.TABLES),
            f"SET check_function_bodies = off;\n{first}\nRESET check_function_bodies;\n",
        ),
    )
    stale = None if deliver_newer_than == "all" else deliver_newer_than
    yield "postroom_settle_old_rows", _file(_SETTLE_SQL.replace(":stale", literal(stale)))
    yield (
        "postroom_callers",
        _file(
            _lock_sql(upgrade.TABLES),
            f"{parts[upgrade.LAST_PART]}\nSELECT postroom.grant_access({literal(app_role)});\n",
        ),
    )
    yield "postroom_done", _file(f"{upgrade.LAST_STEPS}\n{upgrade.done_sql()}")


def _migration_sql(migration: Migration) -> str:
    text = migration.text
    if migration.outside_transaction:
        text = text.replace(" CONCURRENTLY", "")
    locked = [table for table in upgrade.TABLES if table in text]
    mode = "SHARE" if migration.outside_transaction else "ACCESS EXCLUSIVE"
    lock = f"{_lock_sql(locked, mode)}\n" if locked else ""
    return f"{lock}{text}\n{upgrade.record_sql(migration)}"


def _file(*texts: str) -> str:
    return "SET search_path = '';\n" + "\n".join(texts) + "\nRESET search_path;\n"


def _lock_sql(tables: Sequence[str], mode: str = "ACCESS EXCLUSIVE") -> str:
    """
    Take the locks of those tables that are there: all of them in a short time, or none and again later.

    Whoever comes after a statement that waits for a lock waits too. db push does not try again, so this does.
    """
    timeouts = [upgrade.FIRST_LOCK_TIMEOUT_MS, *[upgrade.FURTHER_LOCK_TIMEOUT_MS] * len(tables)]
    takes = "\n".join(
        f"            PERFORM set_config('lock_timeout', '{timeout}ms', true);\n"
        f"            IF to_regclass('{table}') IS NOT NULL THEN LOCK TABLE {table} IN {mode} MODE; END IF;"
        for timeout, table in zip(timeouts, tables, strict=False)
    )
    return _LOCK_SQL.format(takes=takes, tries=LOCK_TRIES, timeout_ms=upgrade.LOCK_TIMEOUT_MS)


_LOCK_SQL = """\
DO $$
BEGIN
    FOR v_try IN 1..{tries} LOOP
        BEGIN
{takes}
            PERFORM set_config('lock_timeout', '{timeout_ms}ms', true);
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            IF v_try = {tries} THEN
                RAISE;
            END IF;
        END;
        -- Others get their turn between two tries.
        PERFORM pg_sleep(0.2 + random() * 0.8);
    END LOOP;
END;
$$;
"""

_SETTLE_SQL = """\
DO $$
DECLARE
    v_table  regclass;
    v_last   uuid;
    v_passes integer;
    v_stale  interval := postroom.span(:stale);
BEGIN
    FOREACH v_table IN ARRAY ARRAY['public.email_queue', 'public.webhook_retry_queue']::regclass[] LOOP
        CONTINUE WHEN EXISTS (
            SELECT FROM postroom.repeatables AS done WHERE done.name = 'rows of public.' || (
                SELECT class.relname FROM pg_catalog.pg_class AS class WHERE class.oid = v_table
            )
        );
        v_passes := 0;
        -- A row that somebody has locked needs another pass.
        WHILE postroom.has_old_rows(v_table, v_stale) LOOP
            v_last := NULL;
            LOOP
                SELECT batch.last_id INTO v_last
                FROM postroom.settle_old_rows(v_table, v_stale, v_last, 500) AS batch;
                EXIT WHEN v_last IS NULL;
            END LOOP;
            v_passes := v_passes + 1;
            IF v_passes > 300 THEN
                RAISE EXCEPTION '% has rows that stay locked: apply this migration again', v_table
                USING ERRCODE = 'lock_not_available';
            END IF;
            PERFORM pg_sleep(CASE WHEN v_passes > 1 THEN 0.1 ELSE 0 END);
        END LOOP;
    END LOOP;
END;
$$;
"""
