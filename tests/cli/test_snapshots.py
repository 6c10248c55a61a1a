"""Who holds an old snapshot is named, by everything that says how the house is, and without what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from postroom import Room
from postroom.database import snapshots
from postroom.database.connect import Database
from postroom.database.snapshots import SnapshotHolder, read_snapshot_holders
from tests.cli.conftest import Cli
from tests.http.conftest import serving, settings_of
from tests.support.postgres import SETTINGS, running_server

SECRET = "sk_live_of_somebody"


@pytest.fixture
def forgotten(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A session that has read something and gone for lunch; the process id of its backend."""
    monkeypatch.setattr(snapshots, "OLD_SNAPSHOT_S", 0.0)
    with psycopg.connect(database_url, application_name="reports") as connection:
        connection.execute("SET default_transaction_isolation = 'repeatable read'")
        connection.commit()
        connection.execute(f"  select '{SECRET}'")
        yield connection.info.backend_pid


async def test_a_session_is_named_with_what_it_does_and_not_with_what_it_says(
    database_url: str, forgotten: int
) -> None:
    """Process, user, application, state, the first word of its statement, age, and how to end it."""
    database = await Database.open(database_url)
    (holder,) = await read_snapshot_holders(database)
    assert (holder.kind, holder.pid, holder.user) == ("session", forgotten, "postgres")
    assert (holder.application, holder.state, holder.command) == ("reports", "idle in transaction", "SELECT")
    assert holder.age_s is not None
    assert holder.advice == f"SELECT pg_terminate_backend({forgotten})"
    assert str(holder).startswith(
        f"process {forgotten} (postgres with reports), idle in transaction, SELECT, for "
    )
    assert SECRET not in repr(holder) + str(holder)
    assert await read_snapshot_holders(database, older_than_s=3600) == []
    await database.close()


async def test_a_prepared_transaction_is_named() -> None:
    """It outlives its session and a restart."""
    with running_server(settings=SETTINGS + "max_prepared_transactions = 2\n") as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("BEGIN")
            connection.execute("CREATE TABLE kept (id integer)")
            connection.execute("PREPARE TRANSACTION 'left behind'")
        database = await Database.open(server.url)
        (holder,) = await read_snapshot_holders(database, older_than_s=0)
        await database.close()
        assert (holder.kind, holder.name, holder.user) == ("prepared transaction", "left behind", "postgres")
        assert str(holder).startswith("the prepared transaction left behind, for ")
        assert holder.advice == "ROLLBACK PREPARED 'left behind'"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("ROLLBACK PREPARED 'left behind'")


def test_a_holder_without_an_age_is_told_by_its_transactions() -> None:
    """A slot's snapshot has no time, only a distance."""
    slot = SnapshotHolder(
        kind="replication slot",
        name="mirror",
        pid=None,
        user=None,
        application=None,
        state=None,
        command=None,
        age_s=None,
        transactions=2_000_000,
        advice="drop it",
    )
    assert str(slot) == "the replication slot mirror, for 2,000,000 transactions"


def test_doctor_and_status_name_it(cli: Cli, forgotten: int) -> None:
    """doctor warns and says what to do; status shows it, and its JSON has every part."""
    found = [finding for finding in cli("doctor", "--json").json if finding["check"] == "open transaction"]
    assert [finding["level"] for finding in found] == ["warning"]
    assert f"process {forgotten} (postgres with reports)" in found[0]["found"]
    assert f"pg_terminate_backend({forgotten})" in found[0]["advice"]
    status = cli.ok("status")
    assert f"process {forgotten} (postgres with reports)" in " ".join(status.split())
    oldest = cli("status", "--json").json["oldest_snapshot"]
    assert (oldest["pid"], oldest["application"], oldest["command"]) == (forgotten, "reports", "SELECT")
    assert SECRET not in status + str(oldest) + str(found)


def test_status_names_nobody_where_there_is_none(cli: Cli) -> None:
    """null, for programs."""
    assert cli("status", "--json").json["oldest_snapshot"] is None


async def test_readyz_tells_everybody_no_more_than_process_and_age(
    database_url: str, tmp_path: Path, forgotten: int
) -> None:
    """It is ready all the same; no user, no application."""
    async with Room(**settings_of(database_url, tmp_path)) as room, serving(room) as served:
        answer = await served.client.get("/readyz")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["oldest_snapshot"]["pid"]) == ("ready", forgotten)
    assert body["oldest_snapshot"].keys() == {"kind", "pid", "age_s"}
