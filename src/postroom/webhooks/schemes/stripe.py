"""
Stripe.

The header is `Stripe-Signature: t=1700000000,v1=…,v1=…,v0=…`; v1 is the HMAC-SHA256, in hex, of
`t.body` by the whole string `whsec_…`. During a rotation there is a v1 for each secret.

Source: https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

from postroom.errors import ConfigError
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

_HEADER = "Stripe-Signature"


class Stripe(HmacScheme):
    name = "stripe"
    document = "https://docs.stripe.com/webhooks#verify-manually"
    key_form = "whsec_…, of the endpoint, or of `stripe listen`"
    signature_headers = (_HEADER,)
    comma_separates = True
    event_id = (Body("id"),)
    event_type = (Body("type"),)

    def read(self, request: WebhookRequest) -> Claim:
        fields = read_fields(one_header(request, _HEADER), ",", _HEADER)
        at = one_field(fields, "t", _HEADER)
        at_s = read_timestamp(at, _HEADER)
        signatures = [tried(self.from_hex, value, _HEADER) for name, value in fields if name == "v1"]
        return Claim((_message(at, request.body),), some_signatures(signatures, _HEADER), at_s)

    def check_secret(self, secret: str) -> None:
        super().check_secret(secret)
        if secret.startswith(("sk_", "rk_", "pk_")):
            raise ConfigError("it is an API key; the signing secret of an endpoint begins with whsec_")

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        at = str(int(at_s))
        signature = self.digest(_message(at, request.body), secret).hex()
        return request.with_header(_HEADER, f"t={at},v1={signature}")

    def signing_secret(self) -> tuple[str, str]:
        secret = f"whsec_{super().signing_secret()[0]}"
        return secret, secret


def _message(at: str, body: bytes) -> bytes:
    return wire(at) + b"." + body
