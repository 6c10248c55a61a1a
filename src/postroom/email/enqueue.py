"""
Queueing e-mail: what a program hands over, checked at the door, and the one statement that stores it.

The statement calls public.enqueue_email, so Python promises what SQL does. It runs on a connection of
the house or on the caller's own, inside the caller's transaction, whichever driver that is.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from postroom.database.connect import Database
from postroom.email.address import kind_of
from postroom.email.check import AcceptedEmail, check_email
from postroom.email.store import json_text
from postroom.errors import InvalidEmail, PostroomError, SchemaError
from postroom.failpoints import reach

EMAILS_MAX = 10_000
"""E-mails in one call."""

STATEMENT_EMAILS_MAX = 500
STATEMENT_CHARACTERS_MAX = 8 * 1024 * 1024
"""What one statement holds at most; further ones follow in the same transaction."""

INTEGER_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Email:
    """
    One e-mail to be queued, to one recipient.

    Attributes:
        to: One address.
        html: May be left out where there is a text.
        text: The plain part; made from html where there is none.
        from_email: `a@b.c` or `Name <a@b.c>`; POSTROOM_FROM where there is none.
        headers: Further headers, such as `{"List-Unsubscribe": "…"}`.
        metadata: What the application wants to find in the row; never sent.
        email_type: A word of the application's for this kind of e-mail.
        idempotency_key: The same key gives the id of the first e-mail, as long as its row exists.
        send_at: Not before this moment; it must have a time zone.
        priority: Higher goes first among what is due.
        max_attempts: 6 where there is none.
    """

    to: str
    subject: str = field(repr=False)
    html: str = field(default="", repr=False)
    text: str | None = field(default=None, repr=False)
    from_email: str | None = None
    reply_to: str | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)
    email_type: str | None = None
    idempotency_key: str | None = None
    send_at: datetime | None = None
    priority: int = 0
    max_attempts: int | None = None

    @classmethod
    def of(cls, fields: Email | Mapping[str, Any]) -> Email:
        """
        An e-mail from a dictionary with the names of these attributes; `from` may stand for `from_email`.

        Raises:
            InvalidEmail: A name is unknown or missing.
        """
        if isinstance(fields, Email):
            return fields
        if not isinstance(fields, Mapping):
            raise InvalidEmail("email", f"must be an Email or a dictionary, not {kind_of(fields)}")
        given = dict(fields)
        if "from" in given:
            given["from_email"] = given.pop("from")
        known = [attribute.name for attribute in fields_of(cls)]
        for name in given:
            if name not in known:
                raise InvalidEmail(str(name)[:80], f"is no field of an e-mail; there are {', '.join(known)}")
        for name in ("to", "subject"):
            if name not in given:
                raise InvalidEmail(name, "is missing")
        return cls(**given)


@dataclass(frozen=True, slots=True)
class QueueableEmail:
    """An e-mail that was checked, with when and how it is to go."""

    accepted: AcceptedEmail
    send_at: str | None = None
    priority: int = 0
    max_attempts: int | None = None


Batch = list[tuple[int, QueueableEmail]]
"""E-mails of one statement, each with its place in the call."""


def check(email: Email) -> QueueableEmail:
    """
    Check one e-mail at the door.

    Raises:
        InvalidEmail: It can never be stored or sent; the error names the field.
    """
    accepted = check_email(
        to=email.to,
        subject=email.subject,
        html=email.html,
        text=email.text,
        from_email=email.from_email,
        reply_to=email.reply_to,
        headers=email.headers,
        metadata=email.metadata,
        email_type=email.email_type,
        idempotency_key=email.idempotency_key,
    )
    return QueueableEmail(
        accepted,
        _moment("send_at", email.send_at),
        _integer("priority", email.priority, -INTEGER_MAX),
        None if email.max_attempts is None else _integer("max_attempts", email.max_attempts, 1),
    )


def check_many(emails: Sequence[Email | Mapping[str, Any]]) -> list[QueueableEmail]:
    """
    Check e-mails before any of them is stored.

    Raises:
        InvalidEmail: One of them can never be sent, or there are too many; its field says which.
    """
    if len(emails) > EMAILS_MAX:
        raise InvalidEmail("emails", f"are {len(emails):,}; at most {EMAILS_MAX:,} go in one call")
    checked = []
    for place, email in enumerate(emails):
        try:
            checked.append(check(Email.of(email)))
        except InvalidEmail as error:
            raise InvalidEmail(f"emails[{place}].{error.field}", error.problem) from None
    return checked


async def enqueue(database: Database, emails: Sequence[QueueableEmail]) -> list[UUID]:
    """
    Queue e-mails in a transaction of the house: all of them, or none.

    Returns:
        Their ids, in their order.

    Raises:
        InvalidEmail: The database refuses a value.
        SchemaError: The database is not migrated.
        DatabaseUnavailable: Nothing is known to be queued; repeat it, with the same idempotency keys.
    """
    batches = _batches(emails)
    reach("enqueue.before")
    try:
        if len(batches) == 1:
            ids = _ids(await database.fetch(_ASYNCPG_SQL, *_columns(batches[0])))
        else:
            async with database.transaction() as connection:
                ids = _ids(await _run_asyncpg(connection, batches))
    except asyncpg.PostgresError as error:
        raise _explained(error) from error
    reach("enqueue.after")
    return ids


async def enqueue_within(connection: object, emails: Sequence[QueueableEmail]) -> list[UUID]:
    """
    Queue e-mails in the caller's own transaction: they go out if it commits.

    Args:
        connection: Of asyncpg, or of psycopg 3 (sync or async). A sync one is used in a thread, so that
            the event loop goes on; the caller must not use it meanwhile.

    Raises:
        InvalidEmail, SchemaError: As enqueue().
        TypeError: It is another kind of connection.
        Errors of the driver: The transaction is the caller's, and so is what ends it.
    """
    batches = _batches(emails)
    psycopg: Any = sys.modules.get("psycopg")  # where nobody has imported it, nobody has a connection of it
    try:
        if isinstance(connection, asyncpg.Connection):
            return _ids(await _run_asyncpg(connection, batches))
        if psycopg is not None and isinstance(connection, psycopg.AsyncConnection):
            return _ids(await _run_psycopg_async(psycopg, connection, batches))
        if psycopg is not None and isinstance(connection, psycopg.Connection):
            return _ids(await asyncio.to_thread(_run_psycopg, psycopg, connection, batches))
    except Exception as error:
        if getattr(error, "sqlstate", None) is None:
            raise
        raise _explained(error) from error
    raise TypeError(
        f"connection= takes a connection of asyncpg or psycopg 3, not {type(connection).__qualname__}"
    )


async def _run_asyncpg(connection: Any, batches: Sequence[Batch]) -> list[Any]:
    return [row for batch in batches for row in await connection.fetch(_ASYNCPG_SQL, *_columns(batch))]


# Not connection.cursor(): the caller's connection may make cursors and rows of another kind.


async def _run_psycopg_async(psycopg: Any, connection: Any, batches: Sequence[Batch]) -> list[Any]:
    rows: list[Any] = []
    async with psycopg.AsyncCursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
        for batch in batches:
            await cursor.execute(_PSYCOPG_SQL, _columns(batch))
            rows += await cursor.fetchall()
    return rows


def _run_psycopg(psycopg: Any, connection: Any, batches: Sequence[Batch]) -> list[Any]:
    rows: list[Any] = []
    with psycopg.Cursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
        for batch in batches:
            cursor.execute(_PSYCOPG_SQL, _columns(batch))
            rows += cursor.fetchall()
    return rows


# The names of enqueue_email's arguments and the types that their columns are sent as. All but the integers go
# as text, whatever codecs the caller has given to his connection.
_ARGUMENTS = {
    "to_email": ("text", "text"),
    "subject": ("text", "text"),
    "html": ("text", "text"),
    "from_email": ("text", "text"),
    "reply_to": ("text", "text"),
    "email_type": ("text", "text"),
    "metadata": ("text", "jsonb"),
    "idempotency_key": ("text", "text"),
    "send_at": ("text", "timestamptz"),
    "priority": ("integer", "integer"),
    "max_attempts": ("integer", "integer"),
    "text": ("text", "text"),
    "headers": ("text", "jsonb"),
}


def _statement(places: Sequence[str]) -> str:
    *columns, place = places
    arrays = ", ".join(
        f"{column}::{sent}[]" for column, (sent, _) in zip(columns, _ARGUMENTS.values(), strict=True)
    )
    arguments = ", ".join(f"{name} => email.{name}::{kind}" for name, (_, kind) in _ARGUMENTS.items())
    lines = (
        f"SELECT email.place, public.enqueue_email({arguments})::text",
        "FROM (",
        # A subquery with an ORDER BY is run as it stands, so the function is called in that order.
        f"    SELECT * FROM unnest({arrays}, {place}::integer[])",  # noqa: S608 - the names are ours
        f"        WITH ORDINALITY AS given ({', '.join(_ARGUMENTS)}, place, turn)",
        "    ORDER BY given.turn",
        ") AS email",
    )
    return "\n".join(lines)


_ASYNCPG_SQL = _statement([f"${place}" for place in range(1, len(_ARGUMENTS) + 2)])
_PSYCOPG_SQL = _statement(["%s"] * (len(_ARGUMENTS) + 1))


def _columns(batch: Batch) -> list[list[Any]]:
    """One list an argument of enqueue_email, in the order of _ARGUMENTS, and the places."""
    rows = [
        (
            email.accepted.to,
            email.accepted.subject,
            email.accepted.html,
            email.accepted.from_email,
            email.accepted.reply_to,
            email.accepted.email_type,
            json_text(email.accepted.metadata),
            email.accepted.idempotency_key,
            email.send_at,
            email.priority,
            email.max_attempts,
            email.accepted.text,
            json_text(email.accepted.headers),
            place,
        )
        for place, email in batch
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _ids(rows: Sequence[Any]) -> list[UUID]:
    return [UUID(row[1]) for row in sorted(rows, key=lambda row: row[0])]


def _batches(emails: Sequence[QueueableEmail]) -> list[Batch]:
    """
    The e-mails with their places, in statements of a bounded size.

    They are sorted by key: a key that another transaction holds is waited for, and two calls that wait
    in one order cannot wait for each other.
    """
    numbered = sorted(enumerate(emails), key=lambda pair: (pair[1].accepted.idempotency_key or "", pair[0]))
    batches: list[Batch] = []
    characters = 0
    for place, email in numbered:
        size = len(email.accepted.html) + len(email.accepted.text or "")
        is_full = batches and len(batches[-1]) >= STATEMENT_EMAILS_MAX
        if not batches or is_full or characters + size > STATEMENT_CHARACTERS_MAX:
            batches.append([])
            characters = 0
        batches[-1].append((place, email))
        characters += size
    return batches


def _moment(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidEmail(name, f"must be a datetime, not {kind_of(value)}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidEmail(name, "has no time zone; give one, as datetime.now(UTC) has it")
    return value.isoformat()


def _integer(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidEmail(name, f"must be a whole number, not {kind_of(value)}")
    if not least <= value <= INTEGER_MAX:
        raise InvalidEmail(name, f"must be from {least:,} to {INTEGER_MAX:,}")
    return value


def _explained(error: Exception) -> Exception:
    """What the database says, as an error of ours where it says what to do; else the driver's own."""
    state = str(getattr(error, "sqlstate", None) or "")
    text = str(error).partition("\n")[0]
    if state in ("42883", "42P01", "3F000"):
        return SchemaError(f"the database is not up to date ({text}): run `postroom migrate`")
    if state.startswith("22"):
        name, colon, problem = text.partition(": ")
        return InvalidEmail(name, problem) if colon else InvalidEmail("email", text)
    if state == "42501":
        return PostroomError(f"{text}: `postroom migrate --app-role NAME` lets a role queue e-mail")
    return error
