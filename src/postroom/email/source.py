"""An e-mail of the queue as it goes out: what stands in its row, rendered as at each attempt."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from postroom.database.connect import Database
from postroom.email.attachments import Listed, list_files
from postroom.email.mime import rendered
from postroom.email.store import EmailStore, email_of
from postroom.errors import PermanentFailure

_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class EmailSource:
    """
    The bytes, or why there are none.

    Attributes:
        content: As SMTP takes them (RFC 5322), dots not stuffed; a transport by HTTP is given the same parts.
        refused: Why the row can never be sent; then there is no content.
        files: Its attachments.
    """

    content: bytes = field(repr=False, default=b"")
    refused: str | None = None
    files: list[Listed] = field(default_factory=list)


async def read_source(database: Database, email_id: UUID, sender: str | None) -> EmailSource | None:
    """
    Render one e-mail, whatever its status (docs/decisions/0006: the same row gives the same bytes).

    Args:
        sender: POSTROOM_FROM, for a row that was never claimed and names no sender.

    Returns:
        None where there is no such e-mail.
    """
    row = await database.fetchrow(
        """
        SELECT
            item.id, item.to_email, item.subject, COALESCE(item.from_email, $2) AS from_email, item.reply_to,
            CASE WHEN size.bytes <= 52428800 THEN item.html END AS html,
            CASE WHEN size.bytes <= 52428800 THEN item.text END AS text,
            item.headers::text AS headers, item.created_at, item.attempts, item.max_attempts, item.email_type,
            postroom.attached_bytes(item.attachments) AS attached
        FROM public.email_queue AS item
        CROSS JOIN LATERAL (
            SELECT octet_length(item.html) + COALESCE(octet_length(item.text), 0) AS bytes
        ) AS size
        WHERE item.id = $1
        """,
        email_id,
        sender,
        deadline_s=_DEADLINE_S,
    )
    if row is None:
        return None
    email = email_of(row)
    try:
        email = await EmailStore(database).with_attachments(email)
        return EmailSource((await rendered(email)).content, None, list_files(email.attachments))
    except PermanentFailure as error:
        return EmailSource(refused=str(error), files=list_files(email.attachments))
