"""The admin pages: lists that an index has in order, a bounded search, and what a person may decide."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from postroom.django.models import QueuedEmail, WebhookEvent

EMAILS = "/admin/postroom/queuedemail/"
EVENTS = "/admin/postroom/webhookevent/"


def client(*permissions: str) -> Client:
    """Somebody of the staff who may do this."""
    user = User.objects.create_user("ada", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    browser = Client()
    browser.force_login(user)
    return browser


def run(sql: str, *values: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall()) if cursor.description else []


def dead(to: str = "ada@example.com", subject: str = "Hi") -> UUID:
    ((found,),) = run(
        """
        INSERT INTO email_queue (
            to_email, subject, html, status, dead_reason, last_error, attempts, failed_at
        )
        VALUES (%s, %s, 'x', 'dead_letter', 'permanent', '550 no such user', 1, now())
        RETURNING id
        """,
        to,
        subject,
    )
    return UUID(str(found))


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer
    return str(answer.content.decode())


def errors(page: str) -> list[str]:
    """What a page says in red."""
    return [unescape(found) for found in re.findall(r'<li class="error">(.*?)</li>', page)]


def test_dead_letters_come_first_and_each_list_is_a_link() -> None:
    """What needs a person is shown where nothing is asked for; there is no list of all rows."""
    dead()
    run("INSERT INTO email_queue (to_email, subject, html) VALUES ('bob@example.com', 'News', 'x')")
    browser = client("view_queuedemail")
    page = text(browser.get(EMAILS))
    assert "ada@example.com" in page
    assert "550 no such user" in page
    assert "bob@example.com" not in page
    assert "?state=waiting" in page
    assert "bob@example.com" in text(browser.get(f"{EMAILS}?state=waiting"))
    assert "0 e-mails" in text(browser.get(f"{EMAILS}?state=done"))
    assert "ada@example.com" in text(browser.get(f"{EMAILS}?reason=permanent"))
    assert "0 e-mails" in text(browser.get(f"{EMAILS}?reason=poison"))


def test_a_search_finds_an_id_anywhere_and_a_text_in_its_list() -> None:
    """An id is found whatever list is shown; a text as it is written, in any case."""
    found = dead(subject="50% off")
    dead("bob@example.com", "500 things")
    browser = client("view_queuedemail")
    assert "ada@example.com" in text(browser.get(EMAILS, {"state": "done", "q": str(found)}))
    page = text(browser.get(EMAILS, {"q": "50% OFF"}))
    assert "ada@example.com" in page
    assert "bob@example.com" not in page
    text(browser.get(EMAILS, {"q": "\0'; --"}))


def test_retrying_is_done_by_postroom_and_written_down() -> None:
    """The row is due again with all its attempts, and the audit trail names the user and his note."""
    chosen, other = dead(), dead("bob@example.com")
    browser = client("view_queuedemail", "decide_queuedemail")
    asked = {"action": "retry", "_selected_action": [str(chosen)], "note": "the box is there now"}
    assert "1 e-mail due again." in text(browser.post(EMAILS, asked, follow=True))
    assert run("SELECT id, status, attempts FROM email_queue ORDER BY to_email") == [
        (chosen, "pending", 0),
        (other, "dead_letter", 1),
    ]
    assert run("SELECT actor, role, action, about ->> 'count', note FROM postroom.audit") == [
        ("ada (Django)", "operator", "dead_letter.retry", "1", "the box is there now")
    ]


def test_discarding_gives_up_for_good() -> None:
    """A discarded row is failed; asked again it is no dead letter any more."""
    chosen = dead()
    browser = client("view_queuedemail", "decide_queuedemail")
    asked = {"action": "discard", "_selected_action": [str(chosen)]}
    assert "1 e-mail discarded." in text(browser.post(EMAILS, asked, follow=True))
    assert run("SELECT status FROM email_queue") == [("failed",)]
    again = browser.post(f"{EMAILS}?state=discarded", asked, follow=True)
    assert "1 are no dead letters (any more)." in text(again)
    assert len(run("SELECT 1 FROM postroom.audit")) == 1


def test_a_row_that_refuses_its_update_stops_no_other() -> None:
    """A trigger of the project's own that raises is named, and the rest is done."""
    run(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'not bob';
        END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON email_queue FOR EACH ROW
        WHEN (old.to_email = 'bob@example.com') EXECUTE FUNCTION refuse()
        """
    )
    ids = [str(dead()), str(dead("bob@example.com"))]
    browser = client("view_queuedemail", "decide_queuedemail")
    page = text(browser.post(EMAILS, {"action": "retry", "_selected_action": ids}, follow=True))
    assert "1 e-mail due again." in page
    assert f"{ids[1]}: not bob" in page


class Interference:
    """Does something before the statements that retry dead letters; counts those that got as far as here."""

    def __init__(self, before: Callable[[Any], object]) -> None:
        self.statements = 0
        self._before = before

    def __call__(self, execute: Any, sql: str, values: Any, many: bool, context: Any) -> Any:
        if "retry_dead" in sql:
            self.statements += 1
            self._before(values)
        return execute(sql, values, many, context)


@pytest.mark.parametrize("atomic_requests", [False, True])
def test_a_database_that_is_lost_in_the_middle_is_one_message(
    database_url: str, atomic_requests: bool
) -> None:
    """500 are due again, the server goes: nothing is asked row by row, and the page says what is known."""
    with connection.cursor() as cursor:
        pid = cursor.connection.info.backend_pid
    run(
        """
        INSERT INTO email_queue (to_email, subject, html, status, dead_reason, failed_at)
        SELECT 'u' || n || '@example.com', 'Hi', 'x', 'dead_letter', 'permanent', now()
        FROM generate_series(1, 600) AS n
        """
    )
    browser = client("view_queuedemail", "decide_queuedemail")

    def kill(_: Any) -> None:
        if killer.statements == 2:
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

    killer = Interference(kill)
    asked = {"action": "retry", "_selected_action": [str(row.pk) for row in QueuedEmail.objects.all()]}
    connection.settings_dict["ATOMIC_REQUESTS"] = atomic_requests
    try:
        with connection.execute_wrapper(killer):
            answer = browser.post(EMAILS, asked)
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    assert killer.statements == 2
    assert answer.status_code == 302
    page = text(browser.get(EMAILS))
    done = 0 if atomic_requests else 500
    (error,) = errors(page)
    assert error.startswith("The database was lost (terminating connection due to administrator command). ")
    assert error.endswith(f" {600 - done} e-mails may be as before: look at the list, and repeat it.")
    assert ("500 e-mails due again." in page) == (not atomic_requests)
    assert run("SELECT count(*) FROM email_queue WHERE status = 'pending'") == [(done,)]


def test_a_row_that_somebody_holds_stops_no_other(database_url: str) -> None:
    """Django's lock_timeout is an OperationalError as a lost server is; here it speaks of one row."""
    ids = [dead(), dead("bob@example.com")]
    run("SET lock_timeout = '100ms'")
    browser = client("view_queuedemail", "decide_queuedemail")
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM email_queue WHERE id = %s FOR UPDATE", [ids[1]])
        page = text(browser.post(EMAILS, {"action": "retry", "_selected_action": ids}, follow=True))
    assert "1 e-mail due again." in page
    assert f"{ids[1]}: canceling statement due to lock timeout" in page


def test_a_role_that_may_not_decide_is_one_message() -> None:
    """Where Django's role lacks the right, no row is blamed for it."""
    ids = [dead(), dead("bob@example.com")]
    browser = client("view_queuedemail", "decide_queuedemail")
    role = f"reader_{uuid4().hex}"
    become_reader = Interference(lambda _: run(f"SET ROLE {role}"))
    run(f"CREATE ROLE {role}")
    try:
        with connection.execute_wrapper(become_reader):
            browser.post(EMAILS, {"action": "retry", "_selected_action": ids})
        run("RESET ROLE")
        page = text(browser.get(EMAILS))
        (error,) = errors(page)
        assert error.startswith("The database's role may not do that (permission denied for ")
        assert become_reader.statements == 1
    finally:
        run(f"RESET ROLE; DROP ROLE {role}")


def test_who_may_only_look_decides_nothing() -> None:
    """Without the permission there is no action, and asking for one changes nothing."""
    chosen = dead()
    browser = client("view_queuedemail")
    assert "Retry: all attempts again" not in text(browser.get(EMAILS))
    browser.post(EMAILS, {"action": "retry", "_selected_action": [str(chosen)]}, follow=True)
    assert run("SELECT status FROM email_queue") == [("dead_letter",)]
    page = text(browser.get(f"{EMAILS}{chosen}/change/"))
    assert "550 no such user" in page
    assert 'name="_save"' not in page
    assert browser.get(f"{EMAILS}add/").status_code == 403
    assert browser.post(f"{EMAILS}{chosen}/delete/", {"post": "yes"}).status_code == 403
    assert browser.get(EVENTS).status_code == 403


def test_dead_events_are_retried_as_mails_are() -> None:
    """The pages of webhook events are the same, over their queue."""
    run(
        """
        INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload, status, failed_at)
        VALUES ('stripe', 'evt_1', '{}', 'dead_letter', now())
        """
    )
    chosen = WebhookEvent.objects.get()
    browser = client("view_webhookevent", "decide_webhookevent")
    assert "evt_1" in text(browser.get(EVENTS, {"q": "EVT_"}))
    asked = {"action": "retry", "_selected_action": [str(chosen.pk)]}
    assert "1 webhook event due again." in text(browser.post(EVENTS, asked, follow=True))
    assert WebhookEvent.objects.get().status == "pending"


def test_models_are_read_only() -> None:
    """Whatever writes says so: a row that is written past postroom's functions has no lease and no trail."""
    dead()
    row = QueuedEmail.objects.get(status="dead_letter")
    for write in (
        row.save,
        row.delete,
        QueuedEmail.objects.all().delete,
        lambda: QueuedEmail.objects.update(status="pending"),
        lambda: QueuedEmail.objects.create(to_email="a@b.c"),
        lambda: QueuedEmail.objects.bulk_create([row]),
    ):
        with pytest.raises(TypeError, match="QueuedEmail is read-only"):
            write()


def test_what_python_cannot_read_stops_no_page() -> None:
    """An old caller's `infinity`, a number of 5,000 digits: the rows beside it are shown, and its page."""
    dead("bob@example.com")
    strange = dead()
    run(
        """
        UPDATE email_queue
        SET failed_at = 'infinity', next_retry_at = '20000-01-01', created_at = '-infinity',
            metadata = ('{"n": ' || repeat('9', 5000) || '}')::jsonb,
            headers = (repeat('[', 3000) || repeat(']', 3000))::jsonb
        WHERE id = %s
        """,
        strange,
    )
    browser = client("view_queuedemail")
    page = text(browser.get(EMAILS))
    assert "ada@example.com" in page
    assert "bob@example.com" in page
    assert "999999999" in text(browser.get(f"{EMAILS}{strange}/change/"))
    assert QueuedEmail.objects.get(pk=strange).failed_at is None


def test_a_page_reads_no_bodies_of_its_rows_and_counts_no_facets() -> None:
    """Fifty rows may have 500 MB: a list leaves them out, a row's page cuts them. No page counts all."""
    row = dead()
    run("UPDATE email_queue SET html = repeat('<b>', 100000) WHERE id = %s", row)
    browser = client("view_queuedemail")
    with CaptureQueriesContext(connection) as captured:
        page = text(browser.get(EMAILS, {"_facets": "True"}))
    ours = [query["sql"] for query in captured if "email_queue" in query["sql"]]
    assert not [sql for sql in ours if '"html"' in sql or "FILTER" in sql]
    assert "Show counts" not in page
    assert "Show all" not in page
    page = text(browser.get(f"{EMAILS}{row}/change/"))
    assert "… and 250,000 more characters" in page
    assert len(page) < 300_000
    assert "History" not in page


@pytest.mark.parametrize("state", ["dead", "waiting", "done", "discarded"])
def test_no_list_reads_the_whole_table(state: str) -> None:
    """40,000 rows: every statement of a page, of a search and of its count goes by an index."""
    run(
        """
        INSERT INTO email_queue (to_email, subject, html, status, sent_at, failed_at)
        SELECT
            'u' || n || '@example.com', 'Hi', 'x',
            (ARRAY['dead_letter', 'pending', 'sent', 'failed'])[n %% 4 + 1],
            now() - n * interval '1 second', now() - n * interval '1 second'
        FROM generate_series(1, 40000) AS n
        """
    )
    run("ANALYZE email_queue")
    browser = client("view_queuedemail")
    with CaptureQueriesContext(connection) as captured:
        text(browser.get(EMAILS, {"state": state}))
        text(browser.get(EMAILS, {"state": state, "q": "u17@"}))
    ours = [query["sql"] for query in captured if "email_queue" in query["sql"]]
    assert len(ours) >= 4
    for sql in ours:
        plan = "\n".join(row[0] for row in run(f"EXPLAIN {sql.replace('%', '%%')}"))
        assert "Seq Scan on email_queue" not in plan, f"{sql}\n{plan}"
