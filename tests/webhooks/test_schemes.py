"""What all schemes have in common, and what one of them has of its own."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode

import pytest

from postroom.errors import ConfigError, SignatureError, SignatureReason
from postroom.testing import new_secret, signed
from postroom.webhooks.request import Answer, Headers, WebhookRequest
from postroom.webhooks.schemes import SCHEMES, TOLERANCE_S, Hmac
from postroom.webhooks.source import Source
from tests.webhooks.samples import (
    AT_S,
    SIGNED_AT_A_TIME,
    SIGNED_SCHEMES,
    URL,
    Sample,
    as_received,
    sample,
)

each_scheme = pytest.mark.parametrize("name", SIGNED_SCHEMES)


def refusal(source: Source, request: WebhookRequest, now_s: float = AT_S) -> SignatureReason:
    with pytest.raises(SignatureError) as caught:
        source.verify(request, now_s)
    return caught.value.reason


@each_scheme
def test_a_signed_request_holds(name: str) -> None:
    """Each scheme takes what it signs."""
    one = sample(name)
    assert one.source.verify(one.request(), AT_S).secret_index == 0


@each_scheme
def test_another_secret_does_not_hold(name: str) -> None:
    """Nobody else can sign."""
    one, other = sample(name), sample(name)
    assert refusal(other.source, one.request()) == SignatureReason.MISMATCH


@each_scheme
def test_during_a_rotation_each_of_the_secrets_holds(name: str) -> None:
    """The answer says which one it was."""
    old, new = sample(name), sample(name)
    source = Source(name, old.scheme, (new.verifies, old.verifies))
    assert source.verify(old.request(), AT_S).secret_index == 1
    assert source.verify(new.request(), AT_S).secret_index == 0


@pytest.mark.parametrize("name", SIGNED_SCHEMES)
def test_a_time_is_good_for_300_s_in_both_directions(name: str) -> None:
    """Where the provider signs a time, an older and a newer one are refused, and it says so."""
    one = sample(name)
    request = one.request()
    assert (one.source.verify(request, AT_S).timestamp_s == AT_S) == (name in SIGNED_AT_A_TIME)
    one.source.verify(request, AT_S + TOLERANCE_S)
    one.source.verify(request, AT_S - TOLERANCE_S)
    if name in SIGNED_AT_A_TIME:
        assert refusal(one.source, request, AT_S + TOLERANCE_S + 1) == SignatureReason.TOO_OLD
        assert refusal(one.source, request, AT_S - TOLERANCE_S - 1) == SignatureReason.TOO_NEW


@pytest.mark.parametrize("name", sorted(set(SIGNED_SCHEMES) - {"adyen", "mailgun", "postmark"}))
def test_another_body_does_not_hold(name: str) -> None:
    """One byte more or less is another body."""
    one = sample(name)
    request = one.request()
    for body in (request.body[:-1], request.body + b" ", request.body[:-2] + b"x" + request.body[-1:]):
        reason = refusal(one.source, request.with_body(body))
        assert reason in (SignatureReason.MISMATCH, SignatureReason.BODY_MALFORMED)


@pytest.mark.parametrize("name", sorted(set(SIGNED_SCHEMES) - {"adyen", "mailgun"}))
def test_a_header_that_is_missing_doubled_or_cut_off_is_told_apart(name: str) -> None:
    """The reason names what is wrong with the header."""
    one = sample(name)
    request = one.request()
    header = one.scheme.signature_headers[0]
    value = request.headers.first(header) or ""

    def with_values(*values: str) -> WebhookRequest:
        kept = request.headers.without_field(header)
        return WebhookRequest(
            "POST", URL, Headers((*kept, *((header, given) for given in values))), request.body
        )

    assert refusal(one.source, with_values()) == SignatureReason.HEADER_MISSING
    assert refusal(one.source, with_values("")) == SignatureReason.HEADER_MISSING
    assert refusal(one.source, with_values(value, value)) == SignatureReason.HEADER_DOUBLED
    if name not in ("postmark", "sendgrid"):  # whose header may have any length
        assert refusal(one.source, with_values(value[:-7])) == SignatureReason.HEADER_MALFORMED
    assert refusal(one.source, with_values("\x00é" * 5000)) == SignatureReason.HEADER_MALFORMED


@pytest.mark.parametrize("name", ["square", "twilio", "hubspot"])
def test_a_signed_address_must_be_the_one_that_was_called(name: str) -> None:
    """The same request at another address is another request."""
    one = sample(name)
    assert one.scheme.signs_url
    request = one.request().with_url("https://elsewhere.example.com/webhooks/x")
    assert refusal(one.source, request) == SignatureReason.MISMATCH


def test_no_other_scheme_looks_at_the_address() -> None:
    """POSTROOM_PUBLIC_URL is asked of nobody else."""
    for name in set(SIGNED_SCHEMES) - {"square", "twilio", "hubspot"}:
        one = sample(name)
        assert not one.scheme.signs_url
        one.source.verify(one.request().with_url("https://elsewhere.example.com/"), AT_S)


def test_every_scheme_names_its_document() -> None:
    """Whoever doubts a scheme can look it up."""
    for name, scheme in SCHEMES.items():
        assert scheme.name == name
        assert scheme.key_form
        assert scheme.document.startswith("https://") or name in ("hmac", "none")


def test_stripe_takes_one_good_signature_of_several() -> None:
    """Stripe sends one for each secret while they are rotated, and others of versions to come."""
    one = sample("stripe")
    request = one.request()
    at, good = (request.headers.first("stripe-signature") or "").split(",")
    for value in (f"{at},v1={'0' * 64},{good}", f"{at},v0=x,v1=unreadable,{good},v2=y"):
        one.source.verify(request.with_header("Stripe-Signature", value), AT_S)
    assert refusal(one.source, request.with_header("Stripe-Signature", f"{at},{at},{good}")) == (
        SignatureReason.HEADER_MALFORMED
    )


def test_an_id_under_the_name_that_is_not_signed_counts_for_nothing() -> None:
    """With svix, headers may be named svix-… or webhook-…: only the id that was signed is the event's."""
    one = Sample(SCHEMES["svix"], *new_secret("svix"))
    request = as_received(signed("standard-webhooks", {}, one.signs, at=AT_S, event_id="signed"))
    forged = request.with_header("svix-id", "forged")
    assert one.source.verify(forged, AT_S).event_id == "signed"


