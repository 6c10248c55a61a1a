"""postroom send: an e-mail from the shell."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.cli.conftest import Cli
from tests.journey.ledger import running_ledger
from tests.journey.programs import COMMAND, Programs

Db = psycopg.Connection[tuple[Any, ...]]
HI = ("--to", "ada@example.com", "--subject", "Hi", "--html", "<p>Hi</p>")


def test_it_prints_the_id_of_a_whole_row(cli: Cli, db: Db) -> None:
    """Nothing else on stdout, so that a script can take it."""
    out = cli.ok(
        *("send", "--to", "ada@example.com", "--subject", "Grüße", "--html", "<p>Hi</p>", "--text", "Hi"),
        *("--from", "Shop <shop@example.com>"),
    )
    row_id = str(UUID(out.removesuffix("\n")))
    row = db.execute(
        "SELECT id::text, to_email, subject, html, text, from_email, status FROM email_queue"
    ).fetchone()
    sender = "Shop <shop@example.com>"
    assert row == (row_id, "ada@example.com", "Grüße", "<p>Hi</p>", "Hi", sender, "pending")


def test_a_text_alone_is_an_e_mail(cli: Cli, db: Db) -> None:
    """--html and/or --text."""
    cli.ok("send", "--to", "ada@example.com", "--subject", "Hi", "--text", "Hi")
    assert db.execute("SELECT html, text FROM email_queue").fetchall() == [("", "Hi")]


def test_files_go_with_it(cli: Cli, db: Db, tmp_path: Path) -> None:
    """--attach FILE, as often as there are files, each under its own name."""
    for name, content in (("Grüße.pdf", b"%PDF"), ("b.csv", b"1,2\n")):
        (tmp_path / name).write_bytes(content)
    cli.ok("send", *HI, "--attach", str(tmp_path / "Grüße.pdf"), "--attach", str(tmp_path / "b.csv"))
    assert db.execute("SELECT attachments FROM email_queue").fetchone() == (
        [{"filename": "Grüße.pdf", "content": "JVBERg=="}, {"filename": "b.csv", "content": "MSwyCg=="}],
    )
    for wrong in (tmp_path / "none.pdf", tmp_path):
        answer = cli("send", *HI, "--attach", str(wrong))
        assert answer.code == 2
        assert f"--attach: {wrong} cannot be read: " in answer.error
    assert db.execute("SELECT count(*) FROM email_queue").fetchone() == (1,)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--to", "nobody"), "to: 'nobody' is not an e-mail address"),
        (("--to", ""), "to: is empty"),
        (("--to", "a@example.com, b@example.com"), "send one e-mail to each"),
        (("--subject", "Hi\r\nBcc: eve@example.com"), "subject: holds a line break"),
        (("--from", "bogus"), "from: 'bogus' is not an e-mail address"),
        (("--html", ""), "html: is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_can_never_be_sent_is_refused_at_the_door(
    cli: Cli, db: Db, changed: tuple[str, str], said: str
) -> None:
    """Exit 2, the option is named, and no row is left."""
    answer = cli("send", *HI, *changed)
    assert answer.code == 2
    assert said in answer.error
    assert db.execute("SELECT count(*) FROM email_queue").fetchone() == (0,)


def test_neither_html_nor_text_is_wrong_usage(bare_cli: Cli) -> None:
    """It is known without a database."""
    answer = bare_cli("send", "--to", "ada@example.com", "--subject", "Hi")
    assert (answer.code, answer.error) == (2, "give the e-mail's --html, its --text, or both")


def test_wait_follows_it_until_it_is_sent(programs: Programs) -> None:
    """Exit 0, the id on stdout, what the server said on stderr."""
    with running_ledger() as ledger:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        with programs.running("worker"):
            done = programs.run("send", *HI, "--wait")
    assert (done.returncode, done.stderr) == (0, "sent: 250 2.0.0 Ok: queued\n")
    assert UUID(done.stdout.strip())
    assert [mail.recipient for mail in ledger.delivered] == ["ada@example.com"]


def test_wait_says_what_it_waits_for_and_fails_where_it_is_not_sent(programs: Programs, db: Db) -> None:
    """No worker runs: that is told. Then the row ends as a dead letter: exit 1, with its last error."""
    with subprocess.Popen(
        [*COMMAND, "send", *HI, "--wait"],
        env=programs._environment(),
        cwd=programs.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        waits = process.stderr.readline()
        db.execute(
            "UPDATE email_queue SET status = 'dead_letter', failed_at = now(), last_error = '550 unknown'"
        )
        out, error = process.communicate(timeout=30)
    assert "no worker runs: start `postroom up` or `postroom worker`" in waits
    assert process.returncode == 1
    assert error == f"postroom: it was not sent: 550 unknown; see `postroom explain {out.strip()}`\n"


def test_ctrl_c_ends_the_waiting_and_leaves_the_e_mail(programs: Programs, db: Db, tmp_path: Path) -> None:
    """Exit 1 and one line; the row is as it was."""
    with subprocess.Popen(
        [*COMMAND, "send", *HI, "--wait"],
        env=programs._environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error.splitlines()[-1] == "postroom: interrupted"
    assert "Traceback" not in error
    assert db.execute("SELECT status FROM email_queue").fetchall() == [("pending",)]
