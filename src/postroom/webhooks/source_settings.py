"""
The sources of postroom.toml, its tables [webhooks.NAME], and the one that a variable alone makes.

    [webhooks.stripe]
    scheme = "stripe"
    secrets = ["env:STRIPE_WEBHOOK_SECRET"]

    [[webhooks.stripe.handlers]]
    name = "shop"
    events = ["checkout.*"]
    url = "http://127.0.0.1:3000/hooks"

A mistake is a ConfigError whose one line names the field; it never shows a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

from postroom.errors import ConfigError
from postroom.settings import Settings
from postroom.settings_sources import suggestion, variable
from postroom.webhooks import places
from postroom.webhooks.places import Place, Places
from postroom.webhooks.schemes import SCHEMES, Hmac, Scheme, scheme_name
from postroom.webhooks.schemes.custom import ALGORITHMS, ENCODINGS
from postroom.webhooks.schemes.standard import StandardWebhooks
from postroom.webhooks.source import ALL_EVENTS, BODY_BYTES_MAX, Handler, Lane, Source

T = TypeVar("T")

STRIPE = "stripe"
SECRETS_MAX = 16
HANDLERS_MAX = 100
EVENTS_MAX = 200

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HANDLER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_SQL = re.compile(r"[a-z_][a-z0-9_$]{0,62}(?:\.[a-z_][a-z0-9_$]{0,62})?")
_PYTHON = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_SIZE = re.compile(r"([0-9]{1,12})\s*(B|KiB|MiB|kB|MB)?")
_UNITS = {None: 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "kB": 1000, "MB": 1000**2}
_VISIBLE = re.compile(r"[\x20-\x7e]{0,100}")

_SOURCE_FIELDS = (
    "scheme",
    "secrets",
    "event_id",
    "event_type",
    "body_limit",
    "lane",
    "lane_order",
    "lane_dead_letter",
    "handlers",
)
_HMAC_FIELDS = ("header", "algorithm", "encoding", "prefix")
_HANDLER_FIELDS = ("name", "events", "url", "sql", "python", "secret", "allow_private")


class VariableMissing(ConfigError):
    """A variable that `env:NAME` names is not set in this process, or empty."""


def read_sources(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, Source]:
    """
    The sources of this process, by name.

    With POSTROOM_STRIPE_WEBHOOK_SECRET, or STRIPE_WEBHOOK_SECRET, source `stripe` is there without a
    table; the first wins over the secrets of its table, the second does not.

    Args:
        environ: Where `env:NAME` looks.

    Raises:
        ConfigError: A table is wrong, or a source signs the address and POSTROOM_PUBLIC_URL is not set.
        VariableMissing: A variable is not set.
    """
    place = settings.place_of("webhooks", None)
    tables = {name: _Table((place, name), table) for name, table in settings.webhooks.items()}
    if settings.stripe_webhook_secret is not None and not settings.stripe_webhook_secrets:
        _refuse_variable("it holds no secret")
    if STRIPE not in tables and settings.stripe_webhook_secrets:
        tables[STRIPE] = _Table((place, STRIPE), {})
    return {name: _source(name, table, settings, environ) for name, table in tables.items()}


def _source(name: str, table: _Table, settings: Settings, environ: Mapping[str, str]) -> Source:
    if not _NAME.fullmatch(name):
        table.refuse(None, "a source is named by a-z, 0-9, _ and -, at most 63 of them")
    scheme = _scheme(name, table)
    table.only(_SOURCE_FIELDS, _HMAC_FIELDS if scheme.name == "hmac" else (), _token_field(scheme))
    if scheme.signs_url and settings.public_url is None:
        table.refuse(
            "scheme", f"{scheme.name} signs the address that it calls: set {variable('public_url')} to it"
        )
    return Source(
        name=name,
        scheme=scheme,
        secrets=_secrets(name, table, scheme, settings, environ),
        event_id=_places(table, "event_id"),
        event_type=_places(table, "event_type"),
        body_bytes_max=table.read("body_limit", _body_limit, BODY_BYTES_MAX),
        lane=_lane(table),
        verify_token=table.read("verify_token", lambda value: _text(_from_env(value, environ)), None),
        handlers=_handlers(table, environ),
    )


def _scheme(name: str, table: _Table) -> Scheme:
    known = scheme_name(name)
    written = table.read("scheme", _text, None)
    if written is None:
        if known not in SCHEMES or known in ("hmac", "none"):
            table.refuse("scheme", f"say how it signs, one of {', '.join(SCHEMES)}")
        return SCHEMES[known]
    found = scheme_name(written)
    if found not in SCHEMES:
        table.refuse("scheme", f"{written!r} is no scheme{suggestion(found, SCHEMES)}")
    return _hmac(table) if found == "hmac" else SCHEMES[found]


def _hmac(table: _Table) -> Scheme:
    header = table.read("header", _text, None)
    if header is None:
        table.refuse("header", "scheme hmac needs the name of the header that holds the signature")
    if not _HEADER_NAME.fullmatch(header):
        table.refuse("header", "it is no name of a header")
    return Hmac(
        header,
        table.read("algorithm", _one_of(ALGORITHMS), "sha256"),
        table.read("encoding", _one_of(ENCODINGS), "hex"),
        table.read("prefix", _visible, ""),
    )


def _secrets(
    name: str, table: _Table, scheme: Scheme, settings: Settings, environ: Mapping[str, str]
) -> tuple[str, ...]:
    if not scheme.needs_secret:
        if "secrets" in table.fields:
            table.refuse(
                "secrets", f"scheme {scheme.name} takes none: leave them out, or name another scheme"
            )
        return ()
    own = name == STRIPE and scheme.name == STRIPE
    of_variable = tuple(secret.get_secret_value() for secret in settings.stripe_webhook_secrets)
    if (
        own
        and of_variable
        and (environ.get(variable("stripe_webhook_secret")) or "secrets" not in table.fields)
    ):
        return _checked(scheme, of_variable, lambda _, why: _refuse_variable(why))
    if "secrets" not in table.fields:
        table.refuse("secrets", f"scheme {scheme.name} needs at least one: {scheme.key_form}")
    secrets: tuple[str, ...] = ()
    secrets = table.read("secrets", lambda value: _secret_texts(value, scheme, environ), secrets)
    return _checked(scheme, secrets, lambda index, why: table.refuse(f"secrets[{index}]", why))


def _secret_texts(value: object, scheme: Scheme, environ: Mapping[str, str]) -> tuple[str, ...]:
    texts = [_from_env(text, environ) for text in _texts(value, SECRETS_MAX)]
    if not texts:
        raise ValueError(f"the list is empty; scheme {scheme.name} needs at least one: {scheme.key_form}")
    if not scheme.comma_separates:
        return tuple(texts)
    return tuple(part.strip() for text in texts for part in text.split(","))


def _checked(
    scheme: Scheme, secrets: tuple[str, ...], refuse: Callable[[int, str], NoReturn]
) -> tuple[str, ...]:
    for index, secret in enumerate(secrets):
        if not secret.strip():
            refuse(index, "it is empty")
        if secret != secret.strip():
            refuse(index, "there is whitespace before or after it")
        if secret[0] == secret[-1] and secret[0] in "\"'":
            refuse(index, "there are quotes around it")
        try:
            scheme.check_secret(secret)
        except ConfigError as error:
            refuse(index, f"{error}; expected is {scheme.key_form}")
    return tuple(dict.fromkeys(secrets))


def _refuse_variable(why: str) -> NoReturn:
    raise ConfigError(f"{variable('stripe_webhook_secret')}: {why}")


def _places(table: _Table, name: str) -> Places | None:
    """None where the scheme's count; an empty list says that there is none."""
    return table.read(name, lambda value: tuple(_place(text) for text in _texts(value, 10)), None)


