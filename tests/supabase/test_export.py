"""`postroom migrate --export`: what is written into a project's folder, the first time and later."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from postroom.database import migrate as upgrade
from postroom.errors import PostroomError
from postroom.supabase.functions import export_functions
from postroom.supabase.migrations import export_migrations

NOW = datetime(2026, 11, 25, 9, 30, 58, tzinfo=UTC)
FUNCTIONS = ("process-email-queue", "process-webhook-retries", "send-email", "stripe-webhook")


def test_migrations_have_the_names_that_projects_know_and_rising_times(tmp_path: Path) -> None:
    """The tables' first, then the rest by number, the functions last; a second apart."""
    names = [path.name for path in export_migrations(tmp_path, now=NOW)]
    assert names == sorted(names)
    assert names[:4] == [
        "20261125093058_create_shared_primitives.sql",
        "20261125093059_create_email_queue.sql",
        "20261125093100_create_webhook_retry_queue.sql",
        "20261125093101_postroom_0005_indexes.sql",
    ]
    assert [name.partition("_")[2] for name in names[-4:]] == [
        "postroom_functions.sql",
        "postroom_settle_old_rows.sql",
        "postroom_callers.sql",
        "postroom_done.sql",
    ]
    assert not any("CONCURRENTLY" in path.read_text() for path in tmp_path.iterdir())


def test_a_second_export_writes_nothing(tmp_path: Path) -> None:
    """The same release, a year later."""
    assert export_migrations(tmp_path, now=NOW)
    assert export_migrations(tmp_path, now=NOW.replace(year=2027)) == []


def test_a_second_export_writes_nothing_in_a_place_without_utf_8(tmp_path: Path) -> None:
    """Our files are UTF-8, and are read as that: Python's own default is the locale's."""
    export = (
        "from pathlib import Path; from postroom.supabase.migrations import export_migrations; "
        f"export_migrations(Path({str(tmp_path)!r}))"
    )
    strictly = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning", "-c"]
    for _ in range(2):
        subprocess.run([*strictly, export], check=True)


def test_what_a_newer_release_brings_comes_after_all_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its migrations and the functions anew; files that a database has run stay as they are, to the byte."""
    ours = upgrade.migrations()
    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "migrations", lambda: ours[:-1])
        export_migrations(tmp_path, now=NOW)
    (tmp_path / "20270101000000_their_own.sql").write_text("SELECT 1;\n")
    (tmp_path / "99999999999999_no_time.sql").write_text("SELECT 1;\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    written = export_migrations(tmp_path, now=NOW.replace(minute=59))
    assert [path.name for path in written] == [
        f"20270101000001_postroom_{ours[-1].version:04d}_{ours[-1].name}.sql",
        "20270101000002_postroom_functions.sql",
        "20270101000003_postroom_settle_old_rows.sql",
        "20270101000004_postroom_callers.sql",
        "20270101000005_postroom_done.sql",
    ]
    assert {path: path.read_bytes() for path in before} == before
    assert export_migrations(tmp_path, now=NOW) == []


def test_the_exported_files_do_as_the_options_say(tmp_path: Path) -> None:
    """--deliver-newer-than and --app-role hold for them too."""
    text = "".join(
        path.read_text() for path in export_migrations(tmp_path, app_role="shop's", deliver_newer_than="30d")
    )
    assert "postroom.span('30d')" in text
    assert "postroom.grant_access('shop''s')" in text
    later = export_migrations(tmp_path, deliver_newer_than="all")
    assert "postroom.span(NULL)" in "".join(path.read_text() for path in later)


def test_functions_are_written_once_and_anew_where_they_are_ours(tmp_path: Path) -> None:
    """A release that changes one writes that one."""
    written = export_functions(tmp_path)
    assert {each.path.parent.name for each in written} == {*FUNCTIONS, "_shared"}
    assert export_functions(tmp_path) == []
    index = tmp_path / "send-email" / "index.ts"
    index.write_text(index.read_text() + "// an older release\n")
    assert [(each.path, each.kept) for each in export_functions(tmp_path)] == [(index, None)]


def test_a_function_of_the_projects_own_is_kept_beside_ours(tmp_path: Path) -> None:
    """So one can go back; where its place is taken too, nothing is written and both are named."""
    index = tmp_path / "send-email" / "index.ts"
    index.parent.mkdir()
    index.write_text("Deno.serve(theirs);\n")
    (replaced,) = [each for each in export_functions(tmp_path) if each.path == index]
    assert replaced.kept == tmp_path / "send-email" / "index.ts.before-postroom"
    assert replaced.kept.read_text() == "Deno.serve(theirs);\n"
    index.write_text("Deno.serve(theirsAgain);\n")
    (tmp_path / "stripe-webhook" / "index.ts").unlink()
    with pytest.raises(PostroomError, match=r"send-email/index\.ts is no file of postroom's, and"):
        export_functions(tmp_path)
    assert index.read_text() == "Deno.serve(theirsAgain);\n"
    assert not (tmp_path / "stripe-webhook" / "index.ts").exists()
