"""Django's EmailMessage as e-mails of the queue: one to each recipient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import django
from django.core.mail import EmailMessage, EmailMultiAlternatives

from postroom.django.attachments import attachments_of
from postroom.email.address import parse_mailbox
from postroom.email.enqueue import Email, QueueableEmail, check
from postroom.errors import InvalidEmail

if django.VERSION < (6,):
    from django.core.mail import BadHeaderError
else:
    BadHeaderError = ValueError

OWN_ATTRIBUTES = ("email_type", "idempotency_key", "max_attempts", "metadata", "priority", "send_at")
"""What a message may have as attributes of these names; `message.send_at = …`."""

# Where a subclass makes its MIME itself, as those do that sign or encrypt, the rows would lack what it adds.
_DJANGOS_OWN = {EmailMessage.message, EmailMultiAlternatives.message}


class RefusedMessage(InvalidEmail, BadHeaderError):
    """
    A message that cannot be queued; the text names what is wrong with it.

    It is a ValueError, and a BadHeaderError as long as Django has one: that is what views catch.
    """


def checked_emails(message: EmailMessage) -> list[QueueableEmail]:
    """
    The e-mails that a message stands for, checked.

    Raises:
        RefusedMessage: It can never be stored or sent, or asks for what postroom does not do.
    """
    try:
        return [check(email, may_be_empty=True) for email in _emails(message)]
    except InvalidEmail as error:
        raise RefusedMessage(error.field, error.problem) from error.__cause__


def _emails(message: EmailMessage) -> Iterable[Email]:
    if type(message).message not in _DJANGOS_OWN:
        raise InvalidEmail(
            "message", f"{type(message).__name__} makes its MIME by itself, which a row cannot hold"
        )
    html, text = _bodies(message)
    attachments = attachments_of(message)
    headers, reply_to = _headers(message)
    given = {name: getattr(message, name) for name in OWN_ATTRIBUTES if getattr(message, name, None)}
    key = given.pop("idempotency_key", None)
    recipients = _recipients(message)
    for recipient in recipients:
        yield Email(
            to=recipient,
            subject=str(message.subject),
            html=html,
            text=text,
            from_email=str(message.from_email),
            reply_to=reply_to,
            headers=headers,
            attachments=attachments,
            idempotency_key=f"{key}:{recipient}" if key and len(recipients) > 1 else key,
            **given,
        )


def _recipients(message: EmailMessage) -> list[str]:
    """Addresses alone, each once; a row's address has no display name."""
    mailboxes = [
        parse_mailbox(field, str(recipient), named=True).address
        for field in ("to", "cc", "bcc")
        for recipient in getattr(message, field)
        if recipient
    ]
    return list(dict.fromkeys(mailboxes))


def _bodies(message: EmailMessage) -> tuple[str, str | None]:
    """html and text."""
    body = str(message.body)
    alternatives = list(getattr(message, "alternatives", ()))
    if message.content_subtype == "html" and not alternatives:
        return body, None
    if message.content_subtype != "plain":
        raise InvalidEmail("content_subtype", f"{message.content_subtype!r} is not known: plain or html")
    html = ""
    for content, mimetype in alternatives:
        if mimetype != "text/html" or not isinstance(content, str):
            raise InvalidEmail("alternatives", f"{mimetype} cannot be queued: only one of text/html can")
        if html:
            raise InvalidEmail("alternatives", "there are two of text/html: only one can be queued")
        html = content
    return html, body


def _headers(message: EmailMessage) -> tuple[dict[str, str], str | None]:
    """The further headers, and Reply-To, wherever it was given."""
    headers = {str(name): str(value) for name, value in message.extra_headers.items()}
    reply_to = [str(address) for address in message.reply_to if address]
    for name in [name for name in headers if name.lower() == "reply-to"]:
        reply_to = [headers.pop(name)]
    if len(reply_to) > 1:
        raise InvalidEmail("reply_to", "names several addresses; an e-mail of postroom's has one")
    return headers, next(iter(reply_to), None)


def place_of(error: RefusedMessage, place: int, of: int) -> RefusedMessage:
    """The error of one of many messages, its place in front: `messages[3].to: …`."""
    return error if of == 1 else RefusedMessage(f"messages[{place}].{error.field}", error.problem)


def ids_of(found: list[Any], counts: Iterable[int]) -> Iterable[list[Any]]:
    """What was found for the e-mails of several messages, by message."""
    start = 0
    for count in counts:
        yield found[start : start + count]
        start += count
