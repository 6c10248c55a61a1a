"""
Providers whose signature is in the body, and of a part of it only.

- mailgun: `signature.signature` is the hex HMAC-SHA256 of `timestamp` and `token` beside it. In forms, which
  routes and older webhooks are, in parts where there are files, the three are fields. The event itself is
  not signed: HTTPS must keep it.
  Sources: https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks,
  https://documentation.mailgun.com/docs/mailgun/user-manual/receive-forward-store/receive-http
- adyen: each item of a standard notification has `additionalData.hmacSignature`, the base64
  HMAC-SHA256 of eight of its fields with colons between them; newer webhooks have the header
  HmacSignature, of the whole body. The key is written in hex. No time. The answer is `[accepted]`. An item
  comes again with the same pspReference, eventCode and success.
  Source: https://docs.adyen.com/development-resources/webhooks/secure-webhooks/verify-hmac-signatures
"""

from __future__ import annotations

import binascii
from secrets import token_hex
from typing import Any

from postroom.errors import ConfigError, SignatureError, SignatureReason
from postroom.webhooks.places import Batch, Body, as_text, digest_all, same_of_all, step_into, value_at
from postroom.webhooks.request import TEXT, Answer, WebhookRequest
from postroom.webhooks.schemes.base import Claim, HmacScheme, base64, json_bytes, one_header, with_json

_ITEMS_MAX = 100
_FIELD_CHARACTERS_MAX = 1_000


class Mailgun(HmacScheme):
    name = "mailgun"
    document = "https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks"
    key_form = "the account's HTTP webhook signing key"
    event_id = (Body("event-data.id"),)
    event_type = (Body("event-data.event"), Body("event"))

    def read(self, request: WebhookRequest) -> Claim:
        place = "signature." if isinstance(step_into(request.json, "signature"), dict) else ""
        at, token, written = (
            _field(request, f"{place}{name}") for name in ("timestamp", "token", "signature")
        )
        if not at.isascii() or not at.isdigit() or len(at) > 16:
            raise _missing("the body's timestamp is no whole number of seconds")
        try:
            signature = self.from_hex(written, "signature")
        except SignatureError:
            raise _missing("the body's signature is not written in 64 hexadecimal digits") from None
        return Claim((json_bytes(at + token),), (signature,), float(at))

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        at, token = str(int(at_s)), token_hex(25)
        signature = {
            "timestamp": at,
            "token": token,
            "signature": self.digest(json_bytes(at + token), secret).hex(),
        }
        content = request.json if isinstance(request.json, dict) else {}
        return with_json(request, {**content, "signature": signature})


class Adyen(HmacScheme):
    name = "adyen"
    document = "https://docs.adyen.com/development-resources/webhooks/secure-webhooks/verify-hmac-signatures"
    key_form = "the webhook's HMAC key, hexadecimal digits"
    header = "HmacSignature"
    comma_separates = True
    event_id = (Batch("notificationItems", lambda item: _item_id(item), digest_all), Body("id"))
    event_type = (
        Batch("notificationItems", value_at("NotificationRequestItem.eventCode"), same_of_all),
        Body("type"),
    )

    def read(self, request: WebhookRequest) -> Claim:
        if self.header in request.headers:
            return Claim((request.body,), (self.from_base64(one_header(request, self.header), self.header),))
        items = step_into(request.json, "notificationItems")
        if not isinstance(items, list) or not 0 < len(items) <= _ITEMS_MAX:
            raise _missing(
                f"there is no header {self.header}, and the body has no notificationItems, 1 to {_ITEMS_MAX}"
            )
        first, *others = [self._claim(step_into(item, "NotificationRequestItem")) for item in items]
        return Claim(first.messages, first.signatures, also=tuple(others))

    def key(self, secret: str) -> bytes:
        try:
            return binascii.unhexlify(secret)
        except ValueError:
            raise ConfigError("it is not written in hexadecimal digits") from None

    def check_secret(self, secret: str) -> None:
        self.key(secret)

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        items = step_into(request.json, "notificationItems")
        if not isinstance(items, list):
            return request.with_header(self.header, base64(self.digest(request.body, secret)))
        return with_json(
            request, {**request.json, "notificationItems": [self._signed(item, secret) for item in items]}
        )

    def acknowledge(self, request: WebhookRequest) -> Answer:  # noqa: ARG002
        return Answer(200, b"[accepted]", TEXT)

    def _claim(self, item: Any) -> Claim:
        written = step_into(item, "additionalData.hmacSignature")
        if not isinstance(written, str) or not written:
            raise _missing("an item of the body has no additionalData.hmacSignature")
        try:
            return Claim((_item_message(item),), (self.from_base64(written, "hmacSignature"),))
        except SignatureError:
            raise _missing("an hmacSignature of the body is no base64 of 32 bytes") from None

    def _signed(self, item: Any, secret: str) -> Any:
        content = step_into(item, "NotificationRequestItem")
        if not isinstance(content, dict):
            return item
        further = content.get("additionalData")
        signature = base64(self.digest(_item_message(content), secret))
        further = {**(further if isinstance(further, dict) else {}), "hmacSignature": signature}
        return {**item, "NotificationRequestItem": {**content, "additionalData": further}}


def _item_message(item: Any) -> bytes:
    places = (
        "pspReference",
        "originalReference",
        "merchantAccountCode",
        "merchantReference",
        "amount.value",
        "amount.currency",
        "eventCode",
        "success",
    )
    return json_bytes(":".join(_as_signed(step_into(item, place)) for place in places))


def _as_signed(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return as_text(value) or ""


def _item_id(item: Any) -> str | None:
    content = step_into(item, "NotificationRequestItem")
    parts = [_as_signed(step_into(content, name)) for name in ("pspReference", "eventCode", "success")]
    return ":".join(parts) if parts[0] else None


def _field(request: WebhookRequest, path: str) -> str:
    content = request.json
    text = as_text(step_into(dict(request.form) if content is None else content, path))
    if text is None or len(text) > _FIELD_CHARACTERS_MAX:
        raise _missing(f"the body has no {path}")
    return text


def _missing(sentence: str) -> SignatureError:
    return SignatureError(SignatureReason.BODY_MALFORMED, sentence)
