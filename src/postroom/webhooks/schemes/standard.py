"""
Standard Webhooks, and Svix, which it was made from; Resend sends by Svix.

The headers are `webhook-id`, `webhook-timestamp` and `webhook-signature: v1,… v1a,…` (`svix-…`
with Svix), signatures separated by spaces. What is signed is `id.timestamp.body`: v1 is an
HMAC-SHA256 in base64 by the secret `whsec_…`, whose key is base64 after the prefix; v1a is Ed25519,
verified by `whpk_…` and made by `whsk_…`.

Sources: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md,
https://docs.svix.com/receiving/verifying-payloads/how-manual,
https://resend.com/docs/dashboard/webhooks/verify-webhooks-requests
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from functools import lru_cache
from os import urandom
from typing import ClassVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from postroom.errors import ConfigError
from postroom.webhooks.places import Body, Header, Places
from postroom.webhooks.request import WebhookRequest
from postroom.webhooks.schemes.base import (
    Claim,
    HmacScheme,
    base64,
    decode_base64,
    malformed,
    one_header,
    read_timestamp,
    some_signatures,
    tried,
    wire,
)

_PUBLIC_SIGNATURES_MAX = 8
_PUBLIC, _PRIVATE, _SHARED = "whpk_", "whsk_", "whsec_"


def _prefix(prefixes: tuple[str, ...], request: WebhookRequest) -> str:
    """Which of the names the headers have whose signature counts."""
    return next((prefix for prefix in prefixes if f"{prefix}-signature" in request.headers), prefixes[0])


@dataclass(frozen=True, slots=True)
class _SignedId:
    """The id that is signed: one under the other name may be anybody's."""

    prefixes: tuple[str, ...]

    def read(self, request: WebhookRequest) -> str | None:
        return Header(f"{_prefix(self.prefixes, request)}-id").read(request)


class StandardWebhooks(HmacScheme):
    name = "standard-webhooks"
    document = "https://github.com/standard-webhooks/standard-webhooks"
    key_form = "whsec_ and base64, or whpk_ and the base64 of an Ed25519 public key"
    signature_headers: tuple[str, ...] = ("webhook-signature",)
    comma_separates = True
    prefixes: ClassVar[tuple[str, ...]] = ("webhook",)
    event_id: Places = (Header("webhook-id"),)
    event_type = (Body("type"),)

    def read(self, request: WebhookRequest) -> Claim:
        prefix = self._prefix(request)
        where = f"{prefix}-signature"
        at = one_header(request, f"{prefix}-timestamp")
        at_s = read_timestamp(at, f"{prefix}-timestamp")
        message = _message(one_header(request, f"{prefix}-id"), at, request.body)
        versions = [text.partition(",") for text in one_header(request, where).split()]
        shared = [tried(self.from_base64, text, where) for kind, _, text in versions if kind == "v1"]
        public = [tried(_from_base64_64, text, where) for kind, _, text in versions if kind == "v1a"]
        some_signatures([*shared, *public], where)
        good = tuple(signature for signature in public if isinstance(signature, bytes))
        if len(good) > _PUBLIC_SIGNATURES_MAX:
            raise malformed(where, f"has more than {_PUBLIC_SIGNATURES_MAX} signatures of v1a")
        return Claim(
            (message,),
            tuple(signature for signature in shared if isinstance(signature, bytes)),
            at_s,
            public=good,
        )

    def holds(self, claim: Claim, secret: str) -> bool:
        if not secret.startswith(_PUBLIC):
            return super().holds(claim, secret)
        key = _public_key(secret)
        return any(_is_signed(key, signature, claim.messages[0]) for signature in claim.public)

    def key(self, secret: str) -> bytes:
        return _decoded(secret.removeprefix(_SHARED))

    def check_secret(self, secret: str) -> None:
        if secret.startswith(_PRIVATE):
            raise ConfigError("it is a private key: a source verifies by the public one, whpk_…")
        if secret.startswith(_PUBLIC):
            _public_key(secret)
        else:
            self.key(secret)

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:
        prefix, at = self.prefixes[0], str(int(at_s))
        request = request.with_header(f"{prefix}-id", event_id).with_header(f"{prefix}-timestamp", at)
        signed_id = request.headers.first(f"{prefix}-id") or ""
        return request.with_header(
            f"{prefix}-signature", self.signature(secret, _message(signed_id, at, request.body))
        )

    def signature(self, secret: str, message: bytes) -> str:
        """One signature with its version, by a shared or a private key."""
        if not secret.startswith(_PRIVATE):
            return f"v1,{base64(self.digest(message, secret))}"
        seed = _decoded(secret.removeprefix(_PRIVATE))[:32]
        try:
            private = Ed25519PrivateKey.from_private_bytes(seed)
        except ValueError:
            raise ConfigError("after whsk_ is no base64 of an Ed25519 private key") from None
        return f"v1a,{base64(private.sign(message))}"

    def signing_secret(self) -> tuple[str, str]:
        secret = f"{_SHARED}{base64(urandom(24))}"
        return secret, secret

    def _prefix(self, request: WebhookRequest) -> str:
        return _prefix(self.prefixes, request)


class Svix(StandardWebhooks):
    name = "svix"
    document = "https://docs.svix.com/receiving/verifying-payloads/how-manual"
    signature_headers = ("svix-signature", "webhook-signature")
    prefixes = ("svix", "webhook")
    event_id = (_SignedId(prefixes),)


class Resend(Svix):
    name = "resend"
    document = "https://resend.com/docs/dashboard/webhooks/verify-webhooks-requests"
    key_form = "whsec_ and base64, of the webhook in Resend's dashboard"


def new_key_pair() -> tuple[str, str]:
    """A private key `whsk_…` and its public one `whpk_…`, fresh."""
    private = Ed25519PrivateKey.generate()
    seed, public = private.private_bytes_raw(), private.public_key().public_bytes_raw()
    return f"{_PRIVATE}{base64(seed + public)}", f"{_PUBLIC}{base64(public)}"


def _message(event_id: str, at: str, body: bytes) -> bytes:
    return b".".join((wire(event_id), wire(at), body))


def _from_base64_64(text: str, where: str) -> bytes:
    return decode_base64(text, 64, where)


def _is_signed(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=64)
def _public_key(secret: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(_decoded(secret.removeprefix(_PUBLIC)))
    except ValueError:
        raise ConfigError("after whpk_ is no base64 of the 32 bytes of an Ed25519 public key") from None


def _decoded(text: str) -> bytes:
    """Base64, its padding left out or not."""
    try:
        bare = text.rstrip("=")
        data = binascii.a2b_base64(f"{bare}{'=' * (-len(bare) % 4)}", strict_mode=True)
    except ValueError:
        data = b""
    if not data:
        raise ConfigError("after its prefix it is no base64")
    return data
