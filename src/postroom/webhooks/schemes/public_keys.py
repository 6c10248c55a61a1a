"""
Providers that sign with a private key: a source has the public one.

- discord: `X-Signature-Ed25519` in hex, over X-Signature-Timestamp and the body; a wrong one must be
  answered 401, which Discord tries out. Its PING is answered with a PONG, that of webhook events with
  204. An interaction needs an answer of its type within 3 s: it is deferred.
  Sources: https://docs.discord.com/developers/interactions/overview#setting-up-an-endpoint,
  https://docs.discord.com/developers/events/webhook-events
- sendgrid: `X-Twilio-Email-Event-Webhook-Signature`, base64 of an ECDSA signature (P-256, SHA-256) over
  X-Twilio-Email-Event-Webhook-Timestamp and the body. A request is a batch of events.
  Source: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features
"""

from __future__ import annotations

import binascii
from abc import abstractmethod
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from postroom.errors import ConfigError
from postroom.webhooks.places import Batch, Body, Digest, digest_all, same_of_all, step_into, value_at
from postroom.webhooks.request import Answer, WebhookRequest, answer_json
from postroom.webhooks.schemes.base import (
    Claim,
    Scheme,
    base64,
    decode_base64,
    decode_hex,
    one_header,
    read_timestamp,
    wire,
)

_PING, _COMMAND, _COMPONENT, _AUTOCOMPLETE, _MODAL = 1, 2, 3, 4, 5
_PONG, _DEFERRED, _DEFERRED_UPDATE, _CHOICES = 1, 5, 6, 8


class _OfTimeAndBody(Scheme):
    header: str
    timestamp_header: str

    def read(self, request: WebhookRequest) -> Claim:
        signature = self.decode(one_header(request, self.header))
        at = one_header(request, self.timestamp_header)
        at_s = read_timestamp(at, self.timestamp_header)
        return Claim((wire(at) + request.body,), (), at_s, public=(signature,))

    def holds(self, claim: Claim, secret: str) -> bool:
        return bool(claim.public) and self.is_signed(secret, claim.public[0], claim.messages[0])

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        at = str(int(at_s))
        signature = self.signature(secret, wire(at) + request.body)
        return request.with_header(self.timestamp_header, at).with_header(self.header, signature)

    @abstractmethod
    def decode(self, text: str) -> bytes:
        """A signature as it is written in its header."""

    @abstractmethod
    def is_signed(self, secret: str, signature: bytes, message: bytes) -> bool:
        """Whether the signature is that of the message."""

    @abstractmethod
    def signature(self, secret: str, message: bytes) -> str:
        """A signature by a private key, as it is written in its header."""


class Discord(_OfTimeAndBody):
    name = "discord"
    document = "https://docs.discord.com/developers/interactions/overview#setting-up-an-endpoint"
    key_form = "the application's public key, 64 hexadecimal digits"
    header = "X-Signature-Ed25519"
    timestamp_header = "X-Signature-Timestamp"
    signature_headers = (header,)
    comma_separates = True
    refusal_status = 401
    event_id = (Body("id"), Digest())
    event_type = (Body("event.type"), Body("data.name"), Body("data.custom_id"), Body("type"))

    def decode(self, text: str) -> bytes:
        return decode_hex(text, 64, self.header)

    def is_signed(self, secret: str, signature: bytes, message: bytes) -> bool:
        try:
            _ed25519_key(secret).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def signature(self, secret: str, message: bytes) -> str:
        try:
            private = Ed25519PrivateKey.from_private_bytes(binascii.unhexlify(secret))
        except ValueError:
            raise ConfigError("to sign for discord, give the private key as 64 hexadecimal digits") from None
        return private.sign(message).hex()

    def check_secret(self, secret: str) -> None:
        _ed25519_key(secret)

    def signing_secret(self) -> tuple[str, str]:
        private = Ed25519PrivateKey.generate()
        return private.private_bytes_raw().hex(), private.public_key().public_bytes_raw().hex()

    def handshake(self, request: WebhookRequest, secret: str) -> Answer | None:  # noqa: ARG002
        kind = step_into(request.json, "type")
        if not _is_interaction(request):
            return Answer(204) if kind == 0 else None
        return answer_json({"type": _PONG}) if kind == _PING else None

    def acknowledge(self, request: WebhookRequest) -> Answer:
        if not _is_interaction(request):
            return Answer(204)
        match step_into(request.json, "type"):
            case 3:
                return answer_json({"type": _DEFERRED_UPDATE})
            case 4:
                return answer_json({"type": _CHOICES, "data": {"choices": []}})
            case _:
                return answer_json({"type": _DEFERRED})


class SendGrid(_OfTimeAndBody):
    name = "sendgrid"
    document = (
        "https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/"
        "getting-started-event-webhook-security-features"
    )
    key_form = "the verification key of the event webhook, base64 that begins with MFkw"
    header = "X-Twilio-Email-Event-Webhook-Signature"
    timestamp_header = "X-Twilio-Email-Event-Webhook-Timestamp"
    signature_headers = (header,)
    comma_separates = True
    event_id = (Batch("", value_at("sg_event_id"), digest_all),)
    event_type = (Batch("", value_at("event"), same_of_all),)

    def decode(self, text: str) -> bytes:
        return decode_base64(text, None, self.header)

    def is_signed(self, secret: str, signature: bytes, message: bytes) -> bool:
        try:
            _p256_key(secret).verify(signature, message, ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True

    def signature(self, secret: str, message: bytes) -> str:
        try:
            private = load_der_private_key(binascii.a2b_base64(secret), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, EllipticCurvePrivateKey):
            raise ConfigError("to sign for sendgrid, give the private key as base64 of its PKCS #8 form")
        return base64(private.sign(message, ECDSA(SHA256())))

    def check_secret(self, secret: str) -> None:
        _p256_key(secret)

    def signing_secret(self) -> tuple[str, str]:
        private = generate_private_key(SECP256R1())
        public = private.public_key()
        return (
            base64(private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())),
            base64(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
        )


def _is_interaction(request: WebhookRequest) -> bool:
    """An interaction has a token to answer it with; a webhook event has none."""
    return isinstance(step_into(request.json, "token"), str)


@lru_cache(maxsize=64)
def _ed25519_key(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(binascii.unhexlify(text))
    except ValueError:
        raise ConfigError("it is no Ed25519 public key of 64 hexadecimal digits") from None


@lru_cache(maxsize=64)
def _p256_key(text: str) -> EllipticCurvePublicKey:
    lines = [line.strip() for line in text.splitlines() if not line.startswith("-----")]
    try:
        key = load_der_public_key(binascii.a2b_base64("".join(lines)))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ConfigError("it is no base64 of a P-256 public key")
    return key
