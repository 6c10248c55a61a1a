"""
Taking over what waits in django-post-office.

Its queued rows become postroom's and are marked as sent there, in one transaction: each is sent by one of the
two. What postroom cannot send yet stays where it is, and is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.db import router, transaction
from django.utils import timezone

from postroom.django.backend import EmailBackend
from postroom.django.conf import alias
from postroom.django.message import RefusedMessage, checked_emails
from postroom.errors import PostroomError
from postroom.wording import count_of

APP = "post_office"
BATCH_ROWS = 500
MESSAGES_AT_ONCE = 50
"""Whose attachments are held at once."""

TOLD_MAX = 20
"""Rows that are left and named one by one; of the others there is the count."""

PRIORITIES = {0: -10, 1: 0, 2: 10, 3: 20}
"""post_office's low, medium, high, now."""


@dataclass
class TakenOver:
    """
    What became of the queue.

    Attributes:
        rows: Of post_office's that were taken over.
        emails: What they became: one to each recipient.
        left: How many were left, by the reason.
        named: Some of those, each with its reason.
    """

    rows: int = 0
    emails: int = 0
    left: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)

    def lines(self, *, done: bool) -> Iterator[str]:
        """The same for people."""
        became = f"{count_of(self.emails, 'e-mail')}, one to each recipient"
        yield f"{count_of(self.rows, 'row')} {'taken over' if done else 'can be taken over'}: {became}"
        for reason, count in self.left.most_common():
            yield f"{count_of(count, 'row')} left, {reason}"
        for line in self.named:
            yield f"  {line}"


def take_over(*, dry_run: bool) -> TakenOver:
    """
    Take over the queued rows, or see what that would do.

    Raises:
        PostroomError: post_office is not there, is in another database, or is sending on this machine.
    """
    if not apps.is_installed(APP):
        raise PostroomError("post_office is not in INSTALLED_APPS: there is nothing to take over")
    from post_office.lockfile import FileLock, FileLocked, default_lockfile
    from post_office.models import Email

    using = router.db_for_write(Email)
    if using != alias():
        raise PostroomError(
            f"post_office is in DATABASES[{using!r}] and the queue in DATABASES[{alias()!r}]: "
            "no transaction holds both"
        )
    try:
        # send_queued_mail takes the same: it reads its rows, sends them, and only then marks them.
        with FileLock(default_lockfile), transaction.atomic(using):
            return _take_over(Email, dry_run)
    except FileLocked:
        raise PostroomError("send_queued_mail runs here: wait for its end, and stop it everywhere") from None


def _take_over(model: Any, dry_run: bool) -> TakenOver:
    taken = TakenOver()
    rows = model.objects.filter(status__in=_queued()).order_by("pk").select_for_update(of=("self",))
    last = 0
    while batch := list(rows.filter(pk__gt=last).prefetch_related("attachments")[:BATCH_ROWS]):
        last = batch[-1].pk
        for start in range(0, len(batch), MESSAGES_AT_ONCE):
            messages = list(_messages(batch[start : start + MESSAGES_AT_ONCE], taken))
            if not dry_run:
                EmailBackend().send_messages([message for _, message in messages])
                _mark(model, messages)
    return taken


def _messages(batch: Iterable[Any], taken: TakenOver) -> Iterator[tuple[Any, Any]]:
    """The rows that can be taken over, each with its message."""
    for row in batch:
        reason, message = _message(row)
        if message is None:
            taken.left[reason.partition(":")[0]] += 1
            if len(taken.named) < TOLD_MAX:
                taken.named.append(f"{row.pk}: {reason}")
        else:
            taken.rows += 1
            taken.emails += len(checked_emails(message))
            yield row, message


def _message(row: Any) -> tuple[str, Any]:
    """A row as a message, or why it is left."""
    if row.expires_at is not None:
        return "it expires, which is for post_office to see to", None
    try:
        message = row.prepare_email_message()
    except OSError as error:
        return f"a file of its attachments cannot be read: {error.strerror or error}", None
    except Exception as error:  # whatever its template does
        return f"its template cannot be rendered: {type(error).__name__}: {error}", None
    # It was never sent, and gets the Message-ID of its new row.
    message.extra_headers = {
        name: value for name, value in message.extra_headers.items() if name.lower() != "message-id"
    }
    message.idempotency_key = f"post_office:{row.pk}"
    message.metadata = {"post_office": row.pk}
    message.priority = PRIORITIES.get(row.priority, 0)
    message.send_at = _aware(row.scheduled_time)
    if not message.recipients():
        return "it has no recipient", None
    try:
        checked_emails(message)
    except RefusedMessage as error:
        return f"it cannot be queued: {error}", None
    return "", message


def _mark(model: Any, messages: Sequence[tuple[Any, Any]]) -> None:
    """Marked as sent there, so that it sends none of them; its log says whose they are."""
    from post_office.models import STATUS, Log

    model.objects.filter(pk__in=[row.pk for row, _ in messages]).update(
        status=STATUS.sent, last_updated=timezone.now()
    )
    Log.objects.bulk_create(
        Log(
            email=row,
            status=STATUS.sent,
            message=f"taken over by postroom as {', '.join(map(str, message.queued_ids))}",
        )
        for row, message in messages
    )


def _queued() -> list[int]:
    from post_office.models import STATUS

    return [STATUS.queued, STATUS.requeued]


def _aware(moment: Any) -> Any:
    return timezone.make_aware(moment) if moment is not None and timezone.is_naive(moment) else moment
