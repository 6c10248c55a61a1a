"""Taking over from django-post-office: each mail is sent by one of the two, and what is left is named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.mail.backends.base import BaseEmailBackend
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.test.utils import override_settings
from django.utils import timezone
from post_office import mail as post_office
from post_office.lockfile import FileLock, default_lockfile
from post_office.mail import send_queued
from post_office.models import STATUS, Email, EmailTemplate, Log

from tests.django.conftest import Sent

LATER = datetime(2040, 1, 2, tzinfo=UTC)


class Refusing(BaseEmailBackend):
    """Where post_office would send to: it must not."""

    def send_messages(self, email_messages: Any) -> int:
        raise AssertionError(f"post_office sends {email_messages}")


def queued() -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_email, priority, next_retry_at, subject FROM email_queue ORDER BY to_email")
        return list(cursor.fetchall())


def put(to: str = "ada@example.com", **more: Any) -> Email:
    return post_office.send(
        to,
        "Shop <shop@example.com>",
        subject="Hi",
        message="Thank you",
        html_message="<p>Thank you</p>",
        **more,
    )


def command(*options: str) -> None:
    call_command("postroom", "take_over_post_office", *options)


def test_a_dry_run_says_what_would_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --yes nothing changes in either queue."""
    put(cc=["bob@example.com"])
    command()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "1 row can be taken over: 2 e-mails, one to each recipient",
        "nothing was changed: stop send_queued_mail everywhere, then add --yes",
    ]
    assert queued() == []
    assert Email.objects.get().status == STATUS.queued


def test_queued_mails_become_ours_with_all_that_they_say(sent: Sent) -> None:
    """Recipients, bodies, headers, priority, time and template; post_office sends none of them."""
    put(cc=["bob@example.com"], headers={"List-Unsubscribe": "<https://shop.example/off>"}, priority="high")
    put("cyd@example.com", scheduled_time=LATER, priority="low")
    template = EmailTemplate.objects.create(
        name="news", subject="Hi {{ name }}", content="Dear {{ name }}", html_content="<p>Dear {{ name }}</p>"
    )
    post_office.send("dan@example.com", template=template, context={"name": "Dan"}, render_on_delivery=True)
    Email.objects.filter(to="dan@example.com").update(status=STATUS.requeued)
    command("--yes")
    assert queued() == [
        ("ada@example.com", 10, None, "Hi"),
        ("bob@example.com", 10, None, "Hi"),
        ("cyd@example.com", -10, LATER, "Hi"),
        ("dan@example.com", 0, None, "Hi Dan"),
    ]
    with override_settings(EMAIL_BACKEND="tests.django.test_post_office.Refusing"):
        assert send_queued() == (0, 0, 0)
    ada, _, dan = sent()
    assert ada["List-Unsubscribe"] == "<https://shop.example/off>"
    assert [part.get_content().strip() for part in dan.iter_parts()] == ["Dear Dan", "<p>Dear Dan</p>"]
    assert "taken over by postroom as" in Log.objects.first().message


def test_what_cannot_be_taken_over_is_left_and_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A lost file, an expiry, a template that fails, a Reply-To of several: post_office goes on with them."""
    with override_settings(MEDIA_ROOT=str(tmp_path / "lost")):
        put(attachments={"bill.txt": ContentFile(b"17")})
    put("bob@example.com", expires_at=timezone.now() + timedelta(days=1))
    put("cyd@example.com", headers={"Reply-To": "a@example.com, b@example.com"})
    broken = EmailTemplate.objects.create(name="broken", subject="Hi", content="x")
    EmailTemplate.objects.update(content="{% no_such_tag %}")
    broken.refresh_from_db()
    post_office.send("dan@example.com", template=broken, context={}, render_on_delivery=True)
    put("eve@example.com")
    command("--yes")
    said = capsys.readouterr().out
    assert "1 row taken over: 1 e-mail, one to each recipient" in said
    assert "1 row left, a file of its attachments cannot be read" in said
    assert "1 row left, it expires, which is for post_office to see to" in said
    assert "1 row left, its template cannot be rendered" in said
    assert "1 row left, it cannot be queued" in said
    assert "it cannot be queued: reply_to: 'a@example.com, b@example.com' names several addresses" in said
    assert [row[0] for row in queued()] == ["eve@example.com"]
    assert Email.objects.filter(status=STATUS.queued).count() == 4


def test_their_files_go_with_them(sent: Sent, tmp_path: Path) -> None:
    """Read from where post_office keeps them; one with headers of its own stands where the HTML shows it."""
    shown = {"file": ContentFile(b"png"), "mimetype": "image/png", "headers": {"Content-ID": "<logo>"}}
    with override_settings(MEDIA_ROOT=str(tmp_path)):
        post_office.send(
            "ada@example.com",
            "Shop <shop@example.com>",
            subject="Hi",
            html_message='<img src="cid:logo">',
            attachments={"bill.txt": ContentFile(b"17"), "logo.png": shown},
        )
        command("--yes")
    (mail,) = sent()
    found = {part.get_content_type(): part for part in mail.walk() if part.get_content_disposition()}
    assert [found[kind].get_payload(decode=True) for kind in ("text/plain", "image/png")] == [b"17", b"png"]
    assert found["text/plain"].get_filename() == "bill.txt"
    assert (found["image/png"]["Content-ID"], found["image/png"].get_content_disposition()) == (
        "<logo>",
        "inline",
    )


def test_taking_over_twice_queues_nothing_twice() -> None:
    """Also where somebody has queued a row again over there: the key of the row is the same."""
    put()
    command("--yes")
    command("--yes")
    Email.objects.update(status=STATUS.queued)
    command("--yes")
    assert len(queued()) == 1


def test_an_error_in_the_middle_leaves_both_queues_as_they_were() -> None:
    """Rows here and marks there are one transaction."""
    for number in range(3):
        put(f"u{number}@example.com")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE post_office_log ADD CONSTRAINT none CHECK (false) NOT VALID")
    with pytest.raises(Exception, match="none"):
        command("--yes")
    assert queued() == []
    assert Email.objects.filter(status=STATUS.queued).count() == 3


def test_while_post_office_sends_here_nothing_is_taken_over(capsys: pytest.CaptureFixture[str]) -> None:
    """It marks its rows after it has sent them, so they would be sent twice; its lock is ours, too."""
    put()
    with FileLock(default_lockfile), pytest.raises(CommandError):
        command("--yes")
    assert "send_queued_mail runs here" in capsys.readouterr().err
    assert queued() == []
    with pytest.raises(CommandError):
        command("--now")
    assert "takes --yes" in capsys.readouterr().err
