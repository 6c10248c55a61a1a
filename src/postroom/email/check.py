"""What every door asks of an e-mail before it is stored: one check for HTTP, CLI and Python."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from postroom.email.address import check_address, check_text, check_unicode, kind_of
from postroom.email.attachments import AttachedFile, check_attachments
from postroom.email.headers import check_headers, check_line, check_subject
from postroom.errors import InvalidEmail

BODY_BYTES_MAX = 20 * 1024 * 1024
METADATA_BYTES_MAX = 1024 * 1024
NAME_CHARACTERS_MAX = 255
"""Of email_type and idempotency_key."""

# A NUL in JSON: an odd number of backslashes before u0000.
_JSON_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(slots=True)  # not frozen: that sets each field by object.__setattr__, which doubles the time
class AcceptedEmail:
    """An e-mail that can be stored and sent, its addresses in their one written form."""

    to: str
    subject: str = field(repr=False)
    html: str = field(repr=False)
    text: str | None = field(repr=False)
    from_email: str | None
    reply_to: str | None
    headers: dict[str, str] | None = field(repr=False)
    metadata: dict[str, object] = field(repr=False)
    email_type: str | None
    idempotency_key: str | None
    attachments: list[AttachedFile] | None = field(default=None, repr=False)

    @property
    def attached(self) -> int | None:
        """The characters of its attachments in base64, about; None where there are none."""
        return sum(file.size for file in self.attachments) * 4 // 3 if self.attachments else None

    @property
    def documents(self) -> list[dict[str, str]] | None:
        """Its attachments as a row has them; None where there are none."""
        return [file.document for file in self.attachments] if self.attachments else None


def check_email(
    *,
    to: object,
    subject: object,
    html: object = "",
    text: object = None,
    from_email: object = None,
    reply_to: object = None,
    headers: object = None,
    metadata: object = None,
    email_type: object = None,
    idempotency_key: object = None,
    attachments: object = None,
    may_be_empty: bool = False,
) -> AcceptedEmail:
    """
    Check all that a caller gives for one e-mail; values of any type may come in.

    Args:
        may_be_empty: Whether it may have neither html nor text.

    Returns:
        The same values, addresses in their one written form, None where a value was not given.

    Raises:
        InvalidEmail: It can never be stored or sent. Its `field` is one of `to`, `subject`,
            `html`, `text`, `from`, `reply_to`, `headers` (or `headers: NAME`), `metadata`,
            `email_type`, `idempotency_key`, `attachments` (or `attachments[0].content`).
    """
    body_html = _check_body("html", html)
    body_text = None if text is None else _check_body("text", text)
    if not may_be_empty and not body_html.strip() and not (body_text or "").strip():
        raise InvalidEmail("html", "is empty, and so is text; give one of them")
    body_bytes = len(body_html) if body_html.isascii() else len(body_html.encode())
    if body_text:
        body_bytes += len(body_text.encode())
    if body_bytes > BODY_BYTES_MAX:
        raise InvalidEmail(
            "html", f"has with text {body_bytes:,} bytes; at most {BODY_BYTES_MAX:,} are allowed"
        )
    return AcceptedEmail(
        to=check_address("to", to),
        subject=_check_subject(subject),
        html=body_html,
        text=body_text,
        from_email=_check_sender("from", from_email),
        reply_to=_check_sender("reply_to", reply_to),
        headers=check_headers(headers) or None,
        metadata=_check_metadata(metadata),
        email_type=_check_name("email_type", email_type),
        idempotency_key=_check_name("idempotency_key", idempotency_key),
        attachments=check_attachments(attachments) or None,
    )


def _check_subject(subject: object) -> str:
    if not isinstance(subject, str):
        raise InvalidEmail("subject", f"must be a text, not {kind_of(subject)}")
    return check_subject(subject)


def _check_sender(name: str, address: object) -> str | None:
    """The sender or where replies go; empty means not given, as HTML forms and old callers have it."""
    if address is None or address == "":
        return None
    return check_address(name, address)


def _check_body(name: str, body: object) -> str:
    if not isinstance(body, str):
        raise InvalidEmail(name, f"must be a text, not {kind_of(body)}")
    return check_text(name, body)


def _check_name(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidEmail(name, f"must be a text, not {kind_of(value)}")
    if len(value) > NAME_CHARACTERS_MAX:
        raise InvalidEmail(
            name, f"is {len(value):,} characters long; at most {NAME_CHARACTERS_MAX} are allowed"
        )
    if not value:
        raise InvalidEmail(name, "is empty; leave it out or give a text")
    return check_line(name, value)


def _check_metadata(metadata: object) -> dict[str, object]:
    """What jsonb can hold: no NUL, no NaN, no half characters."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidEmail("metadata", f"must be an object, not {kind_of(metadata)}")
    if any(not isinstance(key, str) for key in metadata):
        raise InvalidEmail("metadata", "has a key that is no text")
    try:
        written = json.dumps(dict(metadata), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEmail("metadata", f"cannot be written as JSON: {error}") from None
    if _JSON_NUL.search(written):
        raise InvalidEmail("metadata", "holds a NUL; take it out")
    size = len(check_unicode("metadata", written).encode())
    if size > METADATA_BYTES_MAX:
        raise InvalidEmail(
            "metadata", f"has {size:,} bytes as JSON; at most {METADATA_BYTES_MAX:,} are allowed"
        )
    return dict(metadata)
