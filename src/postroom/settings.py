"""
Process settings: from the environment, or from postroom.toml; the environment wins.

A key of postroom.toml is the variable's name in lower case without POSTROOM_. Queue policy is not
here: it belongs to all workers together and lies in the database.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from postroom import failpoints
from postroom import settings_sources as sources
from postroom.errors import ConfigError
from postroom.spans import ALLOWED as SPANS
from postroom.spans import parse_span


def _seconds(value: object) -> object:
    return parse_span(value) if isinstance(value, str) else value


def _postgres_url(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("no PostgreSQL address")
    return value


def _web_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("no web address")
    return value.rstrip("/")


def _one_line(value: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("control characters")
    return value


def _words(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _whole_path(value: Path) -> Path:
    return value.expanduser().absolute()


Span = Annotated[float, BeforeValidator(_seconds)]
PostgresUrl = Annotated[str, AfterValidator(_postgres_url)]
WebUrl = Annotated[str, AfterValidator(_web_url)]
OneLine = Annotated[str, AfterValidator(_one_line)]


class SmtpTimeouts(BaseModel):
    """
    How long the SMTP transport waits for a server at each step: RFC 5321, 4.5.3.2, and the connecting.

    In postroom.toml they are spans under [smtp], such as `rcpt_timeout = "5m"`; as a variable it is
    POSTROOM_SMTP_RCPT_TIMEOUT.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    connect_timeout_s: Span = Field(default=30, gt=0, le=86400, description=SPANS)
    greeting_timeout_s: Span = Field(default=300, gt=0, le=86400, description=SPANS)
    ehlo_timeout_s: Span = Field(default=300, gt=0, le=86400, description=SPANS)
    mail_timeout_s: Span = Field(default=300, gt=0, le=86400, description=SPANS)
    rcpt_timeout_s: Span = Field(default=300, gt=0, le=86400, description=SPANS)
    data_timeout_s: Span = Field(default=120, gt=0, le=86400, description=SPANS)
    block_timeout_s: Span = Field(default=180, gt=0, le=86400, description=SPANS)
    final_timeout_s: Span = Field(default=600, gt=0, le=86400, description=SPANS)
    idle_timeout_s: Span = Field(default=60, gt=0, le=86400, description=SPANS)


