"""
Queueing e-mail: what a program hands over, checked at the door, and the one statement that stores it.

The statement calls public.enqueue_emails, so Python promises what SQL does. It runs on a connection of
the house or on the caller's own, inside the caller's transaction, whichever driver that is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from datetime import datetime
from operator import attrgetter
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from postroom.database.connect import DEADLINE_S, Database
from postroom.database.sqlstate import driver_error, sqlstate_of
from postroom.email import sqlalchemy
from postroom.email.address import kind_of
from postroom.email.attachments import Attachment
from postroom.email.check import AcceptedEmail, check_email
from postroom.email.in_thread import Use, run_in_thread
from postroom.errors import InvalidEmail, PostroomError, SchemaError
from postroom.failpoints import reach

EMAILS_MAX = 10_000
"""E-mails in one call."""

STATEMENT_CHARACTERS_MAX = 8 * 1024 * 1024
"""What one statement holds at most, as JSON; further ones follow in the same transaction."""

CHARACTERS_A_SECOND = 1_000_000
"""What a database that is busy with others takes at least; one that is not takes 25 million."""

INTEGER_MAX = 2**31 - 1

_PLACE = re.compile(r"^emails\[\d+\]\.")


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
        attachments: Files that go with it: Attachment objects, or objects as Resend's API has them.
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
    attachments: Sequence[Attachment | Mapping[str, Any]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, fields: Email | Mapping[str, Any]) -> Email:
        """
        An e-mail from a dictionary with the names of these attributes; `from` may stand for `from_email`.

        Raises:
            InvalidEmail: A name is unknown or missing.
        """
        return fields if isinstance(fields, Email) else cls(**_named(fields))


_FIELDS = {attribute.name: None for attribute in fields_of(Email)}
_given_fields = attrgetter(*_FIELDS)


@dataclass(slots=True)  # not frozen: that sets each field by object.__setattr__, which doubles the time
class QueueableEmail:
    """An e-mail that was checked, with when and how it is to go."""

    accepted: AcceptedEmail
    send_at: str | None = None
    priority: int = 0
    max_attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """
    The e-mails of one statement.

    Attributes:
        places: Their places in the call.
        documents: Each as a JSON object; or the e-mail, where its attachments make that large.
    """

    places: list[int]
    documents: list[str | QueueableEmail] = field(repr=False)

    @property
    def json(self) -> str:
        """What enqueue_emails takes. Made anew each time, so that no two statements are held at once."""
        written = (each if isinstance(each, str) else _document(each) for each in self.documents)
        return f"[{','.join(written)}]"


def check(email: Email, *, may_be_empty: bool = False) -> QueueableEmail:
    """
    Check one e-mail at the door.

    Args:
        may_be_empty: Whether it may have a subject and nothing else.

    Raises:
        InvalidEmail: It can never be stored or sent; the error names the field.
    """
    return _checked(dict(zip(_FIELDS, _given_fields(email), strict=True)), may_be_empty=may_be_empty)


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
            checked.append(check(email) if isinstance(email, Email) else _checked(_named(email)))
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
            written = batches[0].json
            answers: Answers = [await database.fetch(_ASYNCPG_SQL, written, deadline_s=_deadline_s(written))]
        else:
            async with database.transaction() as connection:
                answers = [
                    await connection.fetch(
                        _ASYNCPG_SQL, (written := batch.json), timeout=_deadline_s(written)
                    )
                    for batch in batches
                ]
    except asyncpg.PostgresError as error:
        raise _explained(error, batches) from error
    reach("enqueue.after")
    return _in_order(batches, answers)


async def enqueue_within(connection: object, emails: Sequence[QueueableEmail]) -> list[UUID]:
    """
    Queue e-mails in the caller's own transaction: they go out if it commits.

    Args:
        connection: Of asyncpg, or of psycopg 3 (sync or async), or a session or connection of SQLAlchemy (the
            same). A sync one is used in a thread, so that the event loop goes on; the caller must not use
            it meanwhile. Where he is cancelled, so is the statement, and it is his again.

    Raises:
        InvalidEmail, SchemaError: As enqueue().
        TypeError: It is another kind of connection.
        Errors of the driver: The transaction is the caller's, and so is what ends it.
    """
    batches = _batches(emails)
    psycopg: Any = sys.modules.get("psycopg")  # where nobody has imported it, nobody has a connection of it
    try:
        if isinstance(connection, asyncpg.Connection):
            return _in_order(batches, await _run_asyncpg(connection, batches))
        if psycopg is not None and isinstance(connection, psycopg.AsyncConnection):
            return _in_order(batches, await _run_psycopg_async(psycopg, connection, batches))
        if psycopg is not None and isinstance(connection, psycopg.Connection):
            return _in_order(batches, await run_in_thread(_run_psycopg, psycopg, connection, batches))
        if sqlalchemy.is_one(connection):
            return _in_order(batches, await sqlalchemy.run(connection, _STATEMENT, batches))
    except Exception as error:
        told = _explained(error, batches)
        if told is error:
            raise
        raise told from error
    raise TypeError(
        "connection= takes a connection of asyncpg or psycopg 3, or a session or connection of SQLAlchemy, "
        f"not {type(connection).__qualname__}"
    )


def enqueue_by(
    fetch: Callable[[str, list[str]], Sequence[Any]],
    emails: Sequence[QueueableEmail],
    *,
    together: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[UUID]:
    """
    Queue e-mails in the caller's own transaction, by the function that runs his SQL.

    Args:
        fetch: Runs a statement with %s where its values go, and gives its rows.
        together: Makes a transaction for several statements, where the caller may have none.

    Raises:
        InvalidEmail, SchemaError: As enqueue().
        Errors of fetch: The transaction is the caller's, and so is what ends it.
    """
    batches = _batches(emails)
    try:
        with together() if len(batches) > 1 else nullcontext():
            return _in_order(batches, [fetch(_PSYCOPG_SQL, [batch.json]) for batch in batches])
    except Exception as error:
        told = _explained(error, batches)
        if told is error:
            raise
        raise told from error


Answers = list[Sequence[Any]]
"""Of each statement its one row: the ids, in the order of its e-mails."""


async def _run_asyncpg(connection: Any, batches: Sequence[Batch]) -> Answers:
    return [await connection.fetch(_ASYNCPG_SQL, batch.json) for batch in batches]


# Not connection.cursor(): the caller's connection may make cursors and rows of another kind.


async def _run_psycopg_async(psycopg: Any, connection: Any, batches: Sequence[Batch]) -> Answers:
    answers: Answers = []
    async with psycopg.AsyncCursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
        for batch in batches:
            await cursor.execute(_PSYCOPG_SQL, [batch.json])
            answers.append(await cursor.fetchall())
    return answers


def _run_psycopg(use: Use, psycopg: Any, connection: Any, batches: Sequence[Batch]) -> Answers:
    answers: Answers = []
    use(connection)
    with psycopg.Cursor(connection, row_factory=psycopg.rows.tuple_row) as cursor:
        for batch in batches:
            cursor.execute(_PSYCOPG_SQL, [batch.json])
            answers.append(cursor.fetchall())
    return answers


# As text, whatever codecs the caller has given to his connection.
_STATEMENT = "SELECT public.enqueue_emails({}::text::jsonb)::text[]"
_ASYNCPG_SQL = _STATEMENT.format("$1")
_PSYCOPG_SQL = _STATEMENT.format("%s")


def _named(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a dictionary gives, by Email's names."""
    if not isinstance(fields, Mapping):
        raise InvalidEmail("email", f"must be an Email or a dictionary, not {kind_of(fields)}")
    given = dict(fields)
    if "from" in given:
        given["from_email"] = given.pop("from")
    if not given.keys() <= _FIELDS.keys():
        name = next(name for name in given if name not in _FIELDS)
        raise InvalidEmail(str(name)[:80], f"is no field of an e-mail; there are {', '.join(_FIELDS)}")
    for name in ("to", "subject"):
        if name not in given:
            raise InvalidEmail(name, "is missing")
    return given


