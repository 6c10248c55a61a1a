"""postroom cron: the jobs, their history, a run by hand."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli, insert_email
from tests.support.stripe_api import KEY, stripe_server_beside

Db = psycopg.Connection[tuple[Any, ...]]


def test_the_list_shows_each_job_and_what_is_not_configured(cli: Cli) -> None:
    """Their schedule, last run and next; and on stderr that no scheduler runs."""
    answer = cli("cron", "list")
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines[1][:8] == ["19", "process-email-queue", "*", "*", "*", "*", "*", "postroom"]
    assert lines[2][:3] == ["20", "process-webhook-retries", "*/5"]
    assert "reconcile is not configured here: set STRIPE_API_KEY" in answer.out
    assert answer.err == "no scheduler runs: start `postroom up` or `postroom scheduler`\n"
    found = cli("cron", "list", "--json").json
    assert [job["jobid"] for job in found["jobs"]] == [19, 20, 1001, 1003]
    assert found["leader"] is None


def test_a_run_by_hand_does_the_job_and_stands_in_the_history(cli: Cli, db: Db, tmp_path: Any) -> None:
    """Also of a job that is off, by its name or its number; and of a person's own SQL."""
    insert_email(db)
    cli.ok("settings", "set", "cron.process-email-queue", "off")
    answer = cli("cron", "run", "process-email-queue")
    assert (answer.code, answer.out) == (0, "1 sent, 0 failed, 0 put back to wait\n")
    assert cli.ok("cron", "run", "20") == "0 processed, 0 failed\n"
    db.execute("SELECT cron.schedule('mine', '@daily', 'SELECT 1')")
    assert cli.ok("cron", "run", "mine") == "1 row\n"
    runs = cli("cron", "history", "--json").json
    assert [(each["job"], each["status"], each["return_message"]) for each in runs] == [
        ("mine", "succeeded", "1 row"),
        ("process-webhook-retries", "succeeded", "0 processed, 0 failed"),
        ("process-email-queue", "succeeded", "1 sent, 0 failed, 0 put back to wait"),
    ]
    assert [line.split()[1] for line in cli.ok("cron", "history", "mine").splitlines()[1:]] == ["mine"]


def test_what_another_user_has_scheduled_does_not_run_with_our_rights(cli: Cli, db: Db) -> None:
    """Who may schedule a job may little else: whoever runs it by hand must not lend him more."""
    with db.transaction():
        db.execute("SET LOCAL ROLE service_role")
        db.execute("SELECT cron.schedule('theirs', '@daily', 'SELECT 1')")
    answer = cli("cron", "run", "theirs")
    assert answer.code == 2
    assert answer.error.startswith("theirs runs with the rights of service_role, who has scheduled it, and ")
    assert cli("cron", "history", "theirs", "--json").json == []


def test_a_run_that_fails_is_exit_1_and_says_why(cli: Cli, db: Db) -> None:
    """One line; the history has it, too."""
    db.execute("SELECT cron.schedule('bad', '@daily', 'SELECT 1 / 0')")
    answer = cli("cron", "run", "bad")
    assert answer.code == 1
    assert answer.error == "bad failed: DivisionByZeroError: division by zero"
    assert cli("cron", "history", "bad", "--json").json[0]["status"] == "failed"


def test_a_job_that_runs_is_not_run_again_at_once(cli: Cli, db: Db) -> None:
    """Whoever runs it; and nobody asks for a job that is none."""
    db.execute("SELECT postroom.begin_run(gen_random_uuid(), 19, NULL, 1)")
    answer = cli("cron", "run", "process-email-queue")
    assert (answer.code, answer.error[:40]) == (1, "process-email-queue runs at the moment: ")
    answer = cli("cron", "run", "nothing")
    assert answer.code == 2
    assert answer.error.startswith("there is no job 'nothing'; jobs: process-email-queue, ")
    answer = cli("cron", "run", "reconcile")
    assert answer.code == 2
    assert "STRIPE_API_KEY" in answer.error


