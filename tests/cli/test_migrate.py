"""postroom migrate: what the command says and answers. What it does to a database is proved elsewhere."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def empty_cli(bare_cli: Cli, empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands over an empty database."""
    monkeypatch.setenv("POSTROOM_DATABASE_URL", empty_database_url)
    return bare_cli


def test_check_is_exit_1_where_the_database_is_behind_and_changes_nothing(
    empty_cli: Cli, empty_database_url: str
) -> None:
    """It prints what there is to do, and the command that does it; after that it is exit 0."""
    behind = empty_cli("migrate", "--check")
    assert behind.code == 1
    assert "0001" in behind.out
    assert "run `postroom migrate`" in behind.err
    with psycopg.connect(empty_database_url) as db:
        assert db.execute("SELECT to_regclass('public.email_queue')").fetchone() == (None,)
    assert "up to date" in empty_cli.ok("migrate")
    assert empty_cli.ok("migrate", "--check") == "up to date\n"


def test_an_app_role_may_queue_and_read(cli: Cli, database_url: str) -> None:
    """Twice is once; a role that is not there is named."""
    answer = cli("migrate", "--app-role", "no_such_role")
    assert answer.code == 1
    assert "no_such_role" in answer.err
    assert "Traceback" not in answer.err


def test_export_writes_files_and_prints_their_names(bare_cli: Cli, tmp_path: Path) -> None:
    """It needs no database."""
    written = bare_cli.ok("migrate", "--export", "supabase").splitlines()
    assert written
    for name in written:
        assert Path(name).is_relative_to("supabase/migrations") or Path(name).is_relative_to(
            "supabase/functions"
        )
        assert (tmp_path / name).read_text().strip()


def test_an_export_to_where_nothing_can_be_written_is_one_line(bare_cli: Cli, tmp_path: Path) -> None:
    """Exit 1, and the file is named."""
    (tmp_path / "taken").write_text("")
    answer = bare_cli("migrate", "--export", "taken")
    assert answer.code == 1
    assert "taken" in answer.error


def test_who_has_kept_everything_is_told_what_cleanup_will_delete(cli: Cli, database_url: str) -> None:
    """Before the first night, with the command that keeps it; nothing is said where nothing is old."""
    assert cli.ok("migrate").splitlines()[-1].startswith("up to date")
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(
            """
            INSERT INTO email_queue (to_email, subject, html, status, sent_at)
            VALUES ('ada@example.com', 's', 'h', 'sent', '2020-01-01')
            """
        )
    assert cli.ok("migrate").splitlines()[-1] == (
        "email_queue has sent rows of more than 30d: cleanup deletes them each night; "
        "to keep them: postroom settings set retention.sent off"
    )
    cli.ok("settings", "set", "retention.sent", "off")
    assert cli.ok("migrate").splitlines()[-1].startswith("up to date")