def _checked(given: dict[str, Any], *, may_be_empty: bool = False) -> QueueableEmail:
    send_at, priority = given.pop("send_at", None), given.pop("priority", 0)
    max_attempts = given.pop("max_attempts", None)
    return QueueableEmail(
        check_email(**given, may_be_empty=may_be_empty),
        None if send_at is None else _moment("send_at", send_at),
        _integer("priority", priority, -INTEGER_MAX),
        None if max_attempts is None else _integer("max_attempts", max_attempts, 1),
    )


def _document(email: QueueableEmail) -> str:
    """One e-mail as JSON, with the names of enqueue_email's arguments; what was not given is left out."""
    accepted = email.accepted
    given = {
        "to_email": accepted.to,
        "subject": accepted.subject,
        "html": accepted.html,
        "from_email": accepted.from_email,
        "reply_to": accepted.reply_to,
        "email_type": accepted.email_type,
        "metadata": accepted.metadata or None,
        "idempotency_key": accepted.idempotency_key,
        "send_at": email.send_at,
        "priority": email.priority or None,
        "max_attempts": email.max_attempts,
        "text": accepted.text,
        "headers": accepted.headers,
        "attachments": accepted.documents,
    }
    return _to_json({name: value for name, value in given.items() if value is not None})


def _to_json(document: dict[str, Any]) -> str:
    try:
        return orjson.dumps(document).decode()
    except TypeError:  # metadata may have numbers of more than 64 bits, and keys that are none
        return json.dumps(document, ensure_ascii=False)


