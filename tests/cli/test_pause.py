"""postroom pause and resume: a queue or a transport rests until a person says otherwise."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli, insert_email
from tests.journey.ledger import running_ledger
from tests.journey.programs import Programs
from tests.support.waiting import until_now

Db = psycopg.Connection[tuple[Any, ...]]


def test_a_queue_is_paused_and_resumed_with_who_when_and_why(cli: Cli, db: Db) -> None:
    """Each is in the audit trail; a second resume changes nothing and says so."""
    out = cli.ok("pause", "emails", "--reason", "the provider moves", "--for", "2h")
    said, how = out.splitlines()
    assert said.startswith("queue email is paused by ")
    assert said.endswith("because: the provider moves")
    assert " until " in said
    assert how == "it goes on by: postroom resume emails"
    assert cli.ok("resume", "emails").startswith("queue email goes on; it was paused by ")
    assert cli.ok("resume", "emails") == "queue email is not paused\n"
    assert db.execute("SELECT count(*) FROM postroom.pauses").fetchall() == [(0,)]
    trail = cli("audit", "--json").json
    assert [(entry["action"], entry["about"].get("queue")) for entry in trail] == [
        ("queue.resume", "email"),
        ("queue.pause", "email"),
    ]
    assert trail[1]["note"] == "the provider moves"
    assert "until" in trail[1]["about"]


def test_a_second_pause_says_anew_by_whom_and_why_and_keeps_since_when(cli: Cli, db: Db) -> None:
    """Until now an end, now none."""
    first = cli("pause", "webhooks", "--for", "1h", "--json").json
    again = cli("pause", "webhooks", "--reason", "longer", "--json").json
    assert (again["since"], again["until"], again["reason"]) == (first["since"], None, "longer")
    assert (again["kind"], again["name"], first["until"] is None) == ("queue", "webhook", False)


def test_a_transport_is_paused_by_its_name_without_secrets(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known are those of POSTROOM_TRANSPORT, whoever else has used some."""
    monkeypatch.setenv("POSTROOM_TRANSPORT", "smtp://u:secret-word@relay.example.com:25 resend://key-word")
    found = cli("pause", "transport", "smtp://u:secret-word@relay.example.com:25", "--json").json
    assert (found["kind"], found["name"]) == ("transport", "smtp://relay.example.com:25")
    assert "it goes on by: postroom resume transport resend" in cli.ok("pause", "transport", "resend")
    answer = cli("pause", "transport", "smtp://u:secret-word@other.example.com")
    assert answer.code == 2
    assert answer.error.endswith("known are: smtp://relay.example.com:25, resend")
    assert "secret-word" not in answer.error
    assert cli("resume", "transport", "resend", "--json").json == {
        "kind": "transport",
        "name": "resend",
        "was_paused": True,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mails",), "write emails, webhooks, or transport with its name"),
        (("transport",), "name a transport; known are: maildir:"),
        (("emails", "resend"), "takes no name"),
        (("emails", "--for", "soon"), "--for: 'soon' is no span of time"),
        (("emails", "--for", "0s"), "a span of 1s to 366d"),
        (("emails", "--for", "999999999d"), "a span of 1s to 366d"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_paused_is_told_what_can(
    cli: Cli, db: Db, arguments: tuple[str, ...], said: str
) -> None:
    """Exit 2, and nothing is paused."""
    answer = cli("pause", *arguments)
    assert answer.code == 2
    assert said in answer.error
    assert db.execute("SELECT count(*) FROM postroom.pauses").fetchall() == [(0,)]


def test_status_explain_and_doctor_say_what_is_paused_by_whom_and_why(cli: Cli, db: Db) -> None:
    """With the command that ends it; what waits for another reason says both."""
    due = insert_email(db)
    later = insert_email(db, next_retry_at="2999-01-01")
    cli.ok("pause", "emails", "--reason", "the provider moves")
    status = cli.ok("status")
    assert "1 for their queue to be resumed" in status
    assert "queue email is paused by " in status
    assert "it goes on by: postroom resume emails" in status
    told = cli("status", "--json").json
    assert told["queues"]["email"]["waiting"] == {"paused": 1, "send_at": 1}
    assert [(one["kind"], one["name"], one["reason"]) for one in told["paused"]] == [
        ("queue", "email", "the provider moves")
    ]
    found = cli("explain", due, "--json").json
    assert found["reason"] == "paused"
    assert found["why"][0].startswith("Its queue is paused by ")
    assert found["why"][0].endswith("because: the provider moves.")
    assert found["why"][1] == "It goes on by: postroom resume emails"
    also = cli("explain", later, "--json").json
    assert also["reason"] == "send_at"
    assert any(line.startswith("Its queue is paused by ") for line in also["why"])
    doctor = {finding["check"]: finding for finding in cli("doctor", "--json").json}
    assert doctor["paused"]["level"] == "warning"
    assert doctor["paused"]["found"].startswith("queue email is paused by ")


def test_explain_names_who_paused_all_transports_of_a_mail(cli: Cli, db: Db) -> None:
    """One of two is no reason to wait."""
    row_id = insert_email(db, due_at="2020-01-01")
    db.execute(
        """
        INSERT INTO postroom.workers (id, queue, host, pid, version)
        VALUES (gen_random_uuid(), 'email', 'h', 1, '0')
        """
    )
    name = cli("status", "--json").json and cli("pause", "transport", "maildir", "--json").json["name"]
    found = cli("explain", row_id, "--json").json
    assert found["reason"] == "transport"
    assert found["why"][0].startswith(f"Its transport {name} is paused by ")
    assert "It goes on by: postroom resume transport maildir:" in found["why"][0]


def test_drain_ends_and_says_that_the_queue_is_paused(cli: Cli, programs: Programs, db: Db) -> None:
    """Exit 1, as where a transport is down; the other queue is drained."""
    insert_email(db)
    db.execute("INSERT INTO webhook_retry_queue (webhook_type, payload) VALUES ('none', '{}')")
    cli.ok("pause", "webhooks")
    with running_ledger() as ledger:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        done = programs.run("worker", "--drain")
        assert len(ledger.delivered) == 1
    assert done.returncode == 1
    assert "1 e-mail sent" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(
        "postroom: what is due stays in the queue, since queue webhook is paused by "
    )
    assert db.execute("SELECT status FROM webhook_retry_queue").fetchall() == [("pending",)]


def test_a_worker_hears_of_a_pause_and_of_its_end_without_a_restart(
    cli: Cli, programs: Programs, db: Db
) -> None:
    """Within seconds; its log says both."""
    with running_ledger() as ledger:
        programs.settings["POSTROOM_TRANSPORT"] = f"smtp://127.0.0.1:{ledger.port}"
        worker = programs.start("worker", "--queues", "email")
        try:
            insert_email(db)
            until_now(lambda: len(ledger.delivered) == 1)
            cli.ok("pause", "emails")
            until_now(lambda: '"queue.paused"' in worker.log)
            insert_email(db)
            cli.ok("resume", "emails")
            until_now(lambda: len(ledger.delivered) == 2)
            until_now(lambda: '"queue.resumed"' in worker.log)
        finally:
            worker.kill()
