"""Who holds an old snapshot is named, by everything that says how the house is, and without what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from postroom import Room
from postroom.database import snapshots
from postroom.database.connect import Database
from postroom.database.migrate import migrate
from postroom.database.snapshots import SnapshotHolder, read_snapshot_holders
from tests.cli.conftest import Cli
from tests.http.conftest import serving, settings_of
from tests.support.postgres import SETTINGS, PostgresServer, running_server, temporary_folder
from tests.support.waiting import until_now

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


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A migrated server that knows prepared transactions and standbys."""
    with running_server(settings=SETTINGS + "max_prepared_transactions = 2\n") as server:
        asyncio.run(migrate(server.url))
        yield server


def _is_named_by_everybody(
    cli: Cli, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, advice: str
) -> dict[str, Any]:
    """doctor warns and says what to do, status shows it; gives back what /readyz says."""
    monkeypatch.setenv("POSTROOM_DATABASE_URL", url)
    answer = cli("doctor", "--json")
    (found,) = [finding for finding in answer.json if finding["check"] == "open transaction"]
    assert found["level"] == "warning"
    assert said in found["found"]
    assert advice in found["advice"]
    assert said in " ".join(cli.ok("status").split())
    assert cli("status", "--json").json["oldest_snapshot"]["advice"] == advice
    ready = asyncio.run(_readyz(url, folder))
    assert ready["status"] == "ready"
    oldest: dict[str, Any] = ready["oldest_snapshot"]
    return oldest


async def _readyz(url: str, folder: Path) -> dict[str, Any]:
    async with Room(**settings_of(url, folder)) as room, serving(room) as served:
        answer: dict[str, Any] = (await served.client.get("/readyz")).json()
        return answer


def test_a_prepared_transaction_is_named(
    bare_cli: Cli, own_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It outlives its session and a restart."""
    monkeypatch.setattr(snapshots, "OLD_SNAPSHOT_S", 0.0)
    with psycopg.connect(own_server.url, autocommit=True) as connection:
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE kept (id integer)")
        connection.execute("PREPARE TRANSACTION 'left behind'")
        oldest = _is_named_by_everybody(
            *(bare_cli, own_server.url, tmp_path, monkeypatch),
            said="the prepared transaction left behind, for ",
            advice="ROLLBACK PREPARED 'left behind'",
        )
        assert (oldest["kind"], oldest["pid"]) == ("prepared transaction", None)
        assert oldest["age_s"] > 0
        connection.execute("ROLLBACK PREPARED 'left behind'")


STANDBY = """
hot_standby_feedback = on
wal_receiver_status_interval = 1s
"""


def test_a_standby_and_then_the_slot_that_it_leaves_behind_are_named(
    bare_cli: Cli, own_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its queries see is kept here (hot_standby_feedback); by a slot also when it is gone."""
    monkeypatch.setattr(snapshots, "HELD_TRANSACTIONS_MIN", 0)
    with (
        temporary_folder() as folder,
        psycopg.connect(own_server.url, autocommit=True) as primary,
    ):
        standby = own_server.make_standby(folder)
        with (folder / "data" / "postgresql.conf").open("a") as conf:
            conf.write(STANDBY)
        standby.start()
        with psycopg.connect(standby.url) as query:
            query.execute("SELECT count(*) FROM email_queue")  # its snapshot stays open
            query.execute("DECLARE kept CURSOR FOR SELECT * FROM email_queue")

            def is_held(by: str) -> bool:
                primary.execute("SELECT pg_current_xact_id()")
                found = primary.execute(f"SELECT age({by}) FROM {SHOWN_IN[by]}").fetchall()
                return any(age is not None and age > 0 for (age,) in found)

            until_now(lambda: is_held("backend_xmin"))
            oldest = _is_named_by_everybody(
                *(bare_cli, own_server.url, tmp_path, monkeypatch),
                said="the standby walreceiver, for ",
                advice="look for a long query there, or set hot_standby_feedback = off on it",
            )
            assert (oldest["kind"], oldest["age_s"]) == ("standby", None)

            primary.execute("SELECT pg_create_physical_replication_slot('mirror')")
            with psycopg.connect(standby.url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET primary_slot_name = 'mirror'")
                connection.execute("SELECT pg_reload_conf()")
            until_now(lambda: is_held("xmin"))
        standby.stop()

        def is_left() -> bool:
            left = primary.execute("SELECT FROM pg_replication_slots WHERE NOT active").fetchall()
            return len(left) == 1

        until_now(is_left)
        monkeypatch.setattr(snapshots, "HELD_TRANSACTIONS_MIN", 1_000_000)
        oldest = _is_named_by_everybody(
            *(bare_cli, own_server.url, tmp_path, monkeypatch),
            said="the replication slot mirror, for ",
            advice="SELECT pg_drop_replication_slot('mirror'), if nobody needs it any more",
        )
        assert (oldest["kind"], oldest["pid"], oldest["age_s"]) == ("replication slot", None, None)
        primary.execute("SELECT pg_drop_replication_slot('mirror')")


SHOWN_IN = {"backend_xmin": "pg_stat_replication", "xmin": "pg_replication_slots"}


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
