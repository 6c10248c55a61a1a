"""EMAIL_BACKEND: mail is queued by the ORM's own connection, so what rolls back sends nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any
from uuid import UUID

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import Error, connections, transaction

from postroom.django.conf import SMTP_OPTIONS, alias
from postroom.django.message import RefusedMessage, checked_emails, ids_of, place_of
from postroom.email.enqueue import EMAILS_MAX, QueueableEmail, enqueue_by
from postroom.errors import ConfigError, PostroomError, SchemaError


class EmailBackend(BaseEmailBackend):
    """
    Queues messages: one row for each recipient, all of a call in one statement.

    The rows belong to the transaction that is open on Django's connection; where there is none they are
    committed at once. Their ids are put on each message, as `queued_ids`.

    Args:
        fail_silently: What cannot be queued is left out without a word, as Django has it; the
            transaction goes on.
        options: What Django's SMTP backend takes, as `host` and `username`: of MAILERS, from where the worker
            has them; nothing here needs them. Others are Django's to refuse.
    """

    def __init__(self, fail_silently: bool = False, **options: object) -> None:
        super().__init__(**{name: value for name, value in options.items() if name not in SMTP_OPTIONS})
        self.fail_silently = fail_silently

    def send_messages(self, email_messages: Iterable[EmailMessage]) -> int:
        """
        Queue messages: all of them, or none.

        Returns:
            How many messages were queued.

        Raises:
            RefusedMessage: One of them can never be stored or sent; `messages[3].to: …` says which.
            SchemaError: The database is not migrated.
            ConfigError: The database is none of PostgreSQL's.
            django.db.Error: The database does not answer, or refuses.
        """
        messages = [message for message in email_messages if message.recipients()]
        checked: list[tuple[EmailMessage, list[QueueableEmail]]] = []
        for place, message in enumerate(messages):
            try:
                checked.append((message, checked_emails(message)))
            except RefusedMessage as error:
                if not self.fail_silently:
                    raise place_of(error, place, len(messages)) from error.__cause__
        try:
            ids = self._queue([email for _, emails in checked for email in emails])
        except (PostroomError, Error):
            if not self.fail_silently:
                raise
            return 0
        for (message, _), own in zip(
            checked, ids_of(ids, (len(emails) for _, emails in checked)), strict=True
        ):
            message.queued_ids = own
        return len(checked)

    def _queue(self, emails: Sequence[QueueableEmail]) -> list[UUID]:
        if not emails:
            return []
        using = alias()
        connection = connections[using]
        if connection.vendor != "postgresql":
            raise ConfigError(
                f"postroom needs PostgreSQL, and DATABASES[{using!r}] is {connection.vendor}: "
                'name another one in POSTROOM["DATABASE"]'
            )

        def fetch(sql: str, values: list[str]) -> Any:
            with connection.cursor() as cursor:
                cursor.execute(sql, values)
                return cursor.fetchall()

        def together() -> Any:
            return transaction.atomic(using, savepoint=False)

        ids: list[UUID] = []
        with self._own_transaction(using, len(emails)):
            for start in range(0, len(emails), EMAILS_MAX):
                try:
                    ids += enqueue_by(fetch, emails[start : start + EMAILS_MAX], together=together)
                except SchemaError as error:
                    raise SchemaError("the database is not up to date: run `manage.py migrate`") from error
        return ids

    def _own_transaction(self, using: str, count: int) -> Any:
        """
        One for what takes several statements; a savepoint where nobody wants to hear of an error.

        An error would else end the caller's transaction.
        """
        if self.fail_silently:
            return transaction.atomic(using)
        return transaction.atomic(using, savepoint=False) if count > EMAILS_MAX else nullcontext()
