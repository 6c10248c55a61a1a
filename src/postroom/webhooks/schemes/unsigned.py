"""
Sources that sign nothing.

- postmark: HTTP basic authentication, `user:password` as in the webhook's address. Postmark gives up
  at 403, so a wrong one is answered 401. No id that is the event's alone: its body's digest is.
  Source: https://postmarkapp.com/developer/webhooks/webhooks-overview#protecting-your-webhook
- none: anybody may send events, by GET too, whose fields are in the address. A GET without any is a
  probe, such as Mailchimp's. A source has it only where it is written out.
"""

from __future__ import annotations

import hmac

from postroom.errors import ConfigError, SignatureError, SignatureReason
from postroom.webhooks.places import Body, Digest, Header
from postroom.webhooks.request import Answer, WebhookRequest
from postroom.webhooks.schemes.base import Claim, Scheme, base64, decode_base64, one_header


class Postmark(Scheme):
    name = "postmark"
    document = "https://postmarkapp.com/developer/webhooks/webhooks-overview#protecting-your-webhook"
    key_form = "user:password, as in the webhook's address"
    header = "Authorization"
    signature_headers = (header,)
    refusal_status = 401
    event_id = (Digest(),)
    event_type = (Body("RecordType"),)

    def read(self, request: WebhookRequest) -> Claim:
        kind, _, credentials = one_header(request, self.header).partition(" ")
        if kind.lower() != "basic":
            raise SignatureError(
                SignatureReason.HEADER_MALFORMED, f"the header {self.header} does not begin with Basic"
            )
        return Claim((), (decode_base64(credentials.strip(), None, self.header),))

    def holds(self, claim: Claim, secret: str) -> bool:
        return hmac.compare_digest(claim.signatures[0], secret.encode("utf-8", "surrogateescape"))

    def check_secret(self, secret: str) -> None:
        user, colon, password = secret.partition(":")
        if not (user and colon and password):
            raise ConfigError("it is no user:password")

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        return request.with_header(self.header, f"Basic {base64(secret.encode())}")

    def signing_secret(self) -> tuple[str, str]:
        secret = f"postmark:{super().signing_secret()[0]}"
        return secret, secret


class NoScheme(Scheme):
    name = "none"
    document = "nobody signs"
    key_form = "none: it takes no secret"
    needs_secret = False
    methods = ("POST", "GET")
    event_id = (Header("webhook-id"), Body("id"))
    event_type = (Body("type"),)

    def greet(self, request: WebhookRequest, verify_token: str | None) -> Answer | None:
        is_probe = request.method == "GET" and not request.body and not request.form
        return Answer(200) if is_probe else super().greet(request, verify_token)

    def read(self, request: WebhookRequest) -> Claim:  # noqa: ARG002
        return Claim((), ())

    def holds(self, claim: Claim, secret: str) -> bool:  # noqa: ARG002
        return True

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        return request
