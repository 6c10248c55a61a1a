"""What postroom.testing signs, the providers' own libraries take; what they sign, postroom takes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from time import time
from urllib.parse import parse_qsl

import pytest
import stripe
from Adyen.util import is_valid_hmac_notification, is_valid_hmac_payload
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey, VerifyKey
from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook
from twilio.request_validator import RequestValidator

from postroom.testing import new_secret, signed
from postroom.webhooks.request import Headers, WebhookRequest
from postroom.webhooks.schemes import SCHEMES
from tests.webhooks.samples import AT_S, URL, as_received

AWKWARD_BODIES = [
    '{"id": "evt_1", "type": "a.b", "data": "Zoë 💐"}'.encode(),
    rb'{"id":"evt_1","url":"https:\/\/example.com\/\u00e9","type":"a.b"}',
    b'{\n  "id":\t"evt_1" ,\r\n  "type" : "a.b"\n}\n\n',
    '\ufeff{"id":"evt_1"}'.encode(),
    rb'{"id":"evt_1","n":1e200000,"half":"\ud800","zero":"\u0000"}',
    b"",
]
each_awkward_body = pytest.mark.parametrize("body", AWKWARD_BODIES)
bodies = st.text(st.characters(codec="utf-8"), max_size=200).map(str.encode)
quick = settings(max_examples=50, deadline=None)


@each_awkward_body
def test_stripes_library_takes_what_signed_makes(body: bytes) -> None:
    """Byte for byte, whatever whitespace and escapes are in it."""
    request = signed("stripe", body, "whsec_test")
    assert stripe.WebhookSignature.verify_header(
        request.body.decode(), request.headers["Stripe-Signature"], "whsec_test", tolerance=300
    )


@quick
@given(bodies)
def test_what_stripes_library_signs_holds(body: bytes) -> None:
    """The whole whsec_… is the key."""
    payload = f"{int(AT_S)}.{body.decode()}"
    signature = stripe.WebhookSignature._compute_signature(payload, "whsec_test")
    headers = Headers({"Stripe-Signature": f"t={int(AT_S)},v1={signature},v0=ab"}.items())
    SCHEMES["stripe"].verify(WebhookRequest("POST", URL, headers, body), ["whsec_test"], AT_S)


@quick
@given(bodies)
def test_what_standardwebhooks_signs_holds(body: bytes) -> None:
    """The key is base64 after the prefix."""
    secret, _ = new_secret("standard-webhooks")
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(AT_S, UTC), body.decode())
    for scheme, prefix in (("standard-webhooks", "webhook"), ("svix", "svix"), ("svix", "webhook")):
        headers = Headers(
            {
                f"{prefix}-id": "msg_1",
                f"{prefix}-timestamp": str(int(AT_S)),
                f"{prefix}-signature": f"v1,AAAA {signature}",
            }.items()
        )
        request = WebhookRequest("POST", URL, headers, body)
        assert SCHEMES[scheme].verify(request, [secret], AT_S).event_id == "msg_1"


@each_awkward_body
def test_standardwebhooks_takes_what_signed_makes(body: bytes) -> None:
    """Also where it is made for svix and resend, but for the names of the headers."""
    secret, _ = new_secret("svix")
    for scheme in ("standard-webhooks", "svix", "resend"):
        request = signed(scheme, body, secret)
        headers = {name.replace("svix-", "webhook-"): value for name, value in request.headers.items()}
        Webhook(secret).verify(request.body, headers, json_parse=False)


def test_slacks_library_takes_what_signed_makes() -> None:
    """Headers and bytes as they are."""
    request = signed("slack", {"type": "event_callback", "event_id": "Ev1"}, "secret")
    assert SignatureVerifier("secret").is_valid_request(request.body, request.headers)


@quick
@given(bodies)
def test_what_slacks_library_signs_holds(body: bytes) -> None:
    """Version v0."""
    at = str(int(AT_S))
    signature = SignatureVerifier("secret").generate_signature(timestamp=at, body=body)
    assert signature
    headers = Headers({"X-Slack-Signature": signature, "X-Slack-Request-Timestamp": at}.items())
    SCHEMES["slack"].verify(WebhookRequest("POST", URL, headers, body), ["secret"], AT_S)


@pytest.mark.parametrize(
    "url", ["https://a.example/x", "https://a.example:443/x?b=c", "http://a.example:8080/"]
)
def test_twilios_library_takes_what_signed_makes(url: str) -> None:
    """A form by its fields, JSON by its digest in the address."""
    validator = RequestValidator("token")
    form = signed("twilio", {"Body": "Zoë & 1 + 1", "To": "+1", "Empty": ""}, "token", url=url)
    fields = dict(parse_qsl(form.body.decode(), keep_blank_values=True))
    assert validator.validate(form.url, fields, form.headers["X-Twilio-Signature"])
    other = signed("twilio", b'{"a": "b"}', "token", url=url)
    assert validator.validate(other.url, other.body.decode(), other.headers["X-Twilio-Signature"])


@pytest.mark.parametrize("signed_url", ["https://a.example/x?y=1", "https://a.example:443/x?y=1"])
def test_what_twilios_library_signs_holds_with_and_without_the_port(signed_url: str) -> None:
    """Twilio's own machines disagree on whether the port is signed."""
    signature = RequestValidator("token").compute_signature(signed_url, {"b": "2", "a": "é"})
    headers = Headers({"X-Twilio-Signature": signature}.items())
    for url in ("https://a.example/x?y=1", "https://a.example:443/x?y=1"):
        request = WebhookRequest("POST", url, headers, b"b=2&a=%C3%A9")
        SCHEMES["twilio"].verify(request, ["token"], AT_S)


