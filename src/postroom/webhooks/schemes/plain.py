"""
Providers that put the HMAC-SHA256 of the body alone into one header, and no time.

- github: `X-Hub-Signature-256: sha256=` and hex.
  Source: https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
- meta: the same by the app's secret; its endpoint is confirmed by GET with `hub.challenge`.
  Source: https://developers.facebook.com/docs/graph-api/webhooks/getting-started
- shopify: `X-Shopify-Hmac-Sha256`, base64, by the app's client secret; a wrong one is answered 401. The
  id is X-Shopify-Webhook-Id: several topics share one X-Shopify-Event-Id.
  Source: https://shopify.dev/docs/apps/build/webhooks/verify-deliveries
- line: `X-Line-Signature`, base64, by the channel's secret. It tries an address out by a request without
  events, which is answered 200.
  Source: https://developers.line.biz/en/docs/messaging-api/verify-webhook-signature/
"""

from __future__ import annotations

import hmac

from postroom.webhooks.places import Batch, Body, Digest, Header, digest_all, same_of_all, step_into, value_at
from postroom.webhooks.request import TEXT, Answer, WebhookRequest
from postroom.webhooks.schemes.base import Claim, HmacScheme, base64, one_header, without_prefix

_CHALLENGE_CHARACTERS_MAX = 1_000


class OfBody(HmacScheme):
    """The HMAC of the body in one header."""

    header: str
    prefix: str = ""
    encoding: str = "hex"

    def read(self, request: WebhookRequest) -> Claim:
        text = without_prefix(one_header(request, self.header), self.prefix, self.header)
        decode = self.from_hex if self.encoding == "hex" else self.from_base64
        return Claim((request.body,), (decode(text, self.header),))

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        digest = self.digest(request.body, secret)
        text = digest.hex() if self.encoding == "hex" else base64(digest)
        return request.with_header(self.header, f"{self.prefix}{text}")


class GitHub(OfBody):
    name = "github"
    document = "https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries"
    key_form = "the text that was entered as the webhook's secret"
    header = "X-Hub-Signature-256"
    signature_headers = (header,)
    prefix = "sha256="
    event_id = (Header("X-GitHub-Delivery"),)
    event_type = (Header("X-GitHub-Event"),)

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:
        signed = super().sign(request, secret, at_s, event_id)
        return signed.with_header("X-GitHub-Delivery", event_id)


class Meta(OfBody):
    name = "meta"
    document = "https://developers.facebook.com/docs/graph-api/webhooks/getting-started"
    key_form = "the app's secret"
    header = "X-Hub-Signature-256"
    signature_headers = (header,)
    prefix = "sha256="
    takes_verify_token = True
    event_id = (Digest(),)
    event_type = (Body("object"),)

    def greet(self, request: WebhookRequest, verify_token: str | None) -> Answer | None:
        if request.method != "GET":
            return super().greet(request, verify_token)
        asked = dict(request.query)
        challenge, token = asked.get("hub.challenge", ""), asked.get("hub.verify_token", "")
        known = verify_token is not None and hmac.compare_digest(
            token.encode("utf-8", "replace"), verify_token.encode("utf-8", "replace")
        )
        if asked.get("hub.mode") != "subscribe" or not known or len(challenge) > _CHALLENGE_CHARACTERS_MAX:
            return Answer(403)
        return Answer(200, challenge.encode("utf-8", "replace"), TEXT)


class Shopify(OfBody):
    name = "shopify"
    document = "https://shopify.dev/docs/apps/build/webhooks/verify-deliveries"
    key_form = "the app's client secret"
    header = "X-Shopify-Hmac-Sha256"
    signature_headers = (header,)
    encoding = "base64"
    refusal_status = 401
    event_id = (Header("X-Shopify-Webhook-Id"),)
    event_type = (Header("X-Shopify-Topic"),)

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:
        signed = super().sign(request, secret, at_s, event_id)
        return signed.with_header("X-Shopify-Webhook-Id", event_id)


class Line(OfBody):
    name = "line"
    document = "https://developers.line.biz/en/docs/messaging-api/verify-webhook-signature/"
    key_form = "the channel's secret"
    header = "X-Line-Signature"
    signature_headers = (header,)
    encoding = "base64"
    event_id = (Batch("events", value_at("webhookEventId"), digest_all),)
    event_type = (Batch("events", value_at("type"), same_of_all),)

    def handshake(self, request: WebhookRequest, secret: str) -> Answer | None:  # noqa: ARG002
        return Answer(200) if step_into(request.json, "events") == [] else None