def test_twilio_refuses_a_body_that_its_signature_does_not_cover() -> None:
    """A signature of the address alone must not carry a stranger's JSON."""
    one = sample("twilio")
    request = as_received(signed("twilio", b"", one.signs, url=URL))
    one.source.verify(request, AT_S)
    assert refusal(one.source, request.with_body(b'{"a": 1}')) == SignatureReason.BODY_MALFORMED
    covered = as_received(signed("twilio", b'{"a": 1}', one.signs, url=URL))
    one.source.verify(covered, AT_S)
    assert refusal(one.source, covered.with_body(b'{"a": 2}')) == SignatureReason.MISMATCH


def test_adyen_takes_a_request_only_where_each_of_its_items_holds() -> None:
    """One good item does not carry another one in."""
    one = sample("adyen")
    content = json.loads(one.request().body)
    content["notificationItems"][1]["NotificationRequestItem"]["amount"]["value"] = 1
    request = one.request().with_body(json.dumps(content).encode())
    assert refusal(one.source, request) == SignatureReason.MISMATCH


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("adyen", b"Test:Merchant", rb"\ud800"), ("mailgun", b'"token":"', rb'"token":"\ud800')],
)
def test_half_a_character_in_a_signed_field_is_another_field(name: str, before: bytes, after: bytes) -> None:
    """JSON may hold what no UTF-8 can: it is neither an error nor the same as a question mark."""
    one = sample(name)
    request = one.request()
    assert before in request.body
    half, mark = (
        request.with_body(request.body.replace(before, to)) for to in (after, after.replace(rb"\ud800", b"?"))
    )
    assert refusal(one.source, half) == refusal(one.source, mark) == SignatureReason.MISMATCH
    assert one.scheme.read(half).messages != one.scheme.read(mark).messages


def test_mailguns_older_forms_hold_too() -> None:
    """The three fields are then beside the event's."""
    digest = hmac.new(b"key", f"{int(AT_S)}tok".encode(), hashlib.sha256).hexdigest()
    body = f"event=opened&timestamp={int(AT_S)}&token=tok&signature={digest}".encode()
    verified = SCHEMES["mailgun"].verify(WebhookRequest("POST", URL, Headers(), body), ["key"], AT_S)
    assert (verified.event_id, verified.event_type) == (None, "opened")


