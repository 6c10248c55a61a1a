"""Mail by Django's own functions: queued in the transaction of the ORM, sent by a worker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import django
import psycopg
import pytest
from django.core.mail import (
    EmailMessage,
    EmailMultiAlternatives,
    get_connection,
    send_mail,
    send_mass_mail,
)
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext, override_settings
from django.utils.translation import gettext_lazy

from postroom.django import EmailBackend
from postroom.django.message import RefusedMessage
from postroom.errors import ConfigError, SchemaError
from tests.django import project
from tests.django.conftest import Sent


def rows(columns: str = "to_email", order: str = "to_email") -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM public.email_queue ORDER BY {order}")
        return list(cursor.fetchall())


def test_a_mail_goes_out_when_its_transaction_commits(sent: Sent) -> None:
    """Within atomic() nobody else sees the row; after it a worker sends the mail."""
    with transaction.atomic():
        assert send_mail("Hi", "Thank you", "Shop <shop@example.com>", ["ada@example.com"]) == 1
        assert sent() == []
    (mail,) = sent()
    assert mail["To"] == "ada@example.com"
    assert mail["From"] == "Shop <shop@example.com>"
    assert mail["Subject"] == "Hi"
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().strip() == "Thank you"


def test_a_mail_of_a_transaction_that_rolls_back_is_none(sent: Sent) -> None:
    """An error in atomic() undoes the mail with everything else."""
    with pytest.raises(IntegrityError), transaction.atomic():
        send_mail("Hi", "Thank you", None, ["ada@example.com"])
        raise IntegrityError
    assert sent() == []


def test_outside_a_transaction_a_mail_is_queued_at_once(sent: Sent) -> None:
    """Django's autocommit holds: the row is there when send_mail() returns."""
    send_mail("Hi", "Thank you", None, ["ada@example.com"])
    assert [mail["From"] for mail in sent()] == ["Shop <shop@example.com>"]


def test_each_recipient_gets_a_mail_of_his_own(sent: Sent) -> None:
    """to, cc and bcc are one row each, every address once; the ids are on the message."""
    message = EmailMessage(
        "Hi",
        "Thank you",
        to=["Ada <ada@example.com>", "bob@example.com"],
        cc=["cyd@example.com", "ada@example.com"],
        bcc=["dan@example.com"],
    )
    assert message.send() == 1
    assert len(message.queued_ids) == 4
    mails = sent()
    assert [mail["To"] for mail in mails] == [f"{name}@example.com" for name in ("ada", "bob", "cyd", "dan")]
    assert not any(mail["Cc"] or mail["Bcc"] for mail in mails)


def test_an_html_alternative_a_header_and_a_reply_to_are_in_the_mail(sent: Sent) -> None:
    """EmailMultiAlternatives becomes multipart/alternative, with its headers."""
    message = EmailMultiAlternatives(
        "Hi",
        "Thank you",
        to=["ada@example.com"],
        reply_to=["help@example.com"],
        headers={"List-Unsubscribe": "<https://shop.example/off>"},
    )
    message.attach_alternative("<p>Thank you</p>", "text/html")
    message.send()
    (mail,) = sent()
    assert mail["Reply-To"] == "help@example.com"
    assert mail["List-Unsubscribe"] == "<https://shop.example/off>"
    plain, html = mail.iter_parts()
    assert plain.get_content().strip() == "Thank you"
    assert html.get_content().strip() == "<p>Thank you</p>"


def test_a_message_of_html_alone_gets_a_plain_part(sent: Sent) -> None:
    """content_subtype = "html" is the html column; the text is made from it."""
    message = EmailMessage("Hi", "<p>Thank you</p>", to=["ada@example.com"])
    message.content_subtype = "html"
    message.send()
    (mail,) = sent()
    assert [part.get_content().strip() for part in mail.iter_parts()] == ["Thank you", "<p>Thank you</p>"]


def test_lazy_texts_and_empty_bodies_are_sent(sent: Sent) -> None:
    """A translation is read when it is queued; a subject may be all there is."""
    EmailMessage(gettext_lazy("Hi"), to=[gettext_lazy("ada@example.com")]).send()
    (mail,) = sent()
    assert mail["Subject"] == "Hi"
    assert mail.get_content().strip() == ""