def _batches(emails: Sequence[QueueableEmail]) -> list[Batch]:
    """
    The e-mails as JSON, in statements of a bounded size: nearly always one.

    The database stores those of a statement by key, so where there are several they are sorted by key before:
    a key that another transaction holds is waited for, and two calls that wait in one order cannot wait for
    each other.
    """
    documents = [email if email.accepted.attachments else _document(email) for email in emails]
    sizes = [len(each) if isinstance(each, str) else _size(each) for each in documents]
    if sum(sizes) <= STATEMENT_CHARACTERS_MAX:
        return [Batch(list(range(len(documents))), documents)]
    batches = [Batch([], [])]
    characters = 0
    for place in sorted(range(len(emails)), key=lambda place: emails[place].accepted.idempotency_key or ""):
        size = sizes[place]
        if batches[-1].places and characters + size > STATEMENT_CHARACTERS_MAX:
            batches.append(Batch([], []))
            characters = 0
        batches[-1].places.append(place)
        batches[-1].documents.append(documents[place])
        characters += size
    return batches


def _size(email: QueueableEmail) -> int:
    """Its characters as JSON, about."""
    accepted = email.accepted
    return len(accepted.html) + len(accepted.text or "") + (accepted.attached or 0)


def _deadline_s(written: str) -> float:
    return DEADLINE_S + len(written) / CHARACTERS_A_SECOND


def _in_order(batches: Sequence[Batch], answers: Answers) -> list[UUID]:
    ids: dict[int, UUID] = {}
    for batch, rows in zip(batches, answers, strict=True):
        ids.update(zip(batch.places, map(UUID, rows[0][0]), strict=True))
    return [ids[place] for place in range(len(ids))]


def _moment(name: str, value: object) -> str:
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


def _explained(error: Exception, batches: Sequence[Batch]) -> Exception:
    """What the database says, as an error of ours where it says what to do; else the same error."""
    state = sqlstate_of(error)
    text = str(driver_error(error)).partition("\n")[0]
    if state in ("42883", "42P01", "3F000"):
        return SchemaError(f"the database is not up to date ({text}): run `postroom migrate`")
    if state.startswith("22"):
        # The place is that in the statement: the caller's where there is one statement for many e-mails.
        if len(batches) > 1 or len(batches[0].places) == 1:
            text = _PLACE.sub("", text)
        name, colon, problem = text.partition(": ")
        return InvalidEmail(name, problem) if colon else InvalidEmail("email", text)
    if state in ("42804", "428C9") and '"attachments"' in text:  # of another type, or generated
        return InvalidEmail("attachments", f"email_queue of this database takes none: {text}")
    if state == "42501":
        return PostroomError(f"{text}: `postroom migrate --app-role NAME` lets a role queue e-mail")
    return error
