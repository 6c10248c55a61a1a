"""The signature doctor: each of the usual accidents is named, and what mends it."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import pytest

from postroom.testing import signed
from postroom.webhooks.doctor import Cause, Diagnosis, diagnose
from postroom.webhooks.request import Headers, WebhookRequest
from postroom.webhooks.schemes import SCHEMES, Hmac
from postroom.webhooks.source import Source
from tests.webhooks.samples import AT_S, SIGNED_SCHEMES, URL, as_received, sample

SIGNED_BODY = json.dumps(
    {"type": "a", "id": "evt_1", "data": {"url": "https://a.example/<b>&c", "name": "Zoë", "list": [1, 2.5]}},
    indent=2,
    ensure_ascii=False,
).encode()


def found_in(
    source: Source, request: WebhookRequest, now_s: float = AT_S, others: list[Source] | None = None
) -> Diagnosis:
    diagnosis = diagnose(source, request, now_s, others=others or [])
    assert diagnosis
    return diagnosis


@pytest.mark.parametrize("name", SIGNED_SCHEMES)
def test_what_holds_needs_no_doctor(name: str) -> None:
    """It says nothing then."""
    one = sample(name)
    assert diagnose(one.source, one.request(), AT_S) is None


@pytest.mark.parametrize(
    ("off_s", "words"), [(4000, "signed 4000 s ago"), (-301, "signed 301 s in the future")]
)
def test_a_clock_that_is_off_is_told_with_its_seconds(off_s: float, words: str) -> None:
    """The signature holds, so it is the clock, or the request is an old one."""
    one = sample("stripe")
    diagnosis = found_in(one.source, one.request(), AT_S + off_s)
    assert (diagnosis.cause, diagnosis.certain) == (Cause.CLOCK, True)
    assert words in diagnosis.found


@pytest.mark.parametrize("name", SIGNED_SCHEMES)
def test_the_secret_of_another_source_is_told_with_its_name(name: str) -> None:
    """Two endpoints were mixed up."""
    shop, club = sample(name), sample(name)
    other = Source("club", club.scheme, (club.verifies,))
    diagnosis = found_in(shop.source, club.request(), others=[shop.source, other])
    assert (diagnosis.cause, diagnosis.certain) == (Cause.OTHER_SOURCE, True)
    assert "source club" in diagnosis.found


@pytest.mark.parametrize(("live", "mode"), [(True, "live"), (False, "test")])
def test_stripes_mode_is_told_where_the_secret_may_be_the_others(live: bool, mode: str) -> None:
    """Live and test mode have secrets of their own, and `stripe listen` has another."""
    one, other = sample("stripe"), sample("stripe")
    diagnosis = found_in(one.source, other.request({"id": "evt_1", "livemode": live}))
    assert (diagnosis.cause, diagnosis.certain) == (Cause.SECRET_OR_BODY, False)
    assert f"the event is of {mode} mode" in diagnosis.advice


def rewritten(**options: Any) -> Callable[[bytes], bytes]:
    return lambda body: json.dumps(json.loads(body), **options).encode()


REWRITINGS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("by JavaScript", rewritten(separators=(",", ":"), ensure_ascii=False), "indented by 2 spaces"),
    ("by Python", rewritten(), "indented by 2 spaces"),
    ("with a line break", lambda body: body + b"\n", "without whitespace at its end"),
    ("without its last line break", lambda body: body.rstrip(), ""),
    ("with other line ends", lambda body: body.replace(b"\n", b"\r\n"), "with other line ends"),
    ("with a mark", lambda body: b"\xef\xbb\xbf" + body, "with other marks at its beginning"),
    ("by the wrong alphabet", lambda body: body.decode("latin-1").encode(), "not taken for"),
]


@pytest.mark.parametrize(("how", "rewrite", "words"), REWRITINGS, ids=[how for how, _, _ in REWRITINGS])
def test_a_body_that_was_written_anew_is_told(
    how: str, rewrite: Callable[[bytes], bytes], words: str
) -> None:
    """The doctor tries how it may have looked, and says how it did."""
    one = sample("stripe")
    request = one.request(SIGNED_BODY + (b"\n" if words == "" else b""))
    diagnosis = found_in(one.source, request.with_body(rewrite(request.body)))
    assert (diagnosis.cause, diagnosis.certain) == (Cause.BODY_REWRITTEN, True)
    assert words in diagnosis.found


def as_php_writes(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).replace("/", r"\/").encode()


def as_go_writes(content: Any) -> bytes:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return text.replace(b"<", rb"\u003c").replace(b">", rb"\u003e").replace(b"&", rb"\u0026")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (as_php_writes, "without whitespace, with its unicode escaped, with its slashes escaped"),
        (as_go_writes, "without whitespace, with its < > & escaped"),
        (lambda content: json.dumps(content, sort_keys=True).encode(), "with its keys sorted"),
        (lambda content: json.dumps(content, indent=4).encode(), "indented by 4 spaces"),
        (lambda content: json.dumps(content, indent="\t").encode(), "indented by tabs"),
        (lambda content: json.dumps(content).encode() + b"\n", "with a line break at its end"),
    ],
    ids=["php", "go", "sorted", "indent 4", "tabs", "line break"],
)
@pytest.mark.parametrize("name", ["stripe", "github", "svix", "discord", "sendgrid", "square"])
def test_a_framework_that_parses_and_writes_is_told(
    name: str, write: Callable[[Any], bytes], words: str
) -> None:
    """Whitespace, order of keys, slashes and unicode, by any scheme that signs the body."""
    one = sample(name)
    request = one.request(write(json.loads(SIGNED_BODY)))
    diagnosis = found_in(one.source, request.with_body(SIGNED_BODY.replace(b"  ", b" ")))
    assert (diagnosis.cause, diagnosis.certain) == (Cause.BODY_REWRITTEN, True)
    assert words in diagnosis.found


def test_a_form_that_was_written_anew_is_told() -> None:
    """A space is + or %20."""
    one = sample("slack")
    request = one.request(b"text=a+b&command=%2Fdo")
    diagnosis = found_in(one.source, request.with_body(b"text=a%20b&command=%2Fdo"))
    assert (diagnosis.cause, diagnosis.certain) == (Cause.BODY_REWRITTEN, True)


def test_a_body_that_is_not_whole_is_told() -> None:
    """Content-Length says how long it was."""
    one = sample("github")
    request = one.request(SIGNED_BODY).with_header("Content-Length", str(len(SIGNED_BODY)))
    diagnosis = found_in(one.source, request.with_body(SIGNED_BODY[:20]))
    assert diagnosis.cause == Cause.BODY_INCOMPLETE


def test_a_large_body_is_not_written_anew() -> None:
    """A stranger's 10 MiB must cost little; the finding says that it was not tried."""
    one = sample("stripe")
    request = one.request({"a": "x" * 70_000})
    request = request.with_body(request.body + b"\n")
    assert "was not written anew" in found_in(one.source, request).found
    diagnosis = diagnose(one.source, request, AT_S, rewritten_bytes_max=10**6)
    assert diagnosis
    assert diagnosis.cause == Cause.BODY_REWRITTEN


