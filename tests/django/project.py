"""Django as the tests have it: configured once in a process, and pointed at each test's database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import django
from django.conf import settings

from postroom.settings import Settings, use_settings

SECRET = "whsec_of_the_tests"
SETTINGS: dict[str, Any] = {
    "SECRET_KEY": "of the tests",
    "INSTALLED_APPS": [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "post_office",
        "postroom.django",
        "tests.django.shop",
    ],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "ROOT_URLCONF": "tests.django.urls",
    "ALLOWED_HOSTS": ["testserver"],
    "STATIC_URL": "static/",
    "DATABASES": {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "none"}},
    "EMAIL_BACKEND": "postroom.django.EmailBackend",
    "DEFAULT_FROM_EMAIL": "Shop <shop@example.com>",
    "LOGGING_CONFIG": None,
    "USE_TZ": True,
    "POSTROOM": {"WEBHOOKS": {"stripe": {"secrets": [SECRET]}}},
}


def configure() -> None:
    """Configure Django; does nothing the second time."""
    if not settings.configured:
        settings.configure(**SETTINGS)
        django.setup()
        use_settings(Settings)  # other tests of this process know no Django


@contextmanager
def database(url: str) -> Iterator[None]:
    """DATABASES["default"] is the one at this address, while the block runs."""
    from django.db import connections

    connections["default"].close()
    before = dict(settings.DATABASES["default"])
    settings.DATABASES["default"] |= parameters(url)
    try:
        yield
    finally:
        connections["default"].close()
        settings.DATABASES["default"] |= before


def parameters(url: str) -> dict[str, Any]:
    """An address as Django has it."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    return {
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or query.get("host", ""),
        "PORT": str(parts.port or query.get("port", "")),
    }