def test_status_shows_the_schedule(cli: Cli, db: Db) -> None:
    """Who leads, and each job's last run."""
    assert "no scheduler runs" in cli.ok("status")
    cli.ok("cron", "run", "process-email-queue")
    db.execute("SELECT postroom.lead_cron(gen_random_uuid(), 'thathost', 7, '1.0', '{}')")
    out = cli.ok("status")
    assert "scheduler: thathost process 7, leads since " in out
    assert "process-email-queue (* * * * *): succeeded " in out
    cron = cli("status", "--json").json["cron"]
    assert cron["leader"]["host"] == "thathost"
    assert cron["jobs"][0]["last_status"] == "succeeded"


def test_a_schedule_that_is_none_is_told_what_is(cli: Cli) -> None:
    """The schedule of a job is a setting; `off` switches it off."""
    answer = cli("settings", "set", "cron.reconcile", "every day")
    assert answer.code == 2
    assert "a schedule of cron in UTC, such as */5 * * * * or @daily; or off" in answer.error
    assert cli.ok("settings", "set", "cron.process-email-queue", " */2  * * * * ").startswith(
        "cron.process-email-queue = */2 * * * * "
    )
    assert cli("cron", "list", "--json").json["jobs"][0]["schedule"] == "*/2 * * * *"


def test_reconcile_begins_with_its_first_run_and_looks_again_from_its_last_success(
    cli: Cli, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was before its first run stays where it is; a failed run loses nothing; windows overlap."""
    monkeypatch.setenv("STRIPE_API_KEY", KEY)
    monkeypatch.setenv("POSTROOM_STRIPE_WEBHOOK_SECRET", "whsec_x")
    with stripe_server_beside() as stripe:
        monkeypatch.setenv("POSTROOM_STRIPE_API_URL", stripe.url)
        (now,) = db.execute("SELECT floor(extract(EPOCH FROM now()))::bigint").fetchone() or (0,)
        stripe.add("evt_before", now - 60)
        monkeypatch.setenv("STRIPE_API_KEY", "sk_wrong")
        assert cli("cron", "run", "reconcile").code == 1
        monkeypatch.setenv("STRIPE_API_KEY", KEY)
        stripe.add("evt_meanwhile", now + 1)
        assert cli.ok("cron", "run", "reconcile") == "1 of 1 event had not arrived: stored now\n"
        db.execute("UPDATE postroom.jobs SET last_succeeded_at = last_succeeded_at + interval '1 hour'")
        assert cli.ok("cron", "run", "reconcile").startswith("0 of ")
        first, again, later = (int(asked["created[gte]"]) for asked in stripe.asked)
        assert now <= first == again < now + 30
        assert first + 3600 - 600 <= later < first + 3600
    rows = db.execute("SELECT webhook_event_id FROM webhook_retry_queue").fetchall()
    assert ("evt_meanwhile",) in rows


def test_whose_schema_cron_is_can_be_said(cli: Cli) -> None:
    """Where pg_cron is not there, it is ours from the start, and nothing else can be had."""
    assert cli.ok("cron", "use-own").startswith("schema cron shows postroom's jobs: cron.job")
    answer = cli("cron", "use-pg-cron")
    assert answer.code == 1
    assert answer.error.startswith("pg_cron is not there: install it on the server")


def test_doctor_finds_a_schedule_that_nobody_keeps_and_a_job_that_fails(cli: Cli, db: Db) -> None:
    """And says what to do; where all is well it says that."""
    db.execute("SELECT cron.schedule('bad', '@daily', 'SELECT 1 / 0')")
    cli("cron", "run", "bad")
    out = cli("doctor").out
    assert "warning  scheduler: none runs: no cleanup" in out
    assert "warning  cron: bad's last run failed: DivisionByZeroError" in out
    db.execute("SELECT postroom.lead_cron(gen_random_uuid(), 'thathost', 7, '1.0', '{}')")
    assert "ok       scheduler: thathost process 7 leads" in cli("doctor").out
