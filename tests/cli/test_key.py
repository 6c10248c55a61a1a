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
