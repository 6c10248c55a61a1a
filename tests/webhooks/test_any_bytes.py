"""Whatever bytes a stranger sends, a scheme gives a verdict and the doctor a finding: nothing raises."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postroom.errors import SignatureError
from postroom.webhooks.doctor import diagnose
from postroom.webhooks.places import parse_place, read_id, read_type
from postroom.webhooks.request import Headers, WebhookRequest
from postroom.webhooks.schemes import SCHEMES, Verified
from postroom.webhooks.source import Source
from tests.webhooks.samples import AT_S, SIGNED_SCHEMES, sample

quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

SAMPLES = {name: sample(name) for name in SIGNED_SCHEMES}
REQUESTS = {name: one.request() for name, one in SAMPLES.items()}
SOURCES = [one.source for one in SAMPLES.values()]
HEADER_NAMES = sorted(
    {name for request in REQUESTS.values() for name, _ in request.headers}
    | {header for one in SAMPLES.values() for header in one.scheme.signature_headers}
    | {"Content-Length", "webhook-id", "svix-timestamp", "X-Twilio-Webhooks-Signature-Settings"}
)
FIELDS = [
    "id",
    "type",
    "event",
    "payload",
    "plainToken",
    "challenge",
    "signature",
    "timestamp",
    "token",
    "notificationItems",
    "data",
    "livemode",
    "NotificationRequestItem",
    "additionalData",
    "hmacSignature",
    "amount",
    "webhookTimestamp",
    "events",
    "event-data",
    "pspReference",
]

values = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([value.encode("latin-1") for one in REQUESTS.values() for _, value in one.headers]),
    st.from_regex(rb"(t=|ts=|v1=|h1=|v0=|v1,|v1a,|sha256=|Basic )*[0-9a-fA-F=+/,; -]{0,100}", fullmatch=True),
    st.just(b"t=1,v1=" + b"a" * 100_000),
    st.just(b"v1a," + b"A" * 86 + b"==" + b" v1a,AAAA" * 5000),
)
headers = st.lists(
    st.tuples(st.one_of(st.sampled_from(HEADER_NAMES).map(str.encode), st.binary(max_size=20)), values),
    max_size=6,
)
json_values: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["\ud800", "\0", "url_verification", "endpoint.url_validation", "v0:", "1700000000"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
bodies = st.one_of(
    st.binary(max_size=300),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.just(b"[" * 100_000),
    st.just(b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    st.just(b"9" * 10_000),
    st.just(b"a=b&" * 2_000),
    st.just(b"a=%ed%a0%80&timestamp=%00&token=%ff&signature=1"),
    st.sampled_from([request.body for request in REQUESTS.values()]),
)
urls = st.one_of(
    st.sampled_from(["https://a.example/webhooks/x", "https://a.example:99999/x", "http://[::1/x", ""]),
    st.text(max_size=100).map(lambda text: f"https://a.example/webhooks/x?{text}"),
    st.just("https://a.example/?bodySHA256=é\ud800&hub.mode=subscribe&hub.verify_token=\ud800"),
)


def requests(body: bytes, fields: list[tuple[bytes, bytes]], url: str) -> WebhookRequest:
    return WebhookRequest("POST", url, Headers(fields), body)


def look_at(source: Source, request: WebhookRequest) -> None:
    """All that the door does with a request before it is stored or refused."""
    for method in ("HEAD", "GET"):
        source.greet(WebhookRequest(method, request.url, request.headers, request.body))
    try:
        verified = source.verify(request, AT_S)
    except SignatureError as error:
        reason, sentence = error.reason, error.sentence
    else:
        assert_storable(verified)
        source.handshake(request, verified)
        source.scheme.acknowledge(request)
        return
    diagnosis = diagnose(source, request, AT_S, others=SOURCES)
    assert diagnosis
    assert diagnosis.reason == reason
    assert all((sentence, diagnosis.found, diagnosis.advice))


def assert_storable(verified: Verified) -> None:
    for value in (verified.event_id, verified.event_type):
        if value is not None:
            assert 0 < len(value) <= 255
            assert "\0" not in value
            value.encode()


@quick
@given(st.sampled_from(SIGNED_SCHEMES), bodies, headers, urls)
def test_any_request_gets_a_verdict(
    name: str, body: bytes, fields: list[tuple[bytes, bytes]], url: str
) -> None:
    """Any bytes in any header, any body."""
    look_at(SAMPLES[name].source, requests(body, fields, url))


@quick
@given(st.sampled_from(SIGNED_SCHEMES), st.data())
def test_a_good_request_with_one_thing_changed_gets_a_verdict(name: str, data: st.DataObject) -> None:
    """Changes of a request that holds get further into a scheme than noise."""
    request = REQUESTS[name]
    fields = [(key.encode(), value.encode("latin-1")) for key, value in request.headers]
    index = data.draw(st.integers(0, len(fields) - 1))
    key, value = fields[index]
    match data.draw(st.sampled_from(["cut", "insert", "replace", "double", "drop", "body", "url"])):
        case "cut":
            fields[index] = (key, value[: data.draw(st.integers(0, len(value)))])
        case "insert":
            at = data.draw(st.integers(0, len(value)))
            fields[index] = (key, value[:at] + data.draw(st.binary(max_size=5)) + value[at:])
        case "replace":
            fields[index] = (key, data.draw(values))
        case "double":
            fields.append((key, data.draw(values)))
        case "drop":
            del fields[index]
        case "body":
            request = request.with_body(data.draw(bodies))
        case "url":
            request = request.with_url(data.draw(urls))
    look_at(SAMPLES[name].source, requests(request.body, fields, request.url))


@quick
@given(st.sampled_from(SIGNED_SCHEMES), json_values)
def test_any_signed_event_has_an_id_that_a_database_can_hold(name: str, payload: object) -> None:
    """The provider's content may be anything: half characters, zeros, nested lists."""
    one = SAMPLES[name]
    request = one.request(json.dumps(payload).encode())
    look_at(one.source, request)