@pytest.mark.parametrize(
    ("make_key", "words"),
    [
        (lambda secret: b64decode(secret.removeprefix("whsec_") + "=="), "as base64 of the key"),
        (lambda secret: secret.removeprefix("whsec_").encode(), "without its prefix"),
        (lambda secret: bytes.fromhex(secret.removeprefix("whsec_")), "as hexadecimal digits of the key"),
        (lambda secret: f"{secret}\n".encode(), "with a line break at its end"),
    ],
)
def test_another_reading_of_the_secret_is_told(make_key: Callable[[str], bytes], words: str) -> None:
    """The sender took the prefix off, or decoded it, or kept a line break of a file."""
    one = sample("stripe")
    body = b'{"id":"evt_1"}'
    digest = hmac.new(make_key(one.verifies), f"{int(AT_S)}.".encode() + body, hashlib.sha256).hexdigest()
    headers = Headers({"Stripe-Signature": f"t={int(AT_S)},v1={digest}"}.items())
    diagnosis = found_in(one.source, WebhookRequest("POST", URL, headers, body))
    assert (diagnosis.cause, diagnosis.certain) == (Cause.OTHER_KEY, True)
    assert words in diagnosis.found


@pytest.mark.parametrize("name", ["stripe", "github", "slack", "paddle", "linear", "zoom"])
def test_base64_where_hex_is_expected_is_told(name: str) -> None:
    """The digest is right, its writing is not."""
    one = sample(name)
    request = one.request()
    header = one.scheme.signature_headers[0]
    value = request.headers.first(header) or ""
    digits = value.rpartition("=")[2]
    recoded = value.replace(digits, b64encode(bytes.fromhex(digits)).decode())
    diagnosis = found_in(one.source, request.with_header(header, recoded))
    assert (diagnosis.cause, diagnosis.certain) == (Cause.OTHER_ENCODING, True)
    assert "written in base64, and hex is expected" in diagnosis.found


@pytest.mark.parametrize("name", ["shopify", "line", "square", "twilio", "hubspot", "svix"])
def test_hex_where_base64_is_expected_is_told(name: str) -> None:
    """The same the other way round."""
    one = sample(name)
    request = one.request()
    header = one.scheme.signature_headers[0]
    version, comma, text = (request.headers.first(header) or "").rpartition(",")
    recoded = f"{version}{comma}{b64decode(text).hex()}"
    diagnosis = found_in(one.source, request.with_header(header, recoded))
    assert (diagnosis.cause, diagnosis.certain) == (Cause.OTHER_ENCODING, True)
    assert "written in hex, and base64 is expected" in diagnosis.found