def test_mailguns_forms_in_parts_hold_too() -> None:
    """A route sends them where the e-mail has files; a file stands there by its name."""
    at = str(int(AT_S))
    fields = {
        "timestamp": at,
        "token": "tok",
        "event": "stored",
        "subject": "Zoë",
        "body-plain": "a\r\n\r\nb",
    }
    fields["signature"] = hmac.new(b"key", f"{at}tok".encode(), hashlib.sha256).hexdigest()
    parts = [
        f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}' for name, value in fields.items()
    ]
    file = b'Content-Disposition: form-data; name="attachment-1"; filename="a.bin"\r\n\r\n\xff--x\r\n'
    body = b"".join(b"--x y\r\n" + part + b"\r\n" for part in [*(part.encode() for part in parts), file])
    headers = Headers([("Content-Type", 'multipart/form-data; boundary="x y"')])
    request = WebhookRequest("POST", URL, headers, body + b"--x y--\r\n")
    verified = SCHEMES["mailgun"].verify(request, ["key"], AT_S)
    assert verified.event_type == "stored"
    assert dict(request.form) == {**fields, "attachment-1": "a.bin"}


def test_twilio_takes_events_by_get() -> None:
    """The signature is of the address, in which the fields are."""
    one = sample("twilio")
    url = f"{URL}&MessageStatus=delivered&Body=Zo%C3%AB"
    posted = as_received(signed("twilio", b"", one.signs, url=url, event_id="1"))
    got = WebhookRequest("GET", url, posted.headers, b"")
    assert "GET" in one.scheme.methods
    assert one.source.verify(got, AT_S).event_type == "delivered"
    assert dict(got.form)["Body"] == "Zoë"
    assert refusal(one.source, got.with_url(f"{url}x")) == SignatureReason.MISMATCH
    assert refusal(one.source, got.with_body(b"MessageStatus=failed")) == SignatureReason.MISMATCH


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
@pytest.mark.parametrize("prefix", ["", "sha256=", "v1:"])
def test_hmac_is_what_postroom_toml_says(algorithm: str, encoding: str, prefix: str) -> None:
    """Header, algorithm, encoding and prefix in any combination."""
    digest = hmac.new(b"key", b"body", algorithm).digest()
    text = digest.hex() if encoding == "hex" else b64encode(digest).decode()
    scheme = Hmac("X-Acme", algorithm, encoding, prefix)
    request = WebhookRequest("POST", URL, Headers({"x-acme": prefix + text}.items()), b"body")
    scheme.verify(request, ["key"], AT_S)
    with pytest.raises(SignatureError):
        scheme.verify(request, ["yek"], AT_S)


def test_none_takes_anything() -> None:
    """Where it is written out, and nowhere else."""
    source = Source("open", SCHEMES["none"])
    request = WebhookRequest("POST", URL, Headers(), b'{"id": 7, "type": "t"}')
    verified = source.verify(request, AT_S)
    assert (verified.event_id, verified.event_type) == ("7", "t")
    assert source.handshake(request, verified) is None


# Ids: what comes again must have the same one, what does not must not.


def test_hubspots_second_try_is_the_same_event() -> None:
    """attemptNumber differs from try to try; eventId alone is not unique."""
    one = sample("hubspot")
    event = {"eventId": 1, "objectId": 4, "attemptNumber": 0}
    ids = [
        one.source.verify(one.request([{**event, **change}]), AT_S).event_id
        for change in ({}, {"attemptNumber": 1}, {"objectId": 5})
    ]
    assert ids[0] == ids[1] != ids[2]


def test_an_event_without_an_id_has_none() -> None:
    """It is then never taken for a duplicate."""
    one = sample("stripe")
    assert one.source.verify(one.request({"type": "a"}), AT_S).event_id is None
    assert one.source.verify(one.request(b"no json"), AT_S).event_id is None


# Handshakes, by the providers' documents.


def answer_to(one: Sample, payload: object) -> Answer | None:
    request = one.request(payload)
    return one.source.handshake(request, one.source.verify(request, AT_S))


@each_scheme
def test_a_probe_by_head_is_answered(name: str) -> None:
    """Providers look whether somebody is there; an event is never answered so."""
    source = sample(name).source
    assert source.greet(WebhookRequest("HEAD", URL, Headers(), b"")) == Answer(200)
    assert source.greet(WebhookRequest("POST", URL, Headers(), b"")) is None


def test_an_event_is_no_handshake() -> None:
    """What is stored is not answered by a scheme in its own way before that."""
    for name in SIGNED_SCHEMES:
        assert answer_to(sample(name), None) is None


def test_slacks_url_verification_is_answered_with_its_challenge() -> None:
    """Source: docs.slack.dev/reference/events/url_verification."""
    answer = answer_to(sample("slack"), {"type": "url_verification", "challenge": "3eZbrw1a"})
    assert answer == Answer(200, b"3eZbrw1a", "text/plain; charset=utf-8")


