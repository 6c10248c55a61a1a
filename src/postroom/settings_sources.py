"""Where settings come from, and what they are called there."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from postroom.errors import ConfigError

PREFIX = "POSTROOM_"
CONFIG = "POSTROOM_CONFIG"
_CONFIG_DEFAULT = "postroom.toml"

# Where a setting's name in the program is not its name outside.
_KEYS = {"sender": "from", "log_format": "log"}

# Variables that others have named: they count where nothing else says anything.
_FALLBACKS = {
    "resend_api_key": "RESEND_API_KEY",
    "stripe_api_key": "STRIPE_API_KEY",
    "stripe_webhook_secret": "STRIPE_WEBHOOK_SECRET",
}


def key(field: str) -> str:
    """A field's key in postroom.toml: its unit goes, since the value says it."""
    return _KEYS.get(field, field.removesuffix("_s"))


def variable(field: str, table: str | None = None) -> str:
    """A field's variable; `table` is the one that it lies in."""
    return PREFIX + "_".join(part.upper() for part in (table, key(field)) if part)


def config_file() -> Path:
    """Where postroom.toml is, if it is there."""
    return Path(os.environ.get(CONFIG) or _CONFIG_DEFAULT)


def suggestion(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as the end of a line."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


class _Source(PydanticBaseSettingsSource):
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False  # the library's way, field by field; ours give all at once


class Environment(_Source):
    """Variables; an empty one counts as unset."""

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = _set(self.settings_cls.model_fields.keys() - _NOT_VARIABLES)
        for table, fields in tables_of(self.settings_cls).items():
            found.pop(table, None)
            if values := _set(fields, table):
                found[table] = values
        return found


class File(_Source):
    """postroom.toml."""

    def __call__(self) -> dict[str, Any]:
        path = config_file()
        return fields_of(str(path), _read(path), self.settings_cls)


class Fallbacks(_Source):
    """Variables that others have named."""

    def __call__(self) -> dict[str, Any]:
        return {field: os.environ[name] for field, name in _FALLBACKS.items() if os.environ.get(name)}


def tables_of(settings_cls: type[BaseModel]) -> dict[str, Mapping[str, FieldInfo]]:
    """The settings that are tables of settings, each with its fields."""
    kinds = {name: field.annotation for name, field in settings_cls.model_fields.items()}
    return {
        name: kind.model_fields
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def fields_of(where: str, written: dict[str, Any], settings_cls: type[BaseModel]) -> dict[str, Any]:
    """
    What a person has written by the keys of postroom.toml, by the names of the fields.

    Args:
        where: What he wrote it in, for errors.

    Raises:
        ConfigError: A key is no setting.
    """
    found = _fields(where, written, settings_cls.model_fields.keys() - _FALLBACK_ONLY)
    for table, fields in tables_of(settings_cls).items():
        if isinstance(found.get(table), dict):
            found[table] = _fields(where, found[table], fields, f"{table}.")
    return found


_FALLBACK_ONLY = {"resend_api_key"}
_NOT_VARIABLES = {"webhooks", "alerts", *_FALLBACK_ONLY}


def _set(fields: Iterable[str], table: str | None = None) -> dict[str, Any]:
    values = {field: os.environ.get(variable(field, table)) for field in fields}
    return {field: value for field, value in values.items() if value}


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if os.environ.get(CONFIG):
            raise ConfigError(f"{CONFIG} names {path}, which is not there") from None
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _fields(where: str, table: dict[str, Any], fields: Iterable[str], prefix: str = "") -> dict[str, Any]:
    names = {key(field): field for field in fields}
    for name in table:
        if name not in names:
            raise ConfigError(f"{where}: {prefix}{name} is no setting{suggestion(name, names)}")
    return {names[name]: value for name, value in table.items()}
