"""A PgBouncer in transaction mode before a server of the tests."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from postroom.database.embedded.account import account_for
from tests.support.postgres import PostgresServer, free_port, temporary_folder
from tests.support.waiting import until_now


@contextmanager
def running_pgbouncer(server: PostgresServer, *, pool_size: int = 2) -> Iterator[int]:
    """
    A pooler while the block runs; gives its port.

    Args:
        pool_size: Its connections to the server: few, so that clients really share them.
    """
    port = free_port()
    ini = (
        "[databases]\n"
        f"* = host=127.0.0.1 port={server.port}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = trust\nauth_file = users\n"
        f"pool_mode = transaction\ndefault_pool_size = {pool_size}\nmax_client_conn = 100\n"
    )
    with started(ini, users='"postgres" ""\n') as failed:
        until_now(lambda: _answers(port) or bool(failed()))
        assert not failed()
        yield port


@contextmanager
def started(ini: str, *, users: str) -> Iterator[Callable[[], str]]:
    """
    A PgBouncer of this file while the block runs; gives why it has ended, nothing where it runs.

    Args:
        users: What the file `users` beside it has.
    """
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    if not Path(program).exists():
        pytest.skip("needs Debian's package pgbouncer")
    with temporary_folder() as folder:
        account = account_for(folder / "not-there")
        if account.is_ours and account.uid == 0:
            raise AssertionError("PgBouncer refuses to run as root")
        (folder / "users").write_text(users)
        (folder / "pgbouncer.ini").write_text(ini)
        log_file = folder / "log"
        with log_file.open("wb") as log:
            options = {**account.popen_options(), "cwd": folder}
            process = subprocess.Popen([program, "pgbouncer.ini"], stdout=log, stderr=log, **options)
        try:
            yield lambda: "" if process.poll() is None else f"it has ended: {log_file.read_text()}"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)


def _answers(port: int) -> bool:
    try:
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
