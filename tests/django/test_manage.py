"""manage.py: Django's own migrate brings postroom's tables, and `manage.py postroom` is the command line."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.mail import send_mail
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection

from postroom.django.models import QueuedEmail
from postroom.testing import signed
from tests.django.commands import manage
from tests.django.project import SECRET
from tests.django.shop.models import Order
from tests.journey.programs import Programs
from tests.support.waiting import until_now


def ask(url: str, sql: str) -> Any:
    with psycopg.connect(url) as db:
        row = db.execute(sql).fetchone()
        return row and row[0]


def test_migrate_does_what_postroom_migrate_does(empty_database_url: str, tmp_path: Path) -> None:
    """On an empty database: the tables are there, and `migrate --check` of both is content."""
    first = manage(empty_database_url, tmp_path, "migrate")
    assert first.returncode == 0, first.stderr
    assert "Applying postroom.0001_initial... OK" in first.stdout
    assert first.stderr == ""
    check = manage(empty_database_url, tmp_path, "postroom", "migrate", "--check")
    assert (check.returncode, check.stdout) == (0, "up to date\n"), check.stderr
    assert manage(empty_database_url, tmp_path, "migrate", "--check").returncode == 0
    made = manage(empty_database_url, tmp_path, "makemigrations", "--check", "--dry-run")
    assert made.returncode == 0, made.stdout
    assert ask(empty_database_url, "SELECT to_regclass('public.shop_order') IS NOT NULL")


def test_migrate_brings_what_a_newer_postroom_has(capsys: pytest.CaptureFixture[str]) -> None:
    """Django's own migration has run: functions of an older release are replaced all the same."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE postroom.repeatables SET digest = '', program = '0.0.1' WHERE name = 'functions'"
        )
    with pytest.raises(CommandError):
        call_command("postroom", "migrate", "--check")
    call_command("migrate")
    assert "  postroom: up to date: version" in capsys.readouterr().out
    call_command("postroom", "migrate", "--check")


def test_going_back_leaves_the_mail(database_url: str) -> None:
    """`migrate postroom zero` forgets that it has run; the tables and what is in them stay."""
    send_mail("Hi", "x", None, ["ada@example.com"])
    call_command("migrate", "postroom", "zero", verbosity=0)
    assert ask(database_url, "SELECT count(*) FROM email_queue") == 1
    call_command("migrate", verbosity=0)


def test_flush_leaves_the_mail_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """`manage.py flush` empties the project's tables; what waits in the queue is sent all the same."""
    Order.objects.create(stripe_id="cs_1")
    send_mail("Hi", "x", None, ["ada@example.com"])
    call_command("flush", interactive=False)
    assert (
        capsys.readouterr().out
        == "  postroom: what is in its queues was left there, and is sent and handled\n"
    )
    assert (Order.objects.count(), QueuedEmail.objects.count()) == (0, 1)


def test_a_dump_of_the_queue_is_not_loaded(tmp_path: Path) -> None:
    """dumpdata takes the queue, too; loaded elsewhere, a worker would send each mail again to its address."""
    send_mail("Hi", "x", None, ["ada@example.com"])
    dump = tmp_path / "all.json"
    call_command("dumpdata", output=str(dump), verbosity=0)
    assert "ada@example.com" in dump.read_text()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM email_queue")
    with pytest.raises(ValueError, match=r"leave it out: dumpdata --exclude postroom"):
        call_command("loaddata", str(dump), verbosity=0)
    assert QueuedEmail.objects.count() == 0


def test_a_migration_that_cannot_be_made_is_one_line(database_url: str, tmp_path: Path) -> None:
    """What migrate of postroom's says, `manage.py migrate` says as Django does, without a traceback."""
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE postroom.repeatables SET digest = '' WHERE name = 'functions'")
        db.execute("DROP FUNCTION public.mark_email_sent")
        db.execute(
            "CREATE FUNCTION public.mark_email_sent(email_id uuid) RETURNS int LANGUAGE sql AS 'SELECT 1'"
        )
        db.execute("CREATE VIEW uses_it AS SELECT public.mark_email_sent(NULL)")
    done = manage(database_url, tmp_path, "migrate")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("CommandError: postroom: ")
    assert "uses_it" in done.stderr


