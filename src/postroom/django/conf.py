"""
Settings in Django: POSTROOM = {...} stands where postroom.toml stands elsewhere.

The environment wins over it. What it leaves out is taken from Django's own settings: the database from
DATABASES, the sender from DEFAULT_FROM_EMAIL, the transport from EMAIL_HOST and its like, where that is set;
with MAILERS, from the mailer that queues.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

from django.conf import settings as django_settings
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections
from django.utils.connection import ConnectionDoesNotExist
from django.utils.module_loading import import_string
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from postroom import settings_sources as sources
from postroom.errors import ConfigError
from postroom.settings import Settings

NAME = "POSTROOM"
MAILERS = "MAILERS"
_ALIAS = "database"
_OUR_BACKENDS = "postroom.django.backend"
_DJANGOS_BACKEND = "django.core.mail.backends.smtp.EmailBackend"

# What both libpq and asyncpg know; the rest of OPTIONS is Django's, or for its own sessions.
_OPTIONS = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "sslpassword",
    "target_session_attrs",
    "passfile",
    "service",
)

SMTP_OPTIONS = ("host", "port", "username", "password", "use_tls", "use_ssl", "timeout")
"""OPTIONS of a mailer, as Django's SMTP backend has them. Of time, the worker decides by itself."""


def alias() -> str:
    """
    Which of DATABASES has the queue.

    Raises:
        ConfigError: POSTROOM is no dictionary, or names one that is not there.
    """
    name = next((value for key, value in _given().items() if key.lower() == _ALIAS), DEFAULT_DB_ALIAS)
    if name not in connections:
        there = ", ".join(sorted(connections))
        raise ConfigError(
            f'POSTROOM["DATABASE"] names {name!r}, which is not in DATABASES; there are {there}'
        )
    return str(name)


def database_url(using: str) -> str:
    """
    The address of one of DATABASES; in Django's tests, of the test database.

    Raises:
        ConfigError: It is none of PostgreSQL's, or is not whole.
    """
    try:
        connection = connections[using]
        if connection.vendor != "postgresql":
            raise ConfigError(f"postroom needs PostgreSQL, and DATABASES[{using!r}] is {connection.vendor}")
        given = connection.get_connection_params()
    except (ImproperlyConfigured, ConnectionDoesNotExist) as error:
        raise ConfigError(f"DATABASES[{using!r}]: {error}") from error
    user, password = (quote(str(given.get(name) or ""), safe="") for name in ("user", "password"))
    host, port = str(given.get("host") or ""), str(given.get("port") or "")
    query = {name: str(given[name]) for name in _OPTIONS if given.get(name)}
    place = ""
    if host and not host.startswith(("/", "@")) and "," not in host:
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    else:
        query |= {name: value for name, value in (("host", host), ("port", port)) if value}
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    name = quote(str(given.get("dbname") or ""), safe="")
    return f"postgresql://{login}{place}/{name}" + (f"?{urlencode(query)}" if query else "")


def in_tests() -> bool:
    """Whether Django's test environment is set up, which makes mail.outbox."""
    return hasattr(mail, "outbox")


class DjangoSettings(Settings):
    """The settings of a process of Django's."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over POSTROOM, and that over postroom.toml and what Django has."""
        return (
            init_settings,
            _TestDatabase(settings_cls),
            sources.Environment(settings_cls),
            _Given(settings_cls),
            sources.File(settings_cls),
            sources.Fallbacks(settings_cls),
            _OfDjango(settings_cls),
        )

    @classmethod
    def place_of(cls, field: str, table: str | None) -> str:
        """See Settings."""
        if os.environ.get(sources.variable(field, table)):
            return super().place_of(field, table)
        for key in _given():
            if table and key.lower() == f"{table}_{sources.key(field)}":
                return f'{NAME}["{key}"]'
            if (table or sources.key(field)) == key.lower():
                return f'{NAME}["{key}"]' + (f'["{sources.key(field)}"]' if table else "")
        if field == "transport" and (place := _smtp_server()[0]):
            return place
        return super().place_of(field, table)


