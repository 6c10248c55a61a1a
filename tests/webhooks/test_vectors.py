"""What providers have published: every vector holds, and stops to hold when a byte of it changes."""

from __future__ import annotations

import pytest

from postroom.errors import SignatureError, SignatureReason
from postroom.testing import signed
from postroom.webhooks.request import Headers, WebhookRequest
from postroom.webhooks.schemes import SCHEMES, TOLERANCE_S
from tests.webhooks.vectors import VECTORS, Vector

each_vector = pytest.mark.parametrize(
    "vector", VECTORS, ids=lambda vector: f"{vector.scheme}: {vector.origin}"
)
each_remade = pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS if vector.remade],
    ids=lambda vector: f"{vector.scheme}: {vector.origin}",
)
UNSIGNED = {"X-GitHub-Event", "X-Twilio-Webhooks-Signature-Settings"}


def request_of(vector: Vector) -> WebhookRequest:
    return WebhookRequest("POST", vector.url, Headers(vector.headers.items()), vector.body)


@each_vector
def test_a_vector_holds_and_names_its_event(vector: Vector) -> None:
    """The provider's own figures, to the byte."""
    verified = SCHEMES[vector.scheme].verify(request_of(vector), [vector.secret], vector.at_s)
    assert (verified.event_id, verified.event_type) == (vector.event_id, vector.event_type)
    assert verified.timestamp_s in (None, vector.at_s)


@each_vector
def test_a_vector_does_not_hold_for_another_body(vector: Vector) -> None:
    """One byte more is another body, whatever it means."""
    if vector.scheme == "adyen" and not vector.headers:
        body = vector.body.replace(b"1130", b"1131")
    else:
        body = vector.body + b"&x=1"
    with pytest.raises(SignatureError) as caught:
        SCHEMES[vector.scheme].verify(request_of(vector).with_body(body), [vector.secret], vector.at_s)
    assert caught.value.reason == SignatureReason.MISMATCH


@each_vector
def test_a_vector_with_a_time_holds_for_300_s_in_both_directions(vector: Vector) -> None:
    """An event from the future is refused as well."""
    scheme, request = SCHEMES[vector.scheme], request_of(vector)
    timed = scheme.verify(request, [vector.secret], vector.at_s).timestamp_s is not None
    for off_s, reason in ((TOLERANCE_S, SignatureReason.TOO_OLD), (-TOLERANCE_S, SignatureReason.TOO_NEW)):
        scheme.verify(request, [vector.secret], vector.at_s + off_s)
        further_s = vector.at_s + off_s * 1.01
        if not timed:
            scheme.verify(request, [vector.secret], further_s)
            continue
        with pytest.raises(SignatureError) as caught:
            scheme.verify(request, [vector.secret], further_s)
        assert caught.value.reason == reason


@each_remade
def test_signed_makes_the_same_signature_as_the_provider(vector: Vector) -> None:
    """postroom.testing signs as the provider does, to the byte of the header."""
    made = signed(
        vector.scheme,
        vector.body,
        vector.secret,
        url=vector.url,
        at=vector.at_s,
        event_id=vector.event_id,
        headers={name: value for name, value in vector.headers.items() if name in UNSIGNED},
    )
    assert made.body == vector.body
    assert {name: made.headers[name] for name in vector.headers} == vector.headers
