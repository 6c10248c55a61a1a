"""Attachments of Django's EmailMessage: in the mail as Django itself would have put them there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from email import message_from_bytes, policy
from email.encoders import encode_base64
from email.message import EmailMessage as Parsed
from email.message import Message
from email.mime.base import MIMEBase
from email.mime.image import MIMEImage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.db import connection

from postroom.django.message import RefusedMessage
from tests.django.conftest import Sent

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def attach(message: EmailMessage, folder: Path) -> None:
    """In each way that Django knows."""
    (folder / "terms.pdf").write_bytes(b"%PDF-1.7 \x00\xff")
    (folder / "Grüße.txt").write_text("Schöne Grüße\n")
    message.attach("rows.csv", "Köln;1\n", "text/csv")
    message.attach("guess.png", PNG)
    message.attach("no ending", PNG, None)
    message.attach("latin.txt", b"K\xf6ln", "text/plain")
    message.attach(None, "a,b\n", "text/csv")
    message.attach_file(str(folder / "terms.pdf"))
    message.attach_file(folder / "Grüße.txt")
    message.attach(
        "old.eml", EmailMessage("Old", "Hello", "a@example.com", ["b@example.com"]), "message/rfc822"
    )
    image = MIMEImage(PNG, "png")
    image.add_header("Content-ID", "<logo@shop>")
    image.add_header("Content-Disposition", "inline", filename="logo.png")
    message.attach(image)
    binary = MIMEBase("application", "x-shop", name="left.out")
    binary.set_payload(PNG)
    encode_base64(binary)
    binary.add_header("Content-Disposition", "attachment", filename=("utf-8", "", "Größe.bin"))
    message.attach(binary)
    calendar = MIMEText("BEGIN:VCALENDAR\nköln\n", "calendar", "utf-8")
    calendar.set_param("method", "REQUEST")
    calendar.add_header("Content-Disposition", "attachment", filename="invite.ics")
    message.attach(calendar)


def files_of(message: Message) -> Iterable[tuple[str, str, str | None, object, bytes]]:
    """Name, type, charset, Content-ID and bytes of each leaf that is no body."""
    for part in message.walk():
        if part.get_content_type() == "message/rfc822":
            inner = part.get_payload(0)
            assert isinstance(inner, Message)
            yield str(part.get_filename()), "message/rfc822", None, None, str(inner["Subject"]).encode()
        elif part.get_filename() or (part.get_content_type() == "text/csv"):
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            yield (
                str(part.get_filename()),
                part.get_content_type(),
                part.get_content_charset() if not content.isascii() else None,
                part["Content-ID"],
                content.replace(b"\r\n", b"\n") if part.get_content_maintype() == "text" else content,
            )


def test_they_are_in_the_mail_as_django_would_have_put_them_there(sent: Sent, tmp_path: Path) -> None:
    """Triples, attach_file, parts of the standard library's, a message: name, type, charset, id and bytes."""
    message = EmailMultiAlternatives("Hi", "Thank you", "shop@example.com", ["ada@example.com"])
    message.attach_alternative('<p>Thank you <img src="cid:logo@shop"></p>', "text/html")
    attach(message, tmp_path)
    by_django = message_from_bytes(message.message().as_bytes(), policy=policy.default)
    message.send()
    (mail,) = sent()
    theirs = {name: facts for name, *facts in files_of(by_django)}
    theirs["attachment.csv"] = theirs.pop("None")  # what a recipient saves must be called something
    assert {name: facts for name, *facts in files_of(mail)} == theirs
    assert len(theirs) == 11
    related = [part for part in mail.walk() if part.get_content_type() == "multipart/related"]
    assert len(related) == 1
    assert [part.get_content_type() for part in related[0].iter_parts()] == ["text/html", "image/png"]
    (invite,) = (part for part in mail.walk() if part.get_content_type() == "text/calendar")
    assert invite.get_param("method") == "REQUEST"


def test_each_recipient_gets_them(sent: Sent) -> None:
    """One row each, with the files in each."""
    EmailMessage(
        "Hi", "", to=["ada@example.com"], bcc=["bob@example.com"], attachments=[("a.png", PNG, "image/png")]
    ).send()
    for mail in sent():
        (part,) = mail.iter_attachments()
        assert isinstance(part, Parsed)
        assert (part.get_filename(), part.get_content()) == ("a.png", PNG)


def _several_parts(message: EmailMessage) -> None:
    parts = MIMEMultipart("mixed")
    parts.attach(MIMEText("one"))
    message.attach(parts)


def _two_lines(message: EmailMessage) -> None:
    message.attach("a\r\nBcc: eve@example.com", "x", "text/plain")


def _a_type_of_two_lines(message: EmailMessage) -> None:
    message.attach("a", b"x", "application/pdf\r\nBcc: eve@example.com")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_several_parts, r"attachments\[0\]: is multipart/mixed, several parts"),
        (_two_lines, r"attachments\[0\].filename: holds U\+000D"),
        (_a_type_of_two_lines, r"attachments\[0\].content_type: is no media type"),
    ],
)
def test_what_cannot_be_attached_is_refused_by_place(change: Callable[[Any], None], said: str) -> None:
    """As all that cannot be queued: nothing is, and views catch the error as they always did."""
    message = EmailMessage("Hi", "Thank you", to=["ada@example.com"])
    change(message)
    with pytest.raises(RefusedMessage, match=f"^{said}"):
        message.send()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM email_queue")
        assert cursor.fetchone() == (0,)


def test_parts_of_the_newer_kind_are_attached_too(sent: Sent) -> None:
    """email.message.MIMEPart, which Django 6 wants in place of MIMEBase."""
    from email.message import MIMEPart

    part = MIMEPart()
    part.set_content(PNG, "image", "png", disposition="inline", filename="logo.png", cid="<logo>")
    message = EmailMultiAlternatives("Hi", "x", to=["ada@example.com"])
    message.attach_alternative('<img src="cid:logo">', "text/html")
    message.attachments.append(part)  # attach() takes it from Django 6 on
    message.send()
    (mail,) = sent()
    assert [name for name, *_ in files_of(mail)] == ["logo.png"]