def test_metas_address_is_confirmed_with_the_token_that_both_know() -> None:
    """hub.challenge is given back for hub.verify_token, and 403 for another one."""
    source = Source("meta", SCHEMES["meta"], ("secret",), verify_token="word")
    ask = f"{URL}&hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token="
    answers = {
        token: source.greet(WebhookRequest("GET", ask + token, Headers(), b"")) for token in ("word", "x", "")
    }
    assert answers["word"] == Answer(200, b"1158201444", "text/plain; charset=utf-8")
    assert answers["x"] == answers[""] == Answer(403)
    unset = Source("meta", SCHEMES["meta"], ("secret",))
    assert unset.greet(WebhookRequest("GET", ask, Headers(), b"")) == Answer(403)


def test_zooms_validation_is_answered_with_the_tokens_hmac() -> None:
    """Source: developers.zoom.us/docs/api/webhooks: endpoint.url_validation."""
    one = sample("zoom")
    answer = answer_to(one, {"event": "endpoint.url_validation", "payload": {"plainToken": "qgg8vlvZ"}})
    assert answer
    encrypted = hmac.new(one.signs.encode(), b"qgg8vlvZ", hashlib.sha256).hexdigest()
    assert json.loads(answer.body) == {"plainToken": "qgg8vlvZ", "encryptedToken": encrypted}


def test_zooms_validation_signs_no_event_for_a_stranger() -> None:
    """A token that is itself a message to sign would be answered with the signature of a forged event."""
    answer = answer_to(
        sample("zoom"), {"event": "endpoint.url_validation", "payload": {"plainToken": "v0:1700000000:{}"}}
    )
    assert answer == Answer(400)


def test_lines_trial_without_events_is_answered() -> None:
    """And nothing of it is stored."""
    one = sample("line")
    assert answer_to(one, {"destination": "U1", "events": []}) == Answer(200)


def test_a_bare_get_of_none_is_a_probe() -> None:
    """As Mailchimp makes one; with fields it is an event."""
    probe, event = (
        WebhookRequest("GET", url, Headers(), b"") for url in ("https://a.b/x", "https://a.b/x?id=1")
    )
    source = Source("open", SCHEMES["none"])
    assert source.greet(probe) == Answer(200)
    assert source.greet(event) is None
    assert source.verify(event, AT_S).event_id == "1"


def test_discords_pings_are_answered_and_forgeries_get_401() -> None:
    """Discord tries out both before it takes an address."""
    one = sample("discord")
    ping = answer_to(one, {"type": 1, "token": "t", "application_id": "1"})
    assert ping
    assert json.loads(ping.body) == {"type": 1}
    assert answer_to(one, {"type": 0, "application_id": "1"}) == Answer(204)
    assert one.scheme.refusal_status == 401


def test_a_stored_event_is_answered_as_the_provider_wants_it() -> None:
    """Where its document demands another answer than ours."""

    def answer(name: str, payload: object) -> Answer | None:
        one = sample(name)
        return one.scheme.acknowledge(one.request(payload))

    assert answer("adyen", None) == Answer(200, b"[accepted]", "text/plain; charset=utf-8")
    assert answer("twilio", None) == Answer(200, b"<Response/>", "text/xml")
    assert answer("slack", None) == Answer(200)
    assert answer("discord", {"type": 1, "event": {"type": "X"}}) == Answer(204)
    deferred = answer("discord", {"type": 2, "token": "t"})
    assert deferred
    assert json.loads(deferred.body) == {"type": 5}
    assert answer("stripe", None) is None


# Secrets.


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("stripe", "sk_live_1"),
        ("stripe", ""),
        ("standard-webhooks", "whsec_"),
        ("standard-webhooks", "whsec_not base64!"),
        ("standard-webhooks", "whpk_AAAA"),
        ("standard-webhooks", f"whsk_{b64encode(bytes(64)).decode()}"),
        ("adyen", "not hex"),
        ("discord", "ab" * 31),
        ("sendgrid", "AAAA"),
        ("sendgrid", "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="),
        ("postmark", "no-password"),
        ("postmark", "user:"),
    ],
)
def test_a_secret_that_can_never_verify_is_refused(name: str, secret: str) -> None:
    """At the start, not at the first event; and the text does not show it."""
    with pytest.raises(ConfigError) as caught:
        SCHEMES[name].check_secret(secret)
    assert len(secret) < 8 or secret not in str(caught.value)


@each_scheme
def test_a_fresh_secret_passes_its_own_check(name: str) -> None:
    """What new_secret gives, a source takes."""
    SCHEMES[name].check_secret(new_secret(name)[1])
