"""The files that go with some of the mails: what each holds follows from its mail's token."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from email import message_from_bytes, policy
from email.message import EmailMessage

from postroom import Attachment

FILE_BYTES = 20_000


def file_of(token: str) -> Attachment | None:
    """What goes with a mail that is queued by a door that takes files: with each third."""
    if int(token[1:]) % 3:
        return None
    return Attachment(f"{token}.bin", hashlib.shake_256(token.encode()).digest(FILE_BYTES))


def row_of(token: str) -> list[dict[str, str]] | None:
    """The same as a row and HTTP have it."""
    file = file_of(token)
    return (
        None if file is None else [{"filename": file.filename, "content": b64encode(file.content).decode()}]
    )


def digest_of(file: Attachment | None) -> str:
    """What a receiver must find: empty without a file."""
    return "" if file is None else hashlib.sha256(file.filename.encode() + file.content).hexdigest()


def received_digest(content: bytes) -> str:
    """The same of a mail as it came; of the files that it has, in their order."""
    if b"multipart/mixed" not in content.partition(b"\r\n\r\n")[0]:
        return ""
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    digest = hashlib.sha256()
    for part in message.iter_attachments():
        payload = part.get_payload(decode=True)
        digest.update(str(part.get_filename()).encode() + (payload if isinstance(payload, bytes) else b"?"))
    return digest.hexdigest()