def _lane(table: _Table) -> Lane | None:
    place = table.read("lane", _place, None)
    if place is None:
        for name in ("lane_order", "lane_dead_letter"):
            if name in table.fields:
                table.refuse(name, "there is no lane")
        return None
    dead_letter: Literal["hold", "pass"] = "hold"
    if table.read("lane_dead_letter", _one_of(("hold", "pass")), "hold") == "pass":
        dead_letter = "pass"
    return Lane(place, table.read("lane_order", _place, None), dead_letter)


def _handlers(table: _Table, environ: Mapping[str, str]) -> tuple[Handler, ...]:
    written = table.fields.get("handlers", [])
    if not isinstance(written, list) or not all(isinstance(one, dict) for one in written):
        table.refuse("handlers", f"write each as a table [[webhooks.{table.path[1]}.handlers]]")
    if len(written) > HANDLERS_MAX:
        table.refuse("handlers", f"there are {len(written)}, at most {HANDLERS_MAX} are allowed")
    found: dict[str, Handler] = {}
    for index, fields in enumerate(written):
        handler = _handler(_Table((*table.path, f"handlers[{index}]"), fields), environ)
        if handler.name in found:
            table.refuse(f"handlers[{index}].name", f"there are two handlers named {handler.name!r}")
        found[handler.name] = handler
    return tuple(found.values())