@pytest.mark.parametrize(
    "name", sorted(set(SIGNED_SCHEMES) - {"adyen", "mailgun", "postmark", "sendgrid", "discord"})
)
def test_a_signature_that_was_cut_off_is_told(name: str) -> None:
    """It is right as far as it goes, so it is neither the secret nor the body."""
    one = sample(name)
    request = one.request()
    header = one.scheme.signature_headers[0]
    value = request.headers.first(header) or ""
    diagnosis = found_in(one.source, request.with_header(header, value[:-11]))
    assert (diagnosis.cause, diagnosis.certain) == (Cause.HEADER_TRUNCATED, True)


def test_a_header_that_is_missing_is_told_by_its_name() -> None:
    """A proxy may have dropped it."""
    one = sample("slack")
    request = one.request()
    for header in ("X-Slack-Signature", "X-Slack-Request-Timestamp"):
        kept = Headers(request.headers.without_field(header))
        diagnosis = found_in(one.source, WebhookRequest("POST", URL, kept, request.body))
        assert diagnosis.cause == Cause.HEADER_MISSING
        assert header in diagnosis.found


def test_a_header_that_is_doubled_is_told_with_what_holds() -> None:
    """A proxy that adds it again, or one that adds its own."""
    one = sample("stripe")
    request = one.request()
    value = request.headers.first("stripe-signature") or ""
    for further, words in ((value, "with the same signature, which holds"), ("t=1,v1=x", "others do not")):
        doubled = Headers((*request.headers, ("Stripe-Signature", further)))
        diagnosis = found_in(one.source, WebhookRequest("POST", URL, doubled, request.body))
        assert (diagnosis.cause, diagnosis.certain) == (Cause.HEADER_DOUBLED, True)
        assert words in diagnosis.found


def test_the_wrong_scheme_is_told_with_the_right_one() -> None:
    """For certain where the secret fits, else by the headers that the request has."""
    one = sample("svix")
    source = Source("mail", SCHEMES["stripe"], (one.verifies,))
    diagnosis = found_in(source, one.request())
    assert (diagnosis.cause, diagnosis.certain) == (Cause.OTHER_SCHEME, True)
    assert 'scheme = "' in diagnosis.advice

    diagnosis = found_in(sample("stripe").source, sample("slack").request())
    assert (diagnosis.cause, diagnosis.certain) == (Cause.OTHER_SCHEME, False)
    assert 'scheme = "slack"' in diagnosis.advice


@pytest.mark.parametrize("name", ["twilio", "square", "hubspot"])
@pytest.mark.parametrize(
    ("called", "words"),
    [
        ("http://hooks.example.com/webhooks/x", "begins with http://"),
        ("https://hooks.example.com/webhooks/x/", "has a / at its end"),
        ("https://www.hooks.example.com/webhooks/x", "has www. before its host"),
    ],
)
def test_another_address_is_told(name: str, called: str, words: str) -> None:
    """POSTROOM_PUBLIC_URL is not to the letter what the provider calls."""
    one = sample(name)
    request = one.request(url=called).with_url("https://hooks.example.com/webhooks/x")
    diagnosis = found_in(one.source, request)
    assert (diagnosis.cause, diagnosis.certain) == (Cause.OTHER_URL, True)
    assert words in diagnosis.found


def test_a_prefix_that_is_missing_or_not_expected_is_told() -> None:
    """`sha256=` before the digest, or not."""
    body = b"{}"
    digest = hmac.new(b"key", body, hashlib.sha256).hexdigest()
    for configured, written in (("sha256=", digest), ("", f"sha256={digest}"), ("v1=", f"sha256={digest}")):
        source = Source("acme", Hmac("X-Acme", prefix=configured), ("key",))
        request = WebhookRequest("POST", URL, Headers({"X-Acme": written}.items()), body)
        diagnosis = found_in(source, request)
        assert (diagnosis.cause, diagnosis.certain) == (Cause.HEADER_UNREADABLE, True)
        assert "is right, but" in diagnosis.found


@pytest.mark.parametrize("name", SIGNED_SCHEMES)
def test_no_finding_holds_a_secret_or_a_part_of_the_body(name: str) -> None:
    """It goes to the log."""
    one, other = sample(name), sample(name)
    body = other.request().with_body(b'{"private": "words"}')
    for request in (other.request(), body):
        diagnosis = found_in(one.source, request, others=[other.source])
        text = f"{diagnosis.found} {diagnosis.advice}"
        assert one.verifies not in text
        assert other.verifies not in text
        assert "words" not in text
        assert "\n" not in text


def test_what_cannot_be_told_is_not_guessed() -> None:
    """Another secret, or another body: it says so, and how the secret looks."""
    one = sample("stripe")
    request = as_received(signed("stripe", {"id": "evt_1"}, "whsec_of_nobody", at=AT_S))
    diagnosis = found_in(one.source, request)
    assert (diagnosis.cause, diagnosis.certain) == (Cause.SECRET_OR_BODY, False)