@quick
@given(
    st.sampled_from(["id", "data.id", "entry[0].id", "[0]", "header:X-Id", "digest", "a[999999].b.c"]),
    bodies,
    st.binary(max_size=400),
)
def test_any_place_reads_any_request(place: str, body: bytes, value: bytes) -> None:
    """A place gives a text that a database can hold, or None."""
    request = requests(body, [(b"X-Id", value)], "https://a.example/")
    places = (parse_place(place),)
    assert_storable(Verified(read_id(places, request), read_type(places, request)))


@quick
@given(bodies, headers)
def test_none_stores_anything(body: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    """Without a signature, too."""
    look_at(Source("open", SCHEMES["none"]), requests(body, fields, "https://a.example/"))


def spoilt(request: WebhookRequest) -> Iterator[WebhookRequest]:
    """The same with each header cut, lengthened, repeated or gone; and with other bodies."""
    fields = list(request.headers)
    for place, (name, value) in enumerate(fields):
        before, after = fields[:place], fields[place + 1 :]
        for other in ("", value[: len(value) // 2], f"{value}zz", ",".join([value] * 50)):
            yield replace(request, headers=Headers([*before, (name, other), *after]))
        yield replace(request, headers=Headers([*before, *after]))
        yield replace(request, headers=Headers([*fields, (name, value)]))
    for body in (b"", b"null", b"\xff", b"x=1", request.body + b" "):
        yield request.with_body(body)


@pytest.mark.parametrize("name", SIGNED_SCHEMES)
def test_what_was_refused_is_held_by_nothing(name: str) -> None:
    """
    Its memory is free at once, not at the next collection of garbage: bodies may be of megabytes.

    An error that a frame of its own trace holds keeps all that these frames hold.
    """
    source = SAMPLES[name].source
    gc.disable()
    try:
        for request in spoilt(REQUESTS[name]):
            held = weakref.ref(request)
            try:
                source.verify(request, AT_S)
            except SignatureError:
                diagnose(source, request, AT_S, others=SOURCES)
            del request
            assert held() is None
    finally:
        gc.enable()
