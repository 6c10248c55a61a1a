"""What is started once for all broken programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failpoints.hatchery import Hatchery, running_hatchery
from tests.failpoints.lanes import Bench
from tests.support.postgres import PostgresServer

pytest.register_assert_rewrite(*(f"tests.failpoints.{name}" for name in ("workers", "doors", "schedulers")))


@pytest.fixture(scope="session")
def hatchery() -> Iterator[Hatchery]:
    """Where programs come from."""
    with running_hatchery() as one:
        yield one


@pytest.fixture
def bench(
    postgres_server: PostgresServer, _migrated_template: str, hatchery: Hatchery, tmp_path: Path
) -> Bench:
    """A server, a migrated database to copy, and a folder."""
    return Bench(postgres_server, _migrated_template, hatchery, tmp_path)
