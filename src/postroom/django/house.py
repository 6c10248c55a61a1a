"""The Room of a process of Django's."""

from __future__ import annotations

import django
from django.apps import apps

from postroom.django import conf, handlers
from postroom.room import Room
from postroom.settings import use_settings

if not apps.ready:  # `postroom worker --app postroom.django:room`, without manage.py
    django.setup()


class DjangoRoom(Room):
    """In Django's tests it goes to the test database, which is made after the tests are imported."""

    async def database_url(self) -> str:
        """See Room."""
        return conf.database_url(conf.alias()) if conf.in_tests() else await super().database_url()


use_settings(conf.DjangoSettings)
handlers.registry.app = handlers.program_name()
room = DjangoRoom(registry=handlers.registry)
"""Django's settings, and the handlers that `on` has registered."""
