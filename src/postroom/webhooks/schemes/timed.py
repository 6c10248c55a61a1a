"""
Providers that sign the body with a time from a header of its own.

- slack: `X-Slack-Signature: v0=` and the hex HMAC-SHA256 of `v0:timestamp:body`. Its url_verification
  is signed like an event and answered with the challenge; a stored event is answered without a
  body, which Slack would show to the user of a slash command.
  Source: https://docs.slack.dev/authentication/verifying-requests-from-slack
- zoom: the same with `x-zm-signature`. endpoint.url_validation is answered with the HMAC of a
  token that the request chooses, by the same secret that signs events: answered unsigned, it
  would sign any event for any stranger, so the signature comes first, and a token that could be
  the beginning of a signed message is refused.
  Source: https://developers.zoom.us/docs/api/webhooks/#verify-webhook-events
- linear: `Linear-Signature`, the hex HMAC-SHA256 of the body, in which webhookTimestamp is the
  time in milliseconds. Source: https://linear.app/developers/webhooks#securing-webhooks
"""

from __future__ import annotations

from postroom.errors import SignatureError, SignatureReason
from postroom.webhooks.places import Body, Digest, Header, as_text, step_into
from postroom.webhooks.request import TEXT, Answer, WebhookRequest, answer_json
from postroom.webhooks.schemes.base import (
    Claim,
    HmacScheme,
    one_header,
    read_timestamp,
    wire,
    with_json,
    without_prefix,
)

_CHALLENGE_CHARACTERS_MAX = 1_000


class _VersionZero(HmacScheme):
    header: str
    timestamp_header: str

    def read(self, request: WebhookRequest) -> Claim:
        text = without_prefix(one_header(request, self.header), "v0=", self.header)
        at = one_header(request, self.timestamp_header)
        at_s = read_timestamp(at, self.timestamp_header)
        return Claim((_message(at, request.body),), (self.from_hex(text, self.header),), at_s)

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:  # noqa: ARG002
        at = str(int(at_s))
        signature = self.digest(_message(at, request.body), secret).hex()
        return request.with_header(self.timestamp_header, at).with_header(self.header, f"v0={signature}")


class Slack(_VersionZero):
    name = "slack"
    document = "https://docs.slack.dev/authentication/verifying-requests-from-slack"
    key_form = "the app's signing secret"
    header = "X-Slack-Signature"
    timestamp_header = "X-Slack-Request-Timestamp"
    signature_headers = (header,)
    event_id = (Body("event_id"),)
    event_type = (Body("event.type"), Body("type"), Body("command"))

    def handshake(self, request: WebhookRequest, secret: str) -> Answer | None:  # noqa: ARG002
        challenge = step_into(request.json, "challenge")
        if step_into(request.json, "type") != "url_verification" or not isinstance(challenge, str):
            return None
        return Answer(200, challenge[:_CHALLENGE_CHARACTERS_MAX].encode("utf-8", "replace"), TEXT)

    def acknowledge(self, request: WebhookRequest) -> Answer:  # noqa: ARG002
        return Answer(200)


class Zoom(_VersionZero):
    name = "zoom"
    document = "https://developers.zoom.us/docs/api/webhooks/#verify-webhook-events"
    key_form = "the app's secret token"
    header = "x-zm-signature"
    timestamp_header = "x-zm-request-timestamp"
    signature_headers = (header,)
    event_id = (Digest(),)
    event_type = (Body("event"),)

    def handshake(self, request: WebhookRequest, secret: str) -> Answer | None:
        if step_into(request.json, "event") != "endpoint.url_validation":
            return None
        token = step_into(request.json, "payload.plainToken")
        if not isinstance(token, str) or len(token) > _CHALLENGE_CHARACTERS_MAX or token.startswith("v0:"):
            return Answer(400)
        token = token.encode("utf-8", "replace").decode()
        encrypted = self.digest(token.encode(), secret).hex()
        return answer_json({"plainToken": token, "encryptedToken": encrypted})


class Linear(HmacScheme):
    name = "linear"
    document = "https://linear.app/developers/webhooks#securing-webhooks"
    key_form = "lin_wh_…, of the webhook"
    signature_headers = ("Linear-Signature",)
    event_id = (Header("Linear-Delivery"),)
    event_type = (Body("type"), Header("Linear-Event"))

    def read(self, request: WebhookRequest) -> Claim:
        signature = self.from_hex(one_header(request, "Linear-Signature"), "Linear-Signature")
        at = as_text(step_into(request.json, "webhookTimestamp"))
        if at is None or not at.isascii() or not at.isdigit() or len(at) > 16:
            raise SignatureError(
                SignatureReason.BODY_MALFORMED, "the body has no webhookTimestamp, its time in milliseconds"
            )
        return Claim((request.body,), (signature,), int(at) / 1000)

    def sign(self, request: WebhookRequest, secret: str, at_s: float, event_id: str) -> WebhookRequest:
        content = request.json
        if isinstance(content, dict):
            request = with_json(request, {**content, "webhookTimestamp": int(at_s * 1000)})
        signature = self.digest(request.body, secret).hex()
        return request.with_header("Linear-Signature", signature).with_header("Linear-Delivery", event_id)


def _message(at: str, body: bytes) -> bytes:
    return b"v0:" + wire(at) + b":" + body
