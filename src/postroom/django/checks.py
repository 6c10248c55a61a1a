"""What `manage.py check` says of postroom."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags
from django.core.checks import register as register_check
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.utils import OperationalError

from postroom.django import conf, handlers
from postroom.errors import ConfigError, PostroomError
from postroom.settings import load_settings
from postroom.webhooks.source_settings import VariableMissing, read_sources


def register() -> None:
    """Tell Django of the checks."""
    register_check(check_settings, "postroom")
    register_check(check_database, Tags.database)
    register_check(check_transport, "postroom", deploy=True)


def check_settings(**_: object) -> list[CheckMessage]:
    """POSTROOM, the database that it names, and the webhooks' sources and handlers."""
    try:
        using = conf.alias()
    except ConfigError as error:
        return [Error(str(error), id="postroom.E001")]
    vendor = connections[using].vendor
    if vendor != "postgresql":
        return [
            Error(
                f"DATABASES[{using!r}] is {vendor}, and postroom's queues are in PostgreSQL",
                hint='Name another one in POSTROOM["DATABASE"], or change its ENGINE.',
                id="postroom.E002",
            )
        ]
    try:
        settings = load_settings()
        sources = read_sources(settings)
    except VariableMissing as error:  # no error: tests, migrate and the like run where no secrets are
        hint = "Where webhooks come in, `manage.py postroom serve` refuses to start without it."
        return [checks.Warning(str(error), hint=hint, id="postroom.W004")]
    except ConfigError as error:
        return [Error(str(error), id="postroom.E003")]
    found = [*_check_sources(sources)]
    if using != DEFAULT_DB_ALIAS and handlers.registry.of:
        found.append(
            checks.Warning(
                f"webhook handlers run in a transaction of DATABASES[{using!r}], not of the default one",
                hint=f"What a handler writes elsewhere is not undone with it; write by .using({using!r}).",
                id="postroom.W003",
            )
        )
    return found


def check_database(databases: Sequence[str] | None = None, **_: object) -> list[CheckMessage]:
    """Whether the database is migrated; run by `check --database default`. migrate itself needs no advice."""
    from postroom.django.migrating import is_up_to_date

    if sys.argv[1:2] == ["migrate"]:
        return []
    try:
        using = conf.alias()
    except ConfigError:
        return []  # check_settings says so
    try:
        if using not in (databases or ()) or connections[using].vendor != "postgresql":
            return []
        if is_up_to_date(using):
            return []
    except (PostroomError, OperationalError) as error:
        return [checks.Warning(f"DATABASES[{using!r}]: {error}", id="postroom.W010")]
    return [  # no error: programs that call migrate look here first, and must go on
        checks.Warning(
            f"DATABASES[{using!r}] is not up to date for postroom",
            hint="Run `manage.py migrate`.",
            id="postroom.W010",
        )
    ]


def check_transport(**_: object) -> list[CheckMessage]:
    """Whether mail leaves the machine; run by `manage.py check --deploy`."""
    try:
        urls = load_settings().transport_urls
    except ConfigError:
        return []  # check_settings says so
    if not all(url.startswith("maildir:") for url in urls):
        return []
    return [
        checks.Warning(
            f"mail is written into {urls[0].removeprefix('maildir:')} and leaves this machine by no way",
            hint=(
                f'Set {_names_of_server()}, or POSTROOM["TRANSPORT"], such as smtp://user:password@host:587.'
            ),
            id="postroom.W020",
        )
    ]


def _names_of_server() -> str:
    if hasattr(django_settings, conf.MAILERS):
        return f'"host" and its like in the OPTIONS of the mailer in {conf.MAILERS}'
    return "EMAIL_HOST and its like"


def _check_sources(sources: Any) -> list[CheckMessage]:
    registered = handlers.registry.of
    found: list[CheckMessage] = [
        checks.Warning(
            f"no handler for webhooks of {name}: they are stored, and nobody acts on them",
            hint=f'Write @on("{name}") in the module webhooks of an app.',
            id="postroom.W001",
        )
        for name, source in sources.items()
        if not source.handlers and name not in registered
    ]
    found += [
        checks.Warning(
            f"there are handlers for webhooks of {name}, and no such source: its requests get 404",
            hint=f'Name its secret in POSTROOM["WEBHOOKS"]["{name}"].',
            id="postroom.W002",
        )
        for name in registered
        if name not in sources
    ]
    return found
