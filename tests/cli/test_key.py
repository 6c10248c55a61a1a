"""postroom key new: a key of the HTTP API."""

from __future__ import annotations

import hashlib
from typing import Any

import psycopg

from tests.cli.conftest import Cli


def test_a_new_key_is_printed_once_and_kept_as_a_hash(
    cli: Cli, db: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """The key alone on stdout; that it is not shown again, on stderr."""
    answer = cli("key", "new")
    assert answer.code == 0
    assert "the only time" in answer.err
    key = answer.out.removesuffix("\n")
    assert len(key) > 32
    kept = db.execute("SELECT key_hash FROM postroom.service_keys").fetchall()
    assert kept == [(hashlib.sha256(key.encode()).digest(),)]
    assert cli("key", "new").out != answer.out


def test_keys_have_names_and_roles_and_are_revoked_by_name_or_id(
    cli: Cli, db: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """All of it is in the audit trail; the key itself is nowhere."""
    made = cli("key", "new", "--role", "viewer", "--name", "support")
    assert "it opens the dashboard's pages" in made.err
    cli("key", "new")
    keys = cli("key", "list", "--json").json
    assert [(key["name"], key["role"]) for key in keys] == [("support", "viewer"), (None, "operator")]
    assert "support" in cli.ok("key", "list")
    assert cli.ok("key", "revoke", "support") == "support is revoked\n"
    assert cli.ok("key", "revoke", keys[1]["id"]) == f"key {keys[1]['id']} is revoked\n"
    assert cli("key", "list", "--json").json == []
    trail = cli("audit", "--json").json
    assert [entry["action"] for entry in trail] == ["key.revoke", "key.revoke", "key.create", "key.create"]
    assert trail[-1]["about"] == {"key": "support", "id": keys[0]["id"], "role": "viewer"}
    assert made.out.strip() not in str(trail)


def test_a_name_is_one_keys_and_can_be_read(cli: Cli) -> None:
    """Else a line that says so."""
    cli("key", "new", "--name", "support")
    assert "there is a key 'support' already" in cli("key", "new", "--name", "support").error
    for name in ("", " ", "a\nb", "x" * 101):
        assert "1 to 100 characters" in cli("key", "new", "--name", name).error
    assert "there is no key 'nobody'" in cli("key", "revoke", "nobody").error