def _handler(table: _Table, environ: Mapping[str, str]) -> Handler:
    table.only(_HANDLER_FIELDS)
    name = table.read("name", _matching(_HANDLER_NAME, "letters, digits, _, . and -, at most 63"), None)
    if name is None:
        table.refuse("name", "a handler needs one: what is done is remembered by it")
    kinds = [kind for kind in ("url", "sql", "python") if kind in table.fields]
    if len(kinds) != 1:
        given = f"there are {' and '.join(kinds)}" if kinds else "there is none"
        table.refuse(None, f"handler {name!r} needs exactly one of url, sql and python; {given}")
    for field in ("secret", "allow_private"):
        if field in table.fields and kinds != ["url"]:
            table.refuse(field, f"it belongs to a url; handler {name!r} has {kinds[0]}")
    return Handler(
        name=name,
        events=table.read("events", _events, ALL_EVENTS),
        url=table.read("url", _url, None),
        sql=table.read("sql", _matching(_SQL, "a function's name such as public.on_event"), None),
        python=table.read("python", _matching(_PYTHON, "module:function such as shop.hooks:on_event"), None),
        secret=table.read("secret", lambda value: _signing_secret(value, environ), None),
        allow_private=table.read("allow_private", _yes_or_no, False),
    )


class _Table:
    """A table of a source, and its place in errors: where the sources are written, then names."""

    def __init__(self, path: tuple[str, ...], fields: Mapping[str, Any]) -> None:
        self.path = path
        self.fields = fields

    def only(self, *allowed: Iterable[str]) -> None:
        """Refuse a field that is none of these."""
        known = [name for names in allowed for name in names]
        for name in self.fields:
            if name not in known:
                self.refuse(name, f"it is no setting{suggestion(name, known)}")

    def read(self, name: str, parse: Callable[[Any], T], default: T) -> T:
        """A field's value, or the default where it is not there."""
        if name not in self.fields:
            return default
        try:
            return parse(self.fields[name])
        except _NotSet as error:
            self.refuse(name, str(error), VariableMissing)
        except ValueError as error:
            self.refuse(name, str(error))

    def refuse(self, name: str | None, why: str, kind: type[ConfigError] = ConfigError) -> NoReturn:
        """
        Raises:
            ConfigError: Always; it names the file and the field.
        """
        path = ".".join((*self.path, name) if name else self.path)
        raise kind(f"{path}: {why}")


class _NotSet(ValueError):
    """A variable is not set, or empty."""


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it must be a text that is not empty")
    return value


def _texts(value: object, count_max: int) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values):
        raise ValueError("it must be a text, or a list of texts")
    if len(values) > count_max:
        raise ValueError(f"it has {len(values)} entries, at most {count_max} are allowed")
    return tuple(values)


def _visible(value: object) -> str:
    if not isinstance(value, str) or not _VISIBLE.fullmatch(value):
        raise ValueError("it must be a text of at most 100 ASCII characters")
    return value


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _one_of(allowed: tuple[str, ...]) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"allowed is {', '.join(allowed)}")
        return value

    return parse


def _matching(pattern: re.Pattern[str], allowed: str) -> Callable[[object], str | None]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"allowed is {allowed}")
        return value

    return parse


def _place(value: object) -> Place:
    try:
        return places.parse_place(_text(value))
    except ValueError:
        raise ValueError(f"allowed is {places.ALLOWED}") from None


def _events(value: object) -> tuple[str, ...]:
    patterns = _texts(value, EVENTS_MAX)
    if not patterns or not all(0 < len(one) <= 255 for one in patterns):
        raise ValueError('it must be a list of event types such as ["checkout.*"]; left out, it means all')
    return patterns


def _url(value: object) -> str:
    text = _text(value)
    allowed = "an address that begins with https:// or http://"
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not text.isascii() or any(character <= " " or character == "\x7f" for character in text):
        raise ValueError(f"allowed is {allowed}")
    if "#" in text or "@" in parts.netloc:
        raise ValueError(f"allowed is {allowed}, without a user, a password or a part after #")
    return text


def _signing_secret(value: object, environ: Mapping[str, str]) -> str:
    secret = _from_env(value, environ)
    try:
        StandardWebhooks().signature(secret, b"")
    except ConfigError as error:
        raise ValueError(f"{error}; expected is whsec_ and base64, or whsk_ and an Ed25519 key") from None
    return secret


def _body_limit(value: object) -> int:
    match = _SIZE.fullmatch(str(value)) if isinstance(value, int | str) else None
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < size <= BODY_BYTES_MAX:
        raise ValueError('allowed is a number of bytes, or "512KiB" and the like, from 1 to 10MiB')
    return size


def _from_env(value: object, environ: Mapping[str, str]) -> str:
    """A text, or what the variable holds that `env:NAME` names."""
    if not isinstance(value, str):
        raise ValueError("it must be a text")
    if not value.startswith("env:"):
        return value
    name = value.removeprefix("env:").strip()
    found = environ.get(name)
    if not found:
        raise _NotSet(f"the variable {name} is {'not set' if found is None else 'empty'}")
    return found


def _token_field(scheme: Scheme) -> tuple[str, ...]:
    return ("verify_token",) if scheme.takes_verify_token else ()
