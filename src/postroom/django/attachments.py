"""The attachments of Django's EmailMessage as files that go with an e-mail of the queue."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable
from email.message import Message
from email.utils import quote
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage

from postroom.email.attachments import Attachment
from postroom.errors import InvalidEmail

_LEFT_OUT = frozenset({"name", "boundary"})
"""Parameters of a type: the name stands with the disposition, a boundary is ours to choose."""


def attachments_of(message: EmailMessage) -> list[Attachment]:
    """
    What a message has in `attachments`: triples, and parts of the standard library's (MIMEBase, MIMEPart).

    Raises:
        InvalidEmail: One of them is several parts; its field is `attachments[2]`.
    """
    return list(_attachments(message))


def _attachments(message: EmailMessage) -> Iterable[Attachment]:
    charset = str(message.encoding or settings.DEFAULT_CHARSET)
    for place, given in enumerate(message.attachments):
        if isinstance(given, Message):
            yield _of_part(f"attachments[{place}]", given)
        else:
            yield _of_triple(*given, charset=charset)


def _of_triple(filename: Any, content: Any, mimetype: str | None = None, *, charset: str) -> Attachment:
    """filename, content, mimetype: as attach() and attach_file() have them."""
    if isinstance(content, EmailMessage):
        content = content.message()
    if isinstance(content, Message):
        content = content.as_bytes()
    elif isinstance(content, str):
        content = content.encode(charset)
        if mimetype is not None and mimetype.startswith("text/") and "charset=" not in mimetype:
            mimetype = f"{mimetype}; charset={charset}"
    return Attachment(_filename(filename, mimetype), content, mimetype)


def _of_part(place: str, part: Message) -> Attachment:
    kind = part.get_content_type()
    if part.is_multipart() and kind == "message/rfc822":
        content: Any = part.get_payload(0).as_bytes()  # type: ignore[union-attr]
    elif part.is_multipart():
        raise InvalidEmail(place, f"is {kind}, several parts: attach each file by itself")
    else:
        content = part.get_payload(decode=True)
    written = [
        f'; {name}="{quote(value)}"'
        for name, value in part.get_params(failobj=[], unquote=True)[1:]
        if name.lower() not in _LEFT_OUT and isinstance(value, str) and value.isascii()
    ]
    content_id = str(part.get("Content-ID", "")).strip() or None
    return Attachment(_filename(part.get_filename(), kind), content, kind + "".join(written), content_id)


def _filename(filename: Any, kind: str | None) -> str:
    """A file without a name gets one: what a recipient saves must be called something."""
    if filename:
        return str(filename)
    return f"attachment{mimetypes.guess_extension((kind or '').partition(';')[0]) or '.bin'}"
