"""Requests as a provider would send them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from json import dumps
from time import time
from urllib.parse import urlencode
from uuid import uuid4

from postroom.errors import ConfigError
from postroom.settings_sources import suggestion
from postroom.webhooks.request import FORM, JSON, Headers, WebhookRequest
from postroom.webhooks.schemes import SCHEMES, Scheme, scheme_name
from postroom.webhooks.source import Source

URL = "http://127.0.0.1:8400"

Payload = bytes | str | Mapping[str, object] | list[object]


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as a provider sends it: every HTTP client takes its parts."""

    method: str
    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def signed(
    source: str | Source,
    payload: Payload,
    secret: str,
    *,
    url: str | None = None,
    at: float | None = None,
    event_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> SignedRequest:
    """
    Make a request as the provider would.

    Args:
        source: A scheme's name such as `stripe` or `github`; or a Source.
        payload: Bytes or a text as they are; else it becomes JSON, or a form where the provider sends
            forms. Where the signature is in the body, the body becomes JSON with it.
        secret: What the provider signs with: the private key, where there is one (see new_secret).
        url: The address that is called, whole; it counts where it is signed. Default:
            http://127.0.0.1:8400/webhooks/{source}.
        at: When it is signed, in seconds since 1970; default: now.
        event_id: Where the provider names the event in a header; default: a fresh one.
        headers: Further ones, such as `X-GitHub-Event`.

    Raises:
        ConfigError: There is no such scheme, or the secret has not its form.
    """
    scheme = source.scheme if isinstance(source, Source) else _scheme(source)
    name = source.name if isinstance(source, Source) else scheme.name
    body, content_type = _body(scheme, payload)
    fields = {"Content-Type": content_type, **(headers or {})}
    request = WebhookRequest("POST", url or f"{URL}/webhooks/{name}", Headers(fields.items()), body)
    request = scheme.sign(request, secret, time() if at is None else at, event_id or str(uuid4()))
    return SignedRequest(request.method, request.url, dict(request.headers), request.body)


def new_secret(source: str) -> tuple[str, str]:
    """
    A fresh secret for tests: what the provider signs with, and what a source verifies with.

    The two are the same but for schemes with a public key, such as `discord` and `sendgrid`.
    """
    return _scheme(source).signing_secret()


def _scheme(name: str) -> Scheme:
    known = scheme_name(name)
    if known not in SCHEMES:
        raise ConfigError(f"{name!r} is no scheme{suggestion(known, SCHEMES)}")
    return SCHEMES[known]


def _body(scheme: Scheme, payload: Payload) -> tuple[bytes, str]:
    if isinstance(payload, bytes):
        return payload, scheme.content_type
    if isinstance(payload, str):
        return payload.encode(), scheme.content_type
    if isinstance(payload, Mapping) and scheme.content_type == FORM:
        return urlencode(payload, doseq=True).encode(), FORM
    return dumps(payload, separators=(",", ":"), ensure_ascii=False).encode(), JSON
