"""Where an event's id and type are."""

from __future__ import annotations

import pytest

from postroom.webhooks.places import parse_place, read_id, read_type
from postroom.webhooks.request import Headers, WebhookRequest

BODY = b'{"id": "a", "n": 7, "big": 12345678901234567890, "yes": true, "entry": [{"id": "b"}], "e": ""}'


def request(body: bytes = BODY) -> WebhookRequest:
    headers = Headers({"X-Id": "from the header"}.items())
    return WebhookRequest("POST", "https://a.example/", headers, body)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("id", "a"),
        ("n", "7"),
        ("big", "12345678901234567890"),
        ("yes", None),
        ("e", None),
        ("entry[0].id", "b"),
        ("entry[1].id", None),
        ("entry.id", None),
        ("entry", None),
        ("missing.id", None),
        ("header:x-id", "from the header"),
        ("header: X-ID", "from the header"),
        ("header:missing", None),
    ],
)
def test_a_place_gives_a_text_or_a_whole_number(place: str, found: str | None) -> None:
    """Everything else names nothing."""
    assert read_id((parse_place(place),), request()) == found


@pytest.mark.parametrize(
    "text",
    ["", " ", "a b", "header:", "header:a b", "header:a\nb", "body:id", "a..b", ".a", "a[", "a[x]", "[]"],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    """At the start, not at the first event."""
    with pytest.raises(ValueError, match="header:NAME"):
        parse_place(text)


def test_the_first_place_that_holds_something_counts() -> None:
    """So a scheme may name several."""
    places = tuple(map(parse_place, ("missing", "header:missing", "n", "id")))
    assert read_id(places, request()) == "7"
    assert read_id((), request()) is None


@pytest.mark.parametrize("value", ['"a\\u0000b"', '"\\ud800"', f'"{"x" * 256}"'])
def test_an_id_that_no_database_holds_is_told_by_its_digest(value: str) -> None:
    """Two such ids stay apart, and each is the same each time; a type of that kind is None."""
    one, other = request(b'{"id": %b}' % value.encode()), request(b'{"id": "b\\u0000b"}')
    place = (parse_place("id"),)
    found = read_id(place, one)
    assert found
    assert found.startswith("sha256:")
    assert found == read_id(place, one) != read_id(place, other)
    assert read_type(place, one) is None


def test_a_form_has_places_too() -> None:
    """Its fields, and the JSON in its field payload."""
    assert read_id((parse_place("a"),), request(b"a=1&b=2")) == "1"
    form = request(b"payload=%7B%22trigger%22%3A%7B%22id%22%3A%22T1%22%7D%7D")
    assert read_id((parse_place("trigger.id"),), form) == "T1"


def test_digest_is_of_the_bytes() -> None:
    """For providers that repeat an event to the byte and give it no id."""
    place = (parse_place("digest"),)
    assert read_id(place, request(b"a")) == read_id(place, request(b"a")) != read_id(place, request(b"b"))
