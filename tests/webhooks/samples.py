"""An event of each scheme, its secrets, and its request as it comes to the door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from postroom.testing import SignedRequest, new_secret, signed
from postroom.webhooks.request import Headers, WebhookRequest
from postroom.webhooks.schemes import SCHEMES, Scheme
from postroom.webhooks.source import Source

AT_S = 1_700_000_000.0
URL = "https://hooks.example.com/webhooks/x?who=a%40b"

SIGNED_SCHEMES = sorted(SCHEMES.keys() - {"none"})
SIGNED_AT_A_TIME = (
    "discord",
    "hubspot",
    "linear",
    "mailgun",
    "paddle",
    "resend",
    "sendgrid",
    "slack",
    "standard-webhooks",
    "stripe",
    "svix",
    "zoom",
)

_ADYEN_ITEM = {
    "pspReference": "7914073381342284",
    "merchantAccountCode": "Test:Merchant",
    "merchantReference": "Zoë\\1",
    "amount": {"value": 1130, "currency": "EUR"},
    "eventCode": "AUTHORISATION",
    "success": "true",
}
EVENTS: dict[str, Any] = {
    "adyen": {
        "notificationItems": [
            {"NotificationRequestItem": _ADYEN_ITEM},
            {"NotificationRequestItem": {**_ADYEN_ITEM, "eventCode": "CAPTURE"}},
        ]
    },
    "hubspot": [{"eventId": 1, "subscriptionType": "contact.creation", "attemptNumber": 0}],
    "line": {"events": [{"webhookEventId": "01H", "type": "message"}]},
    "mailgun": {"event-data": {"id": "Ase7", "event": "opened"}},
    "sendgrid": [{"sg_event_id": "a", "event": "open"}, {"sg_event_id": "b", "event": "open"}],
    "twilio": {"MessageSid": "SM1", "MessageStatus": "delivered", "Body": "Zoë & 1 + 1"},
}
ANY_EVENT = {"id": "evt_1", "type": "order.paid", "data": {"note": "Zoë / <b>"}}


@dataclass(frozen=True)
class Sample:
    """A scheme with a fresh secret."""

    scheme: Scheme
    signs: str
    verifies: str

    @property
    def source(self) -> Source:
        return Source(self.scheme.name, self.scheme, (self.verifies,))

    def request(self, payload: Any = None, at_s: float = AT_S, url: str = URL) -> WebhookRequest:
        event = EVENTS.get(self.scheme.name, ANY_EVENT) if payload is None else payload
        return as_received(signed(self.scheme.name, event, self.signs, at=at_s, url=url, event_id="msg_1"))


def sample(name: str) -> Sample:
    return Sample(SCHEMES[name], *new_secret(name))


def as_received(request: SignedRequest) -> WebhookRequest:
    return WebhookRequest(request.method, request.url, Headers(request.headers.items()), request.body)