def test_an_event_becomes_an_order_and_a_receipt(database_url: str, tmp_path: Path) -> None:
    """`manage.py postroom up`: the door, the worker with the project's handlers, and the mail's way out."""
    programs = Programs(
        tmp_path,
        {
            "DJANGO_SETTINGS_MODULE": "tests.django.settings",
            "SHOP_DATABASE_URL": database_url,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "POSTROOM_LOG": "json",
            "POSTROOM_PORT": "0",
            "POSTROOM_DATA_DIR": str(tmp_path / "data"),
        },
    )
    payload = {
        "id": "evt_1",
        "type": "checkout.session.completed",
        "data": {"object": {"id": "cs_1", "customer_email": "ada@example.com"}},
    }
    with programs.running("up", command=("django", "postroom")) as up:
        address = up.ready()
        request = signed("stripe", payload, SECRET)
        asked = urllib.request.Request(
            f"{address}/webhooks/stripe",
            request.body,
            {**request.headers, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            assert json.loads(answer.read()) == {"received": True}
        until_now(lambda: ask(database_url, "SELECT count(*) FROM email_queue WHERE status = 'sent'") == 1)
    assert ask(database_url, "SELECT stripe_id FROM shop_order") == "cs_1"
    assert ask(database_url, "SELECT app FROM postroom.handlers") == "django:tests"


def test_a_project_on_psycopg2_handles_events_and_mails(database_url: str, tmp_path: Path) -> None:
    """Where psycopg 3 is not installed Django takes psycopg2, and so do its handlers and its mail."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['psycopg'] = None")
    with psycopg.connect(database_url) as db:
        db.execute(
            """
            INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload)
            VALUES (
                'stripe', 'evt_1',
                '{
                    "type": "checkout.session.completed",
                    "data": {"object": {"id": "cs_1", "customer_email": "ada@example.com"}}
                }'
            )
            """
        )
    where = f"{tmp_path}:{Path(__file__).parents[2]}"
    done = manage(database_url, tmp_path, "postroom", "worker", "--drain", PYTHONPATH=where)
    assert "1 webhook event processed" in done.stdout, done.stderr
    assert "1 e-mail sent" in done.stdout, done.stderr
    look = (
        "from django.db import connection; connection.ensure_connection(); print(type(connection.connection))"
    )
    shell = manage(database_url, tmp_path, "shell", "-v", "0", "-c", look, PYTHONPATH=where)
    assert "psycopg2" in shell.stdout, shell.stderr
    assert ask(database_url, "SELECT stripe_id FROM shop_order") == "cs_1"


def test_commands_take_djangos_settings(database_url: str, tmp_path: Path) -> None:
    """`manage.py postroom status` needs no POSTROOM_* variable; Django's own options do not reach it."""
    done = manage(database_url, tmp_path, "postroom", "status", "--json", "--settings=tests.django.settings")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["queues"]) == {"email", "webhook"}
    wrong = manage(database_url, tmp_path, "postroom", "staus")
    assert wrong.returncode == 2
    assert "No such command 'staus'" in wrong.stderr
    assert "see 'manage.py postroom --help'" in wrong.stderr


def test_what_a_command_says_to_run_is_run_by_manage_py(capsys: pytest.CaptureFixture[str]) -> None:
    """`postroom up` by itself knows nothing of Django's settings: it would start a database of its own."""
    call_command("postroom", "status")
    assert "none: start `manage.py postroom up` or `manage.py postroom worker`" in capsys.readouterr().out
    call_command("postroom", "worker", "--help")
    assert "Usage: manage.py postroom worker" in capsys.readouterr().out


def test_call_command_says_when_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """From a program, a command that fails is a CommandError with its exit code."""
    call_command("postroom", "migrate", "--check")
    assert capsys.readouterr().out == "up to date\n"
    with pytest.raises(CommandError) as raised:
        call_command("postroom", "explain", "no-id")
    assert raised.value.returncode == 2


def test_djangos_test_runner_works_on_its_own_database_alone(empty_database_url: str, tmp_path: Path) -> None:
    """In `manage.py test` no address that is set elsewhere is touched; handlers are run by deliver_now()."""
    folder = tmp_path / "shop_tests"
    folder.mkdir()
    (folder / "test_shop.py").write_text(
        """
from django.core import mail
from django.test import TestCase, TransactionTestCase

from postroom.django import room
from postroom.errors import ConfigError
from postroom.testing import deliver_now
from tests.django.shop.models import Order


EVENT = {"id": "evt_1", "type": "checkout.session.completed",
         "data": {"object": {"id": "cs_1", "customer_email": "ada@example.com"}}}


class ShopTest(TransactionTestCase):
    def test_an_order(self):
        done = deliver_now(room, "stripe", EVENT)
        self.assertFalse(done.duplicate)
        self.assertEqual(done.status, "processed", done.errors)
        self.assertEqual(Order.objects.get().stripe_id, "cs_1")
        self.assertEqual(mail.outbox[0].to, ["ada@example.com"])

    def test_the_same_event_is_new_in_another_test(self):
        self.test_an_order()


class InOneTransaction(TestCase):
    def test_its_transaction_and_the_handlers_are_two(self):
        with self.assertRaisesMessage(ConfigError, "use a TransactionTestCase"):
            deliver_now(room, "stripe", EVENT)
        self.assertEqual(Order.objects.count(), 0)
"""
    )
    done = manage(empty_database_url, folder, "test", POSTROOM_DATABASE_URL=empty_database_url)
    assert done.returncode == 0, done.stderr
    assert "Ran 3 tests" in done.stderr
    assert ask(empty_database_url, "SELECT to_regclass('public.email_queue') IS NULL")
    assert connection.vendor == "postgresql"