def test_mass_mail_is_one_statement() -> None:
    """A hundred messages are queued by one INSERT, each in its order."""
    messages = [("Hi", "News", None, [f"u{n:03}@example.com"]) for n in range(100)]
    with CaptureQueriesContext(connection) as queries:
        assert send_mass_mail(messages) == 100
    assert len(queries) == 1
    assert len(rows()) == 100


def test_mass_mail_is_queued_as_a_whole_or_not_at_all() -> None:
    """One message that can never be sent leaves none of the others; the error says which it was."""
    messages = [("Hi", "News", None, ["ada@example.com"]), ("Hi", "News", None, ["nobody"])]
    with pytest.raises(RefusedMessage, match=r"^messages\[1\]\.to: 'nobody' is not an e-mail address"):
        send_mass_mail(messages)
    assert rows() == []


def test_more_than_one_statement_holds_is_still_one_transaction(sent: Sent) -> None:
    """Mails of 12 MB in all take two statements: an error in the second undoes the first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "ALTER TABLE email_queue ADD CONSTRAINT no_seventh CHECK (to_email <> 'u6@example.com') NOT VALID"
        )
    messages = [("Hi", "x" * 2_000_000, None, [f"u{n}@example.com"]) for n in range(7)]
    with pytest.raises(IntegrityError):
        send_mass_mail(messages)
    assert rows() == []
    assert send_mass_mail(messages[:6]) == 6
    assert len(sent()) == 6


def test_a_message_may_say_more_by_attributes() -> None:
    """What a row has columns for, such as send_at or a key, is set as an attribute of that name."""
    message = EmailMessage("Hi", "Thank you", to=["ada@example.com"])
    message.send_at = datetime(2040, 1, 2, tzinfo=UTC)
    message.priority = 5
    message.metadata = {"order": 17}
    message.email_type = "receipt"
    message.max_attempts = 2
    message.idempotency_key = "order-17"
    message.send()
    message.send()
    assert rows(
        "next_retry_at, priority, metadata ->> 'order', email_type, max_attempts, idempotency_key"
    ) == [(datetime(2040, 1, 2, tzinfo=UTC), 5, "17", "receipt", 2, "order-17")]


def test_a_key_of_several_recipients_is_one_for_each() -> None:
    """The same message, sent again, queues nothing more, for none of them."""
    message = EmailMessage("Hi", "Thank you", to=["ada@example.com", "bob@example.com"])
    message.idempotency_key = "order-17"
    message.send()
    first = message.queued_ids
    message.send()
    assert message.queued_ids == first
    assert len(rows()) == 2


if django.VERSION < (6,):
    from django.core.mail import BadHeaderError
else:
    BadHeaderError = ValueError


def _with_calendar(message: EmailMultiAlternatives) -> None:
    message.attach_alternative("BEGIN:VCALENDAR", "text/calendar")


def _with_two_htmls(message: EmailMultiAlternatives) -> None:
    message.attach_alternative("<p>1</p>", "text/html")
    message.attach_alternative("<p>2</p>", "text/html")


def _with_two_reply_tos(message: EmailMultiAlternatives) -> None:
    message.reply_to = ["a@example.com", "b@example.com"]


def _with_message_id(message: EmailMultiAlternatives) -> None:
    message.extra_headers = {"Message-ID": "<1@example.com>"}


def _with_two_lines(message: EmailMultiAlternatives) -> None:
    message.subject = "Hi\nBcc: eve@example.com"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_with_calendar, "alternatives: text/calendar cannot be queued"),
        (_with_two_htmls, "alternatives: there are two of text/html"),
        (_with_two_reply_tos, "reply_to: names several addresses"),
        (_with_message_id, "headers: Message-ID is set by postroom"),
        (_with_two_lines, "subject: holds a line break"),
    ],
)
def test_what_cannot_be_queued_is_refused_by_name(change: Any, said: str) -> None:
    """What postroom does not do is an error that names it, and that views catch as they always did."""
    message = EmailMultiAlternatives("Hi", "Thank you", to=["ada@example.com"])
    change(message)
    with pytest.raises(BadHeaderError, match=f"^{said}") as raised:
        message.send()
    assert isinstance(raised.value, ValueError)
    assert rows() == []


def test_a_message_that_makes_its_mime_by_itself_is_refused() -> None:
    """What signs or encrypts in message() is not sent without it."""

    class Signed(EmailMessage):
        def message(self) -> Any:
            return super().message()

    with pytest.raises(RefusedMessage, match="Signed makes its MIME by itself"):
        Signed("Hi", "Thank you", to=["ada@example.com"]).send()


def test_failing_silently_leaves_the_transaction_whole() -> None:
    """With fail_silently what fails is left out, and the caller's transaction goes on."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE email_queue ADD CONSTRAINT no_bob CHECK (to_email <> 'bob@example.com')")
    with transaction.atomic():
        assert send_mail("Hi", "x", None, ["bob@example.com"], fail_silently=True) == 0
        assert send_mail("Hi", "x", None, ["nobody"], fail_silently=True) == 0
        assert send_mail("Hi", "x", None, ["ada@example.com"], fail_silently=True) == 1
    assert rows() == [("ada@example.com",)]


