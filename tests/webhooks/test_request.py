"""A request as it came: headers in their order and spelling, bytes as they are."""

from __future__ import annotations

from postroom.webhooks.request import Headers, WebhookRequest, parse_json


def test_headers_keep_order_spelling_and_bytes() -> None:
    """They go on to a URL handler as the provider wrote them."""
    fields = [("X-A", "1"), ("x-b", "\xff"), ("X-a", "2")]
    headers = Headers([(b"X-A", b"1"), ("x-b", b"\xff"), ("X-a", " 2\t")])
    assert list(headers) == fields
    assert headers.all("x-A") == ("1", "2")
    assert headers.first("X-B") == "\xff"
    assert "X-C" not in headers


def test_a_header_takes_the_place_of_all_of_its_name() -> None:
    """Whatever their spelling."""
    headers = Headers([("X-A", "1"), ("x-a", "2"), ("b", "3")]).with_field("X-a", "4")
    assert list(headers) == [("b", "3"), ("X-a", "4")]
    assert headers == Headers([("B", "3"), ("x-A", "4")])


def test_no_repr_shows_a_value() -> None:
    """A value may be a credential, a body may be private."""
    request = WebhookRequest("POST", "https://a.example/?k=s3cret", Headers([("A", "s3cret")]), b"s3cret")
    assert "s3cret" not in repr(request)


def test_json_is_read_as_providers_send_it() -> None:
    """Half characters and numbers beyond every float are JSON; a deep pit is none."""
    assert parse_json(b'{"a": "\\ud800", "b": 1e200000}') == {"a": "\ud800", "b": float("inf")}
    assert parse_json(b"[" * 100_000) is None
    assert parse_json(b"\xff") is None