class _Dictionary(PydanticBaseSettingsSource):
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False


class _TestDatabase(_Dictionary):
    """In Django's tests nothing but the test database is touched, whatever address is set elsewhere."""

    def __call__(self) -> dict[str, Any]:
        if not in_tests():
            return {}
        return {"database_url": database_url(alias()), "listen_url": None}


class _Given(_Dictionary):
    """POSTROOM = {...}: keys as in postroom.toml, or as the variables without POSTROOM_."""

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        tables = sources.tables_of(self.settings_cls)
        for key, value in _given().items():
            name = key.lower()
            if name == _ALIAS:
                continue
            table = next((one for one in tables if name.startswith(f"{one}_")), None)
            if table is not None:
                found.setdefault(table, {})[name.removeprefix(f"{table}_")] = value
            else:
                found[name] = list(value) if isinstance(value, tuple) else value
        return sources.fields_of(NAME, found, self.settings_cls)


class _OfDjango(_Dictionary):
    """What Django's own settings say."""

    def __call__(self) -> dict[str, Any]:
        return _of_django()


def _given() -> Mapping[str, Any]:
    given = getattr(django_settings, NAME, None) or {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f'{NAME} must be a dictionary of settings, such as {{"TRANSPORT": "smtp://host"}}')
    return given


def _of_django() -> dict[str, Any]:
    found = {"database_url": database_url(alias()), "sender": str(django_settings.DEFAULT_FROM_EMAIL)}
    _, server = _smtp_server()
    if server:
        found["transport"] = _smtp_url(server)
    return found


def _smtp_server() -> tuple[str, Mapping[str, Any]]:
    """Where Django's settings name an SMTP server, and what they say of it by SMTP_OPTIONS; else empty."""
    given = django_settings
    if given.is_overridden("EMAIL_HOST") and given.EMAIL_HOST:
        return "EMAIL_HOST, EMAIL_PORT, EMAIL_HOST_USER and EMAIL_HOST_PASSWORD", {
            "host": given.EMAIL_HOST,
            "port": given.EMAIL_PORT,
            "username": given.EMAIL_HOST_USER,
            "password": given.EMAIL_HOST_PASSWORD,
            "use_tls": given.EMAIL_USE_TLS,
            "use_ssl": given.EMAIL_USE_SSL,
        }
    named = {name: options for name, options in _mailers() if options.get("host")}
    if not named:
        return "", {}
    first, *others = (f'{MAILERS}["{name}"]["OPTIONS"]' for name in named)
    server, *further = named.values()
    if any(_smtp_url(other) != _smtp_url(server) for other in further):
        raise ConfigError(
            f"{first} and {others[0]} name different servers, but what is queued leaves by one way: give "
            f'them the same, or none and name it in {NAME}["TRANSPORT"]'
        )
    return first, server


def _mailers() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Those of MAILERS that queue, with their OPTIONS."""
    for name, mailer in (getattr(django_settings, MAILERS, None) or {}).items():
        kind: Any = None
        with suppress(ImportError):  # Django says so, where it is used
            kind = import_string(mailer.get("BACKEND", _DJANGOS_BACKEND))
        if any(base.__module__ == _OUR_BACKENDS for base in getattr(kind, "__mro__", ())):
            yield name, mailer.get("OPTIONS") or {}


def _smtp_url(server: Mapping[str, Any]) -> str:
    user, password = (quote(str(server.get(name) or ""), safe="") for name in ("username", "password"))
    login = f"{user}:{password}@" if user else ""
    over_tls, starttls = bool(server.get("use_ssl")), bool(server.get("use_tls"))
    port = server.get("port") or (465 if over_tls else 587 if starttls else 25)
    # What Django calls TLS is STARTTLS, and it goes on without only where it is not asked to.
    options = "?starttls=required" if starttls else ""
    return f"{'smtps' if over_tls else 'smtp'}://{login}{server['host']}:{port}{options}"