def test_adyens_library_takes_what_signed_makes() -> None:
    """The signature in the item, and the one in the header."""
    item = {
        "pspReference": "1",
        "originalReference": "0",
        "merchantAccountCode": "M",
        "merchantReference": "a:b\\c",
        "amount": {"value": 1130, "currency": "EUR"},
        "eventCode": "REFUND",
        "success": "true",
    }
    request = signed("adyen", {"notificationItems": [{"NotificationRequestItem": item}]}, "ab" * 32)
    assert is_valid_hmac_notification(json.loads(request.body), "ab" * 32)
    newer = signed("adyen", {"type": "balancePlatform.transfer.created"}, "ab" * 32)
    assert is_valid_hmac_payload(newer.headers["HmacSignature"], "ab" * 32, newer.body)


def test_discord_as_its_document_verifies_with_pynacl() -> None:
    """Ed25519 over the time and the body."""
    private, public = new_secret("discord")
    request = signed("discord", {"type": 1}, private)
    message = request.headers["X-Signature-Timestamp"].encode() + request.body
    signature = bytes.fromhex(request.headers["X-Signature-Ed25519"])
    VerifyKey(bytes.fromhex(public)).verify(message, signature)

    key = SigningKey.generate()
    made = key.sign(b"1700000000{}").signature.hex()
    headers = Headers({"X-Signature-Ed25519": made, "X-Signature-Timestamp": "1700000000"}.items())
    SCHEMES["discord"].verify(
        WebhookRequest("POST", URL, headers, b"{}"), [key.verify_key.encode().hex()], AT_S
    )


def test_v1a_of_standard_webhooks_is_ed25519() -> None:
    """A source with the public key whpk_… takes what the private one signs, and no HMAC by that key."""
    from base64 import b64encode

    key = SigningKey.generate()
    private = f"whsk_{b64encode(key.encode() + key.verify_key.encode()).decode()}"
    public = f"whpk_{b64encode(key.verify_key.encode()).decode()}"
    request = as_received(signed("standard-webhooks", {"type": "a"}, private, at=AT_S, event_id="m"))
    message = f"m.{int(AT_S)}.".encode() + request.body
    signature = f"v1a,{b64encode(key.sign(message).signature).decode()}"
    assert request.headers.first("webhook-signature") == signature
    SCHEMES["standard-webhooks"].verify(request, ["whsec_AAAA", public], AT_S)


def test_signed_is_signed_now_where_no_time_is_given() -> None:
    """A test of an application needs no clock."""
    request = as_received(signed("stripe", {"id": "evt_1"}, "whsec_a"))
    assert abs((SCHEMES["stripe"].verify(request, ["whsec_a"], time()).timestamp_s or 0) - time()) < 60
