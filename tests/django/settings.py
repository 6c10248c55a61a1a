"""The same settings for programs: DJANGO_SETTINGS_MODULE=tests.django.settings."""

from __future__ import annotations

import os

from tests.django.project import SETTINGS, parameters

globals().update(SETTINGS)
DATABASES = {
    "default": {"ENGINE": "django.db.backends.postgresql", **parameters(os.environ["SHOP_DATABASE_URL"])}
}
