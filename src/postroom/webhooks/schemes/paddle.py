"""
Paddle.

The header is `Paddle-Signature: ts=1700000000;h1=…`; h1 is the HMAC-SHA256, in hex, of `ts:body` by
the whole secret `pdl_ntfset_…`. During a rotation there is an h1 for each secret. Paddle advises 5 s
of tolerance; postroom's is that of all its schemes.

Source: https://developer.paddle.com/webhooks/signature-verification
"""

from __future__ import annotations

from postroom.webhooks.places import Body
from postroom.webhooks.request import WebhookRequest
from postroom.webhooks.schemes.base import (
    Claim,
    HmacScheme,
    one_field,
    one_header,
    read_fields,
    read_timestamp,
    some_signatures,
    tried,
    wire,
)

_HEADER = "Paddle-Signature"


class Paddle(HmacScheme):
    name = "paddle"
    document = "https://developer.paddle.com/webhooks/signature-verification"
    key_form = "pdl_ntfset_…, of the notification destination"
    signature_headers = (_HEADER,)
    comma_separates = True
    event_id = (Body("event_id"),)
    event_type = (Body("event_type"),)

    def read(self, request: WebhookRequest) -> Claim:
        fields = read_fields(one_header(request, _HEADER), ";", _HEADER)
        at = one_field(fields, "ts", _HEADER)
        at_s = read_timestamp(at, _HEADER)
        signatures = [tried(self.from_hex, value, _HEADER) for name, value in fields if name == "h1"]
        return Claim((_message(at, request.body),), some_signatures(signatures, _HEADER), at_s)

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        at = str(int(at_s))
        signature = self.digest(_message(at, request.body), secret).hex()
        return request.with_header(_HEADER, f"ts={at};h1={signature}")

    def signing_secret(self) -> tuple[str, str]:
        secret = f"pdl_ntfset_{super().signing_secret()[0]}"
        return secret, secret


def _message(at: str, body: bytes) -> bytes:
    return wire(at) + b":" + body
