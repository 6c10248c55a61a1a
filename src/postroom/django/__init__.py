"""
postroom in Django: mail and webhooks in the transactions of the ORM.

    EMAIL_BACKEND = "postroom.django.EmailBackend"
    INSTALLED_APPS = [..., "postroom.django"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postroom.django.backend import EmailBackend
    from postroom.django.handlers import on
    from postroom.django.house import room

__all__ = ["EmailBackend", "on", "room"]


if not TYPE_CHECKING:  # Django imports this before its settings and its models are there

    def __getattr__(name):
        """Import each when it is first asked for."""
        if name == "EmailBackend":
            from postroom.django.backend import EmailBackend

            return EmailBackend
        if name == "on":
            from postroom.django.handlers import on

            return on
        if name == "room":
            from postroom.django.house import room

            return room
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
