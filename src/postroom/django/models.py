"""
The queues as models: to look at, and to filter by.

They are read-only. A mail is queued by Django's mail functions, and what a person decides goes through
postroom's functions (the admin pages do that): a row that is written past them has no lease and no trail.
"""

from __future__ import annotations

from typing import Any, NoReturn

from django.db import models

from postroom.django.conf import alias


class ReadOnly(TypeError, ValueError):
    """A row of the queues was to be written; a ValueError, since loaddata says of those which row it was."""

    def __init__(self, model: type[models.Model], what_to_do: str = "see postroom.django.models") -> None:
        super().__init__(f"{model.__name__} is read-only: {what_to_do}")


class ReadOnlyQuerySet(models.QuerySet):
    """Refuses to write."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ReadOnly(self.model)

    create = bulk_create = bulk_update = update = delete = get_or_create = update_or_create = _refuse
    _update = _raw_delete = _insert = _refuse


class ReadOnlyManager(models.Manager.from_queryset(ReadOnlyQuerySet)):  # type: ignore[misc]
    """Reads where the queue is, whatever routers say."""

    def get_queryset(self) -> ReadOnlyQuerySet:
        """See Django's Manager."""
        found: ReadOnlyQuerySet = super().get_queryset().using(alias())
        return found


class Moment(models.DateTimeField):
    """
    A time, as an old caller may have written it: None where Python has no such time.

    `infinity`, or the year 20000, is an error of the driver's, and would end the page of all rows beside it.
    """

    def select_format(self, compiler: Any, sql: str, params: Any) -> tuple[str, Any]:
        """See Django's Field."""
        column, values = super().select_format(compiler, sql, params)
        known = f"CASE WHEN {column} BETWEEN '0001-01-02' AND '9999-12-30' THEN {column} END"
        return known, (*values, *values)

    def deconstruct(self) -> tuple[str, str, Any, Any]:
        """For migrations it is Django's."""
        name, _, args, options = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, options


class Json(models.JSONField):
    """What a stranger may have sent: its text where Python does not read it (5,000 digits, 5,000 levels)."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """See Django's Field."""
        try:
            return super().from_db_value(value, expression, connection)
        except (ValueError, RecursionError):
            return value

    def deconstruct(self) -> tuple[str, str, Any, Any]:
        """For migrations it is Django's."""
        name, _, args, options = super().deconstruct()
        return name, "django.db.models.JSONField", args, options


class QueueRow(models.Model):
    """What both queues have."""

    id = models.UUIDField(primary_key=True)
    status = models.TextField()
    attempts = models.IntegerField()
    max_attempts = models.IntegerField()
    error_count = models.IntegerField()
    last_error = models.TextField(null=True)
    dead_reason = models.TextField(null=True)
    due_at = Moment(null=True)
    next_retry_at = Moment(null=True)
    waits_for = models.TextField(null=True)
    priority = models.IntegerField()
    metadata = Json(null=True)
    created_at = Moment(null=True)
    updated_at = Moment(null=True)
    failed_at = Moment(null=True)

    objects = ReadOnlyManager()

    class Meta:
        abstract = True

    def save(self, *_: object, **__: object) -> NoReturn:
        """Refuses."""
        raise ReadOnly(type(self))

    def delete(self, *_: object, **__: object) -> NoReturn:
        """Refuses."""
        raise ReadOnly(type(self))

    def _save_table(self, *_: object, **__: object) -> NoReturn:
        """Refuses what goes past save(): loaddata, after which a worker would send each mail again."""
        raise ReadOnly(type(self), "in a dump, leave it out: dumpdata --exclude postroom")


class QueuedEmail(QueueRow):
    """One e-mail to one recipient, a row of email_queue."""

    to_email = models.TextField("to")
    subject = models.TextField()
    html = models.TextField()
    text = models.TextField(null=True)
    from_email = models.TextField("from", null=True)
    reply_to = models.TextField(null=True)
    headers = Json(null=True)
    email_type = models.TextField(null=True)
    idempotency_key = models.TextField(null=True)
    sent_at = Moment(null=True)

    class Meta:
        managed = False
        # With its schema: a project's search_path need not have it.
        db_table = '"public"."email_queue"'
        verbose_name = "e-mail"
        default_permissions = ("view",)
        permissions = (("decide_queuedemail", "Can retry and discard dead e-mails"),)

    def __str__(self) -> str:
        return f"{self.to_email}: {self.subject}"


class WebhookEvent(QueueRow):
    """One webhook event, a row of webhook_retry_queue."""

    webhook_type = models.TextField("source")
    webhook_event_id = models.TextField("event id", null=True)
    event_type = models.TextField(null=True)
    payload = Json()
    headers = Json(null=True)
    last_error_at = Moment(null=True)
    processed_at = Moment(null=True)

    class Meta:
        managed = False
        db_table = '"public"."webhook_retry_queue"'
        verbose_name = "webhook event"
        default_permissions = ("view",)
        permissions = (("decide_webhookevent", "Can retry and discard dead webhook events"),)

    def __str__(self) -> str:
        return f"{self.webhook_type}: {self.event_type or self.webhook_event_id or self.id}"
