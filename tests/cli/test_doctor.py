"""postroom doctor: what is wrong with a set-up, and what to do. Each check is proved beside its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import NOWHERE, Cli


def _levels(cli: Cli) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in cli("doctor", "--json").json:
        found.setdefault(finding["check"], []).append(finding["level"])
    return found


def test_it_says_what_is_well_what_is_not_and_what_to_do(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests' own server runs without fsync, which is a problem: exit 1."""
    monkeypatch.setenv("POSTROOM_TRANSPORT", f"maildir:{tmp_path / 'mail'}")
    answer = cli("doctor")
    assert answer.code == 1
    assert answer.err == ""
    lines = answer.out.splitlines()
    assert "ok       schema: up to date" in lines
    assert any(line.startswith("problem  durability: ") for line in lines)
    assert any(line.startswith("         → ") for line in lines)
    problems = sum(line.startswith("problem  ") for line in lines)
    assert lines[-1].startswith(f"{problems} problem")


def test_json_has_the_findings_for_programs(cli: Cli) -> None:
    """Level, check, what was found, advice."""
    found = cli("doctor", "--json").json
    assert found[0].keys() == {"level", "check", "found", "advice"}


def test_a_database_that_is_away_is_a_finding_and_the_rest_is_looked_at(bare_cli: Cli) -> None:
    """Exit 1; no password in what it says."""
    answer = bare_cli("doctor")
    assert answer.code == 1
    assert "problem  database: database nothing at 127.0.0.1:1: " in answer.out
    assert "transport: " in answer.out
    assert NOWHERE not in answer.out + answer.err
    assert "secret-word" not in answer.out + answer.err


def test_a_wrong_transport_and_an_unknown_variable_are_found(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spelling mistakes are the set-up's most common illness."""
    monkeypatch.setenv("POSTROOM_TRANSPORT", "ftp://example.com")
    monkeypatch.setenv("POSTROOM_FORM", "shop@example.com")
    out = cli("doctor").out
    assert "POSTROOM_FORM is no setting" in out
    assert "did you mean POSTROOM_FROM?" in out
    assert "problem  transport: POSTROOM_TRANSPORT begins with no known scheme" in out


def test_a_database_that_is_not_migrated_is_a_problem(
    bare_cli: Cli, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the advice is the command."""
    monkeypatch.setenv("POSTROOM_DATABASE_URL", empty_database_url)
    assert _levels(bare_cli)["schema"] == ["problem"]
    assert "→ run `postroom migrate`" in bare_cli("doctor").out


def test_who_else_may_create_in_schema_public_is_named(
    cli: Cli, db: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """His functions could be run by whoever uses the database; nobody may by default."""
    assert "schema public" not in cli("doctor").out
    db.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    out = cli("doctor").out
    assert "warning  schema public: PUBLIC may create in it" in out
    assert "REVOKE CREATE ON SCHEMA public FROM PUBLIC" in out
