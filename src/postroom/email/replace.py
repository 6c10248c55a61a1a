"""A dead letter that a person mends: another e-mail goes out in its place, and each names the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from postroom.database.audit import Actor, record
from postroom.database.connect import Database
from postroom.email.check import check_email
from postroom.errors import InvalidEmail, PostroomError

_NO_DEAD_LETTER = "PR002"


class NotDeadLetter(PostroomError):
    """
    It is no dead letter, or not any more: somebody else was faster.

    Args:
        status: What it is; None where there is no such e-mail.
    """

    def __init__(self, email_id: UUID, status: str | None) -> None:
        gone = f"there is no e-mail {email_id}: it may be gone by its retention"
        is_none = f"e-mail {email_id} is {status}, no dead letter: nothing was queued"
        super().__init__(gone if status is None else is_none)
        self.status = status


@dataclass(frozen=True, slots=True)
class Mended:
    """
    What a person has changed; None keeps what was there.

    Attributes:
        text: The plain part; empty has it made from the HTML.
    """

    to: str | None = None
    subject: str | None = field(default=None, repr=False)
    html: str | None = field(default=None, repr=False)
    text: str | None = field(default=None, repr=False)

    @property
    def changed(self) -> list[str]:
        """The names of what is not as it was."""
        return [name for name in ("to", "subject", "html", "text") if getattr(self, name) is not None]


async def read_mendable(database: Database, email_id: UUID) -> dict[str, Any]:
    """
    What can be changed of a dead letter: to, subject, html, text.

    Raises:
        NotDeadLetter: It is none.
    """
    row = await database.fetchrow(
        """
        SELECT email.status, email.to_email AS to, email.subject, email.html, email.text
        FROM public.email_queue AS email
        WHERE email.id = $1
        """,
        email_id,
    )
    if row is None or row["status"] != "dead_letter":
        raise NotDeadLetter(email_id, None if row is None else row["status"] or "none")
    return {name: row[name] for name in ("to", "subject", "html", "text")}


async def replace_dead(database: Database, email_id: UUID, mended: Mended, by: Actor) -> UUID:
    """
    Queue the mended e-mail and give the old one up, in one transaction.

    Returns:
        The new e-mail's id.

    Raises:
        InvalidEmail: It could never be sent.
        NotDeadLetter: It is no dead letter; nothing was queued.
        DatabaseUnavailable: It may be done: look at the old one before repeating it.
    """
    before = await read_mendable(database, email_id)
    after = {name: before[name] if (new := getattr(mended, name)) is None else new for name in before}
    if all((after[name] or "") == (before[name] or "") for name in before):
        raise InvalidEmail("e-mail", "nothing of it is changed; to send it as it is, retry it")
    accepted = check_email(**{**after, "text": after["text"] or None})
    try:
        async with database.transaction() as connection:
            new_id: UUID = await connection.fetchval(
                "SELECT postroom.replace_dead_email($1, $2, $3, $4, $5, $6)",
                email_id,
                None if mended.to is None else accepted.to,
                None if mended.subject is None else accepted.subject,
                None if mended.html is None else accepted.html,
                mended.text,
                by.name,
            )
            about = {"id": str(email_id), "new_id": str(new_id), "changed": mended.changed}
            await record(connection, by, "email.edit", about)
    except asyncpg.PostgresError as error:
        raise _explained(email_id, error) from error
    return new_id


def _explained(email_id: UUID, error: asyncpg.PostgresError) -> Exception:
    """What enqueue_email refuses of what is kept, such as an old caller's headers; or somebody was faster."""
    if error.sqlstate == _NO_DEAD_LETTER:
        status = str(error).rpartition(": ")[2]
        return NotDeadLetter(email_id, None if status == "there is none" else status)
    if str(error.sqlstate).startswith("22"):
        name, colon, problem = str(error).partition(": ")
        return InvalidEmail(name, problem) if colon else InvalidEmail("e-mail", name)
    return error
