"""A worker process that is told to end, and one whose disk is full."""

from __future__ import annotations

import mailbox
import os
import resource
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.journey.ledger import running_ledger
from tests.journey.programs import Program, Programs
from tests.support.postgres import temporary_folder
from tests.support.waiting import until_now

Database = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """The database, as its owner."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def test_a_worker_that_is_told_to_end_loses_nothing_and_sends_nothing_twice(
    programs: Programs, db: Database
) -> None:
    """
    SIGTERM in the middle of 500 mails, twice: what was in flight is finished and settled, exit 0.

    What the receiver has is what the table calls sent; nothing else was attempted.
    """
    with running_ledger(reply_delay_s=0.01) as ledger:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        _queue(db, 500)
        for _ in range(2):
            enough = len(ledger.delivered) + 50
            worker = programs.start("worker")
            try:
                until_now(lambda at_least=enough: len(ledger.delivered) >= at_least)  # type: ignore[misc]
                assert worker.end() == 0
            finally:
                worker.kill()
            assert len(ledger.delivered) < 500, "it was through before it could be told"
            assert _counts(db) == {
                ("sent", 1, 0): len(ledger.delivered),
                ("pending", 0, 0): 500 - len(ledger.delivered),
            }
        assert programs.run("worker", "--drain").returncode == 0
        assert _counts(db) == {("sent", 1, 0): 500}
        assert len(ledger.by_message_id()) == len(ledger.delivered) == 500


def test_a_full_disk_loses_no_mail_and_costs_none_an_attempt(programs: Programs, db: Database) -> None:
    """The mails wait and say why; when there is room again each is filed once, whole."""
    with _small_disk() as disk:
        programs.settings["POSTROOM_TRANSPORT"] = f"maildir:{disk.folder}/mail"
        disk.fill()
        with programs.running("worker") as worker:
            disk.fill_for(worker)
            _queue(db, 10, html="<p>0123456789</p>\n" * 20_000)
            until_now(lambda: any("maildir" in str(error) for error in _errors(db)))
            assert _counts(db).keys() <= {("pending", 0, 0), ("processing", 0, 0)}
            disk.free(worker)
            until_now(lambda: _counts(db) == {("sent", 1, 0): 10})
        filed = [message.as_bytes() for message in mailbox.Maildir(f"{disk.folder}/mail", create=False)]
        assert len(filed) == 10
        assert all(mail.count(b"0123456789") == 40_000 for mail in filed), "a mail was cut off"
        assert list(Path(disk.folder, "mail/tmp").iterdir()) == []


def test_a_log_that_cannot_be_written_stops_no_mail(programs: Programs, db: Database) -> None:
    """/dev/full is a disk without room: what a worker's stderr goes to in the end."""
    with running_ledger() as ledger:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        _queue(db, 20)
        ended = programs.run("worker", "--drain", log_file=Path("/dev/full"))
        assert ended.returncode == 0
        assert len(ledger.by_message_id()) == len(ledger.delivered) == 20


class _SmallDisk:
    """A disk that can be filled, by a tmpfs of its own where root may mount one."""

    def __init__(self, folder: Path, is_mounted: bool) -> None:
        self.folder = folder
        self._is_mounted = is_mounted

    def fill(self) -> None:
        """Leave no room."""
        if self._is_mounted:
            with open(self.folder / "ballast", "wb", buffering=0) as ballast:
                try:
                    while ballast.write(bytes(65536)):
                        pass
                except OSError:
                    pass

    def fill_for(self, worker: Program) -> None:
        """The same where nothing could be mounted: the worker's own files may not grow."""
        if not self._is_mounted:
            worker.working()
            resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    def free(self, worker: Program) -> None:
        """Room again."""
        if self._is_mounted:
            (self.folder / "ballast").unlink()
        else:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def _small_disk() -> Iterator[_SmallDisk]:
    with temporary_folder() as parent:
        folder = parent / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
        is_mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        try:
            yield _SmallDisk(folder, is_mounted)
        finally:
            if is_mounted:
                subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _queue(db: Database, count: int, html: str = "<p>Hi</p>") -> None:
    db.execute(
        """
        INSERT INTO email_queue (to_email, subject, html)
        SELECT 'u' || n || '@example.com', 'subject ' || n, %s
        FROM generate_series(1, %s) AS n
        """,
        (html, count),
    )


def _counts(db: Database) -> Counter[tuple[object, ...]]:
    """Rows by status, attempts and error_count."""
    return Counter(db.execute("SELECT status, attempts, error_count FROM email_queue").fetchall())


def _errors(db: Database) -> list[object]:
    return [row[0] for row in db.execute("SELECT last_error FROM email_queue WHERE last_error IS NOT NULL")]
