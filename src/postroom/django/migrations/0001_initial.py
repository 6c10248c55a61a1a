"""
postroom's tables and functions.

This runs once in a database; what later versions of postroom bring comes by every `manage.py migrate`. The
models are not managed: only what Django compares of them is written here.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations, models

from postroom.django.migrating import MigratePostroom


class Migration(migrations.Migration):
    """See the module."""

    # postroom's own migrations run on a connection of their own, each in its transaction.
    atomic = False
    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Any]] = [
        MigratePostroom(),
        migrations.CreateModel(
            name="QueuedEmail",
            fields=[("id", models.UUIDField(primary_key=True, serialize=False))],
            options={
                "verbose_name": "e-mail",
                "db_table": '"public"."email_queue"',
                "permissions": (("decide_queuedemail", "Can retry and discard dead e-mails"),),
                "managed": False,
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="WebhookEvent",
            fields=[("id", models.UUIDField(primary_key=True, serialize=False))],
            options={
                "verbose_name": "webhook event",
                "db_table": '"public"."webhook_retry_queue"',
                "permissions": (("decide_webhookevent", "Can retry and discard dead webhook events"),),
                "managed": False,
                "default_permissions": ("view",),
            },
        ),
    ]
