"""
Providers that sign the address that they called: POSTROOM_PUBLIC_URL must be that address.

- square: `x-square-hmacsha256-signature`, the base64 HMAC-SHA256 of address and body; no time.
  Source: https://developer.squareup.com/docs/webhooks/step3validate
- twilio: `X-Twilio-Signature`, the base64 HMAC-SHA1 of the address and the form's fields, sorted and
  glued together; a JSON body is signed by its SHA-256 in the address' query, `bodySHA256`. A SharedKey
  signs with HMAC-SHA256, which X-Twilio-Webhooks-Signature-Settings says. Where an event comes by GET
  its fields are in the address. Whether the address has its
  port varies, so both count, as in Twilio's own libraries. No time; I-Twilio-Idempotency-Token is
  the same at each try. The answer is empty TwiML: of any other, Twilio logs an error.
  Source: https://www.twilio.com/docs/usage/webhooks/webhooks-security
- hubspot: `X-HubSpot-Signature-v3`, the base64 HMAC-SHA256 of method, address, body and
  `X-HubSpot-Request-Timestamp`, in milliseconds. In the address some escapes are undone first. A
  request is a batch; eventId is not unique, so the batch's id is a digest of its events without what
  differs from try to try.
  Source: https://developers.hubspot.com/docs/apps/developer-platform/build-apps/authentication/request-validation
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from urllib.parse import SplitResult, urlencode, urlsplit

from postroom.errors import SignatureError, SignatureReason
from postroom.webhooks.places import Batch, Body, Header, content_without, digest_all, same_of_all, value_at
from postroom.webhooks.request import FORM, Answer, WebhookRequest
from postroom.webhooks.schemes.base import (
    Claim,
    HmacScheme,
    base64,
    decode_base64,
    malformed,
    one_header,
    read_timestamp,
    url_bytes,
    wire,
)


class Square(HmacScheme):
    name = "square"
    document = "https://developer.squareup.com/docs/webhooks/step3validate"
    key_form = "the webhook subscription's signature key"
    header = "x-square-hmacsha256-signature"
    signature_headers = (header,)
    signs_url = True
    event_id = (Body("event_id"),)
    event_type = (Body("type"),)

    def read(self, request: WebhookRequest) -> Claim:
        signature = self.from_base64(one_header(request, self.header), self.header)
        return Claim((url_bytes(request.url) + request.body,), (signature,))

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        digest = self.digest(url_bytes(request.url) + request.body, secret)
        return request.with_header(self.header, base64(digest))


class HubSpot(HmacScheme):
    name = "hubspot"
    document = (
        "https://developers.hubspot.com/docs/apps/developer-platform/build-apps/authentication/"
        "request-validation"
    )
    key_form = "the app's client secret"
    header = "X-HubSpot-Signature-v3"
    timestamp_header = "X-HubSpot-Request-Timestamp"
    signature_headers = (header,)
    signs_url = True
    event_id = (Batch("", content_without("attemptNumber"), digest_all),)
    event_type = (Batch("", value_at("subscriptionType"), same_of_all),)

    def read(self, request: WebhookRequest) -> Claim:
        signature = self.from_base64(one_header(request, self.header), self.header)
        at = one_header(request, self.timestamp_header)
        at_s = read_timestamp(at, self.timestamp_header, units_per_s=1000)
        urls = dict.fromkeys((_partly_decoded(request.url), request.url))
        return Claim(tuple(_hubspot_message(request, url, at) for url in urls), (signature,), at_s)

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        at = str(int(at_s * 1000))
        message = _hubspot_message(request, _partly_decoded(request.url), at)
        signature = base64(self.digest(message, secret))
        return request.with_header(self.timestamp_header, at).with_header(self.header, signature)


class Twilio(HmacScheme):
    name = "twilio"
    document = "https://www.twilio.com/docs/usage/webhooks/webhooks-security"
    key_form = "the account's auth token, or the secret of a SharedKey"
    header = "X-Twilio-Signature"
    settings_header = "X-Twilio-Webhooks-Signature-Settings"
    signature_headers = (header,)
    signs_url = True
    content_type = FORM
    methods = ("POST", "GET")
    event_id = (Header("I-Twilio-Idempotency-Token"),)
    event_type = (Body("EventType"), Body("MessageStatus"), Body("SmsStatus"), Body("CallStatus"))

    def read(self, request: WebhookRequest) -> Claim:
        length = 32 if self._algorithm(request) == "sha256" else 20
        signature = decode_base64(one_header(request, self.header), length, self.header)
        fields = _signed_fields(request)
        return Claim(
            tuple(url_bytes(url) + fields for url in _with_and_without_port(request.url)), (signature,)
        )

    def expected(self, claim: Claim, key: bytes) -> list[bytes]:
        algorithm = "sha256" if len(claim.signatures[0]) == 32 else "sha1"
        return [hmac.digest(key, message, algorithm) for message in claim.messages]

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        if request.body and not request.form and "bodySHA256" not in dict(request.query):
            query = urlencode({"bodySHA256": sha256(request.body).hexdigest()})
            request = request.with_url(f"{request.url}{'&' if '?' in request.url else '?'}{query}")
        message = url_bytes(request.url) + _signed_fields(request)
        signature = hmac.digest(self.key(secret), message, self._algorithm(request))
        request = request.with_header(self.header, base64(signature))
        return request.with_header("I-Twilio-Idempotency-Token", event_id)

    def acknowledge(self, request: WebhookRequest) -> Answer:  # noqa: ARG002
        return Answer(200, b"<Response/>", "text/xml")

    def _algorithm(self, request: WebhookRequest) -> str:
        """The algorithm that the header names: both are as hard to forge, so anybody may choose."""
        settings = request.headers.first(self.settings_header) or ""
        parts = (part.partition("=") for part in settings.split(",", 8))
        named = next((value.strip().upper() for name, _, value in parts if name.strip() == "algorithm"), "")
        if named not in ("", "HMAC_SHA1", "HMAC_SHA256"):
            raise malformed(self.settings_header, "names an algorithm other than HMAC_SHA1 and HMAC_SHA256")
        return "sha256" if named == "HMAC_SHA256" else "sha1"


def _signed_fields(request: WebhookRequest) -> bytes:
    """What of the body is signed with the address: all of it, or the request is refused."""
    body_sha256 = dict(request.query).get("bodySHA256")
    if body_sha256 is not None:
        own = sha256(request.body).hexdigest()
        if not hmac.compare_digest(own.encode(), body_sha256.lower().encode("utf-8", "replace")):
            raise SignatureError(
                SignatureReason.MISMATCH, "the address' bodySHA256 is the digest of another body"
            )
        return b""
    if request.method == "GET" and not request.body:
        return b""  # the fields are in the address
    if request.body and (request.is_multipart or not request.form):
        raise SignatureError(
            SignatureReason.BODY_MALFORMED, "the body is no form, and the address has no bodySHA256 of it"
        )
    fields = sorted(set(request.form))
    return b"".join(f"{name}{value}".encode("utf-8", "surrogateescape") for name, value in fields)


def _with_and_without_port(url: str) -> tuple[str, ...]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return (url,)
    if port:
        other = parts._replace(netloc=_without_port(parts))
    else:
        other = parts._replace(netloc=f"{parts.netloc}:{443 if parts.scheme == 'https' else 80}")
    # The address as it came, but for the netloc: what urlunsplit would leave out was signed as well.
    return (url, url.replace(parts.netloc, other.netloc, 1))


def _without_port(parts: SplitResult) -> str:
    return parts.netloc.rpartition(":")[0]


_HUBSPOT_ESCAPES = re.compile("%(3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)


def _partly_decoded(url: str) -> str:
    """The address as HubSpot signs it."""
    return _HUBSPOT_ESCAPES.sub(lambda match: chr(int(match[1], 16)), url)


def _hubspot_message(request: WebhookRequest, url: str, at: str) -> bytes:
    return b"".join((request.method.encode("utf-8", "replace"), url_bytes(url), request.body, wire(at)))