def test_a_database_that_is_not_migrated_says_so(empty_database_url: str) -> None:
    """Whoever switches the backend on first is told what to run."""
    with project.database(empty_database_url), pytest.raises(SchemaError, match=r"run `manage.py migrate`"):
        send_mail("Hi", "x", None, ["ada@example.com"])


def test_another_database_than_postgresql_is_refused() -> None:
    """The row must be in PostgreSQL: sqlite is named, and where to name another."""
    from django.db import connections

    connections.settings["lite"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
    }
    try:
        with override_settings(POSTROOM={"DATABASE": "lite"}), pytest.raises(ConfigError, match="is sqlite"):
            send_mail("Hi", "x", None, ["ada@example.com"])
    finally:
        del connections.settings["lite"]


def test_psycopg2_queues_as_well(database_url: str) -> None:
    """Where psycopg 3 is not there Django takes psycopg2: the same statement, by its cursor."""
    import psycopg2

    from postroom.django.message import checked_emails
    from postroom.email.enqueue import enqueue_by

    checked = checked_emails(EmailMessage("Hi", "Thank you", to=["ada@example.com"]))
    with psycopg2.connect(database_url) as two, two.cursor() as cursor:

        def fetch(sql: str, values: list[str]) -> Any:
            cursor.execute(sql, values)
            return cursor.fetchall()

        (queued,) = enqueue_by(fetch, checked)
    with psycopg.connect(database_url) as look:
        assert look.execute("SELECT id FROM email_queue").fetchall() == [(queued,)]


def test_a_mailer_of_djangos_queues() -> None:
    """MAILERS (Django 6.1) names the backend with the server's options; send_mail() takes it by `using`."""
    server: dict[str, Any] = {
        "host": "smtp.example.com",
        "username": "ada",
        "password": "x",
        "use_tls": True,
        "timeout": 5,
    }
    mailer = {"BACKEND": "postroom.django.EmailBackend", "OPTIONS": server}
    with override_settings(MAILERS={"queue": mailer, "default": mailer}):
        if django.VERSION >= (6, 1):
            send_mail("Hi", "x", None, ["ada@example.com"])
            send_mail("Hi", "x", None, ["bob@example.com"], using="queue")
        else:  # which makes it no other way than 6.1 does
            for to in ("ada@example.com", "bob@example.com"):
                EmailBackend(alias="queue", **server).send_messages([EmailMessage("Hi", "x", to=[to])])
    assert rows() == [("ada@example.com",), ("bob@example.com",)]


def test_the_connection_may_be_opened_with_what_other_backends_take() -> None:
    """get_connection(username=…) and a with block work: there is nothing to open."""
    with get_connection(username="ada", password="x") as opened:
        EmailMessage("Hi", "x", to=["ada@example.com"], connection=opened).send()
    assert rows() == [("ada@example.com",)]