class Settings(BaseSettings):
    """
    The settings of one process. Those with a secret in them never show in its repr.

    Attributes:
        database_url: None stands for the embedded PostgreSQL in data_dir.
        data_dir: Absolute.
        sender: POSTROOM_FROM: the sender where an e-mail names none.
        log_format: None stands for text on a terminal, else JSON.
        stripe_api_key: For `postroom webhooks reconcile`; STRIPE_API_KEY works too.
        stripe_api_url: Another one is for tests.
        attempt_deadline_s: How long one attempt may take in all.
        webhooks: The [webhooks.*] tables of postroom.toml as they are written there.
        alerts: The table [alerts], too.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: PostgresUrl | None = Field(
        default=None, repr=False, description="postgresql://user:password@host:5432/database"
    )
    listen_url: PostgresUrl | None = Field(
        default=None,
        repr=False,
        description="postgresql://user:password@host:5432/database, without a pooler",
    )
    data_dir: Annotated[Path, AfterValidator(_whole_path)] = Field(
        default=Path(".postroom"), validate_default=True, description="a folder"
    )
    transport: Annotated[OneLine | None, BeforeValidator(_words)] = Field(
        default=None,
        repr=False,
        description="smtp://user:password@host:587, smtps://host:465, resend://KEY or maildir:FOLDER, "
        "several separated by spaces",
    )
    sender: OneLine | None = Field(default=None, description="an address, `a@b.c` or `Name <a@b.c>`")
    service_key: SecretStr | None = Field(default=None, description="any text that is not empty")
    jwt_secret: SecretStr | None = Field(default=None, description="any text that is not empty")
    jwks_url: WebUrl | None = Field(default=None, description="an address that begins with https://")
    stripe_webhook_secret: SecretStr | None = Field(
        default=None, description="whsec_…, several separated by commas"
    )
    stripe_api_key: SecretStr | None = Field(default=None, description="sk_… or rk_…")
    stripe_api_url: WebUrl = Field(
        default="https://api.stripe.com", description="an address that begins with https:// or http://"
    )
    resend_api_key: SecretStr | None = Field(default=None, description="re_…")
    public_url: WebUrl | None = Field(
        default=None, description="an address that begins with https:// or http://"
    )
    host: OneLine = Field(default="127.0.0.1", min_length=1, description="an address of this machine")
    port: int = Field(
        default=8400, ge=0, le=65535, description="a number from 0 to 65535; 0 takes a free one"
    )
    log_format: Annotated[Literal["json", "text"] | None, BeforeValidator(_lower)] = Field(
        default=None, description="json or text"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="debug, info, warning or error"
    )
    concurrency: int = Field(default=40, ge=1, le=1000, description="a number from 1 to 1000")
    attempt_deadline_s: Span = Field(default=900, ge=1, le=86400, description=f"{SPANS}; 1s to 1d")
    smtp: SmtpTimeouts = SmtpTimeouts()
    webhooks: dict[str, dict[str, Any]] = Field(
        default={}, repr=False, description="tables such as [webhooks.stripe]"
    )
    alerts: dict[str, Any] = Field(default={}, repr=False, description="a table: [alerts]")

    @property
    def email_concurrency(self) -> int:
        """
        E-mails in flight in one worker: POSTROOM_CONCURRENCY, or twice what an SMTP server gets connections,
        so that starts are made durable for some while others are handed over.
        """
        return self.concurrency if "concurrency" in self.model_fields_set else 100

    @property
    def webhook_concurrency(self) -> int:
        """
        Events in flight in one worker: POSTROOM_CONCURRENCY, or what fills two calls of a SQL handler, so
        that some are handled while the starts of others are made durable.
        """
        return self.concurrency if "concurrency" in self.model_fields_set else 100

    @property
    def transport_urls(self) -> tuple[str, ...]:
        """Where e-mail leaves, in the order in which the transports are tried."""
        if self.transport is not None:
            return tuple(self.transport.split())
        if self.resend_api_key is not None:
            return (f"resend://{quote(self.resend_api_key.get_secret_value(), safe='')}",)
        return (f"maildir:{self.data_dir / 'mail'}",)

    @property
    def stripe_webhook_secrets(self) -> tuple[SecretStr, ...]:
        """The secrets of source `stripe`, several while they are rotated."""
        if self.stripe_webhook_secret is None:
            return ()
        secrets = self.stripe_webhook_secret.get_secret_value().split(",")
        return tuple(SecretStr(secret.strip()) for secret in secrets if secret.strip())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - ours knows names that are none in Python
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - a .env belongs to who starts us
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments win over the environment, and that over postroom.toml."""
        return (
            init_settings,
            sources.Environment(settings_cls),
            sources.File(settings_cls),
            sources.Fallbacks(settings_cls),
        )

    @classmethod
    def place_of(cls, field: str, table: str | None) -> str:
        """Where a person has written a setting, for errors."""
        if os.environ.get(sources.variable(field, table)):
            return sources.variable(field, table)
        return f"{sources.config_file()}: {f'{table}.' if table else ''}{sources.key(field)}"


_kinds: list[type[Settings]] = [Settings]


def use_settings(kind: type[Settings]) -> None:
    """From now on load_settings() makes this kind: that of a framework, which has settings of its own."""
    _kinds[0] = kind


def load_settings(**overrides: object) -> Settings:
    """
    Read the settings of this process.

    Args:
        overrides: Fields of Settings that win over the environment; None leaves one as it is.

    Raises:
        ConfigError: A setting is wrong; the text names it and says what is allowed.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if unknown := sorted(given.keys() - Settings.model_fields.keys()):
        raise ConfigError(
            f"{unknown[0]} is no setting{sources.suggestion(unknown[0], Settings.model_fields)}"
        )
    kind = _kinds[0]
    try:
        return kind(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(_explain(kind, error, given)) from None


def unknown_variables() -> dict[str, str | None]:
    """The POSTROOM_* variables that are no setting, each with the one that may have been meant."""
    known = {sources.CONFIG, *map(sources.variable, Settings.model_fields)}
    known |= {sources.variable(field, "smtp") for field in SmtpTimeouts.model_fields}
    known.add(failpoints.VARIABLE)
    ours = sorted(name for name in os.environ if name.startswith(sources.PREFIX) and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, 1)), None) for name in ours}


def _explain(kind: type[Settings], error: ValidationError, given: Mapping[str, object]) -> str:
    """One line for the first wrong setting; its value is not shown, it may be a secret."""
    location = [str(part) for part in error.errors()[0]["loc"]]
    field, table, info = location[0], None, Settings.model_fields[location[0]]
    if field == "smtp" and len(location) > 1:
        field, table, info = location[1], "smtp", SmtpTimeouts.model_fields[location[1]]
    name = f"the argument {location[0]}" if location[0] in given else kind.place_of(field, table)
    return f"{name} is wrong; allowed is {info.description or 'a table'}"
