"""The app: INSTALLED_APPS = [..., "postroom.django"]."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules

from postroom.django.conf import DjangoSettings
from postroom.settings import use_settings

use_settings(DjangoSettings)  # before any model is imported: whose module may make a Room


class PostroomConfig(AppConfig):
    """Imports each app's module `webhooks`, and keeps the database up to date by `manage.py migrate`."""

    name = "postroom.django"
    label = "postroom"
    verbose_name = "Postroom"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """See Django's AppConfig."""
        from postroom.django import checks

        checks.register()
        autodiscover_modules("webhooks")
        post_migrate.connect(_bring_up_to_date, sender=self)


def _bring_up_to_date(using: str, verbosity: int = 1, plan: Any = None, **_: object) -> None:
    """
    What a newer postroom brings; Django's own migration of this app runs once and never again.

    Without a plan it comes from `flush`.
    """
    from postroom.django.migrating import after_flush, bring_up_to_date

    bring_up_to_date(using, verbosity)
    if plan is None:
        after_flush(using, verbosity)
