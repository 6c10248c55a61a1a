"""Django as the tests have it: configured once in a process, and pointed at each test's database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import django
from django.conf import settings

APPS = ["django.contrib.contenttypes", "django.contrib.auth"]


def configure() -> None:
    """Configure Django; does nothing the second time."""
    if settings.configured:
        return
    settings.configure(
        SECRET_KEY="of the tests",
        INSTALLED_APPS=APPS,
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "none"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        EMAIL_BACKEND="postroom.django.EmailBackend",
        DEFAULT_FROM_EMAIL="Shop <shop@example.com>",
        LOGGING_CONFIG=None,
        USE_TZ=True,
    )
    django.setup()


@contextmanager
def database(url: str) -> Iterator[None]:
    """DATABASES["default"] is the one at this address, while the block runs."""
    from django.db import connections

    connections["default"].close()
    settings.DATABASES["default"] |= parameters(url)
    try:
        yield
    finally:
        connections["default"].close()


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
