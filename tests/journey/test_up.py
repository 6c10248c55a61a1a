"""`postroom up` on a database of its own: the first mail, a kill of everything, an end without a rest."""

from __future__ import annotations

import mailbox
import os
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from tests.journey.mails import parsed
from tests.journey.programs import Programs
from tests.support.waiting import until_now

FIVE_MORE = """
    INSERT INTO email_queue (to_email, subject, html)
    SELECT 'you@example.com', 'mail ' || n, '<p>Hi</p>' FROM generate_series(1, 5) AS n
"""


@pytest.fixture
def alone(data_dir: Path) -> Programs:
    """postroom's programs without any setting but a folder and a free port."""
    return Programs(
        data_dir.parent,
        {"POSTROOM_DATA_DIR": str(data_dir), "POSTROOM_PORT": "0", "POSTROOM_LOG": "json"},
    )


@pytest.mark.timeout(180)
def test_mails_outlive_a_kill_of_everything(alone: Programs, data_dir: Path) -> None:
    """
    A fresh folder; the first mail is followed to its end; five wait for a limit when all processes die.

    The next `up` finds the rows, delivers each once, and leaves no process behind when it ends.
    """
    up = alone.start("up")
    try:
        up.ready()
        first = alone.run(
            "send", "--to", "you@example.com", "--subject", "Hi", "--html", "<p>Hi</p>", "--wait"
        )
        assert (first.returncode, first.stderr[:5]) == (0, "sent:"), first.stderr
        assert _filed(data_dir) == {UUID(first.stdout.strip()): "Hi"}
        _succeeds(alone, "settings", "set", "email.limit.global", "1/1h")
        _succeeds(alone, "psql", "-c", FIVE_MORE)
    finally:
        _kill_all(data_dir)
        up.kill()
    assert len(_filed(data_dir)) == 1

    with alone.running("up") as again:
        again.ready()
        _succeeds(alone, "settings", "set", "email.limit.global", "off")
        until_now(lambda: len(_filed(data_dir)) == 6)
        assert set(_filed(data_dir).values()) == {"Hi", *(f"mail {n}" for n in range(1, 6))}
        counts = "SELECT status, attempts, error_count, count(*) FROM email_queue GROUP BY 1, 2, 3"
        until_now(lambda: _succeeds(alone, "psql", "-c", counts).split()[-4:] == ["sent", "1", "0", "6"])
    until_now(lambda: _processes_of(data_dir) == [])


def _succeeds(programs: Programs, *arguments: str) -> str:
    ended = programs.run(*arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def _filed(data_dir: Path) -> dict[UUID, str]:
    """The mails of the maildir: id and subject; fails where one lies there twice."""
    folder = data_dir / "mail"
    if not folder.exists():
        return {}
    found: dict[UUID, str] = {}
    for message in mailbox.Maildir(folder, create=False):
        mail = parsed(message.as_bytes())
        email_id = UUID(str(mail["Message-ID"]).strip("<>").split("@")[0])
        assert email_id not in found
        found[email_id] = str(mail["Subject"])
    return found


def _kill_all(data_dir: Path) -> None:
    """kill -9 of all that runs for a data folder: postroom, what watches, PostgreSQL and its children."""
    while processes := _processes_of(data_dir):
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(processes, timeout=10)


def _processes_of(data_dir: Path) -> list[psutil.Process]:
    """Those that were started for that folder, by their environment, their folder or their arguments."""
    return [each for each in psutil.process_iter() if each.pid != os.getpid() and _belongs_to(each, data_dir)]


def _belongs_to(process: psutil.Process, data_dir: Path) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.environ().get("POSTROOM_DATA_DIR") == str(data_dir):
            return True
        return any(str(data_dir) in word for word in (process.cwd(), *process.cmdline()))
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False
