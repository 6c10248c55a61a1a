"""What every test may use: databases on real servers, and an environment without settings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer, running_server, temporary_folder

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server of the whole run; a test that stops or kills one starts its own."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def _migrated_template(postgres_server: PostgresServer) -> str:
    """A migrated database that others are copied from: 45 ms instead of all migrations."""
    from postroom.database.migrate import migrate

    name = postgres_server.create_database()
    asyncio.run(migrate(postgres_server.url_of(name)))
    return name


@pytest.fixture
def database_url(postgres_server: PostgresServer, _migrated_template: str) -> Iterator[str]:
    """A fresh migrated database, as its owner."""
    name = postgres_server.create_database(template=_migrated_template)
    yield postgres_server.url_of(name)
    postgres_server.drop_database(name)


@pytest.fixture
def empty_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh database with nothing in it."""
    name = postgres_server.create_database()
    yield postgres_server.url_of(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def debian15_server() -> Iterator[PostgresServer]:
    """A server of PostgreSQL 15, the oldest that postroom supports."""
    if not (DEBIAN_15 / "initdb").exists():
        pytest.skip("needs Debian's package postgresql-15")
    with running_server(DEBIAN_15) as server:
        yield server


@pytest.fixture
def debian15_url(debian15_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty database on PostgreSQL 15."""
    name = debian15_server.create_database()
    yield debian15_server.url_of(name)
    debian15_server.drop_database(name)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """
    A data folder for an embedded database, not there yet.

    pytest's tmp_path lies below a folder that only its owner may enter: for root, the
    embedded database would then keep its data outside of it.
    """
    with temporary_folder() as folder:
        yield folder / "data"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the person who runs the tests has in the environment changes nothing."""
    for name in list(os.environ):
        if name.startswith("POSTROOM_") and not name.startswith("POSTROOM_TEST_"):
            monkeypatch.delenv(name)
    for name in ("RESEND_API_KEY", "STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET"):
        monkeypatch.delenv(name, raising=False)


SKIPS_ARE_FAILURES = os.environ.get("FORBID_SKIPPED_TESTS") == "1"
"""In CI a skipped test is a failed one: the packages that it needs are installed there."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if SKIPS_ARE_FAILURES and report.skipped:
        reason = call.excinfo.value if call.excinfo else "no reason given"
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI forbids: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if SKIPS_ARE_FAILURES and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped as a whole, which CI forbids"
    return report
