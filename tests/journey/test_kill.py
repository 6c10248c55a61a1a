"""Workers die by kill -9, again and again; the receiver's ledger counts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.journey.ledger import running_ledger


def start_worker(database_url: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """A worker process as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "postroom", "worker", "--queues", "email"],
        env={
            **os.environ,
            "POSTROOM_DATABASE_URL": database_url,
            "POSTROOM_TRANSPORT": f"smtp://127.0.0.1:{port}",
            "POSTROOM_FROM": "shop@example.com",
        },
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "worker.log").open("ab"),
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("count", [3_000])
def test_workers_that_are_killed_again_and_again_lose_no_mail(
    database_url: str, tmp_path: Path, count: int
) -> None:
    """
    3,000 mails, two workers, a kill -9 about every 0.7 s until all is settled.

    Lost: none. A mail that went out twice has the same Message-ID and the same bytes.
    """
    with running_ledger(reply_delay_s=0.01) as ledger, psycopg.connect(database_url, autocommit=True) as db:
        for key, value in {
            "email.limit.global": "off",
            "email.limit.recipient": "off",
            "lease": "1s",
            "email.backoff": "100ms",
        }.items():
            db.execute("SELECT postroom.set_setting(%s, %s)", (key, value))
        db.execute(
            """
            INSERT INTO email_queue (to_email, subject, html)
            SELECT 'u' || n || '@example.com', 'subject ' || n, '<p>' || n || '</p>'
            FROM generate_series(1, %s) AS n
            """,
            (count,),
        )
        workers = [start_worker(database_url, ledger.port, tmp_path) for _ in range(2)]
        kills, ends = 0, time.monotonic() + 180
        try:
            while _waiting(db) and time.monotonic() < ends:
                time.sleep(random.uniform(0.5, 0.9))
                if kills < 12 or kills % 4 == 0:  # then let them get on
                    victim = random.randrange(2)
                    workers[victim].send_signal(signal.SIGKILL)
                    workers[victim].wait()
                    workers[victim] = start_worker(database_url, ledger.port, tmp_path)
                kills += 1
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        rows = db.execute("SELECT id::text, status, last_error FROM email_queue").fetchall()
        copies = ledger.by_message_id()
    settled = {row[0] for row in rows if row[1] == "sent"}
    poisoned = {row[0] for row in rows if row[1] == "dead_letter" and row[2].startswith("poison")}
    delivered = {message_id.strip("<>").split("@")[0] for message_id in copies}
    assert len(rows) == count == len(settled) + len(poisoned), (tmp_path / "worker.log").read_text()[-3000:]
    assert settled <= delivered, "a mail that is marked as sent never arrived"
    assert kills >= 3, "the workers were through before they could be killed"
    for mails in copies.values():
        assert len({mail.content for mail in mails}) == 1


def _waiting(db: psycopg.Connection[tuple[object, ...]]) -> int:
    row = db.execute("SELECT count(*) FROM email_queue WHERE status IN ('pending', 'processing')").fetchone()
    assert row is not None
    return int(str(row[0]))
