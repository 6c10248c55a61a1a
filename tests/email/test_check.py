"""The check at the doors: what can never be sent or stored gets its error there."""

from __future__ import annotations

from typing import Any

import pytest

from postroom.email.check import check_email
from postroom.errors import InvalidEmail

GOOD: dict[str, Any] = {"to": "ada@example.com", "subject": "Hi", "html": "<p>Hi</p>"}


def test_a_good_email_comes_back_in_its_written_form() -> None:
    """What was not given stays None, so that the row's defaults hold."""
    accepted = check_email(**GOOD | {"to": " ada@EXAMPLE.com", "from_email": "Shop<s@example.org>"})
    assert accepted.to == "ada@example.com"
    assert accepted.from_email == "Shop <s@example.org>"
    assert accepted.text is None
    assert accepted.reply_to is None
    assert accepted.headers is None
    assert accepted.metadata == {}


def test_text_alone_is_an_email() -> None:
    """`postroom send --text` has no HTML."""
    accepted = check_email(to="ada@example.com", subject="Hi", text="Hi")
    assert (accepted.html, accepted.text) == ("", "Hi")


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"to": "nobody"}, "to", "@-sign"),
        ({"to": "a@b.example, c@d.example"}, "to", "several"),
        ({"to": None}, "to", "null"),
        ({"subject": None}, "subject", "null"),
        ({"subject": 7}, "subject", "a number"),
        ({"subject": "x" * 2_001}, "subject", "2,001 characters"),
        ({"subject": "x" * 10_000_000}, "subject", "10,000,000 characters"),
        ({"subject": "Hi\r\nBcc: eve@example.com"}, "subject", "line break at position 3"),
        ({"subject": "Hi\nthere"}, "subject", "line break"),
        ({"subject": "Hi\0"}, "subject", "NUL"),
        ({"subject": "Hi\x1b[0m"}, "subject", "U+001B"),
        ({"subject": "Hi\udc80"}, "subject", "half a character"),
        ({"html": ["<p>"]}, "html", "a list"),
        ({"html": ""}, "html", "empty"),
        ({"html": "<p>\0</p>"}, "html", "NUL at position 4"),
        ({"html": "\ud800"}, "html", "half a character"),
        ({"text": 7}, "text", "a number"),
        ({"text": "\0"}, "text", "NUL"),
        ({"text": "é" * 11 * 1024 * 1024}, "html", "at most 20,971,520"),
        ({"from_email": "shop"}, "from", "@-sign"),
        ({"from_email": "shop@example.org\r\nX: y"}, "from", "U+000D"),
        ({"reply_to": "Shop"}, "reply_to", "@-sign"),
        ({"headers": "X-A: b"}, "headers", "an object"),
        ({"headers": {"X A": "b"}}, "headers", "no header name"),
        ({"headers": {"X-A:": "b"}}, "headers", "no header name"),
        ({"headers": {"": "b"}}, "headers", "no header name"),
        ({"headers": {"X-Ä": "b"}}, "headers", "no header name"),
        ({"headers": {"X-A\r\nBcc": "b"}}, "headers", "no header name"),
        ({"headers": {"bcc": "eve@example.com"}}, "headers", "bcc"),
        ({"headers": {"Content-Type": "text/plain"}}, "headers", "Content-Type"),
        ({"headers": {"Resent-To": "eve@example.com"}}, "headers", "Resent-To"),
        ({"headers": {"Reply-To": "a@b.example"}}, "headers", "reply_to"),
        ({"headers": {"X-A": 7}}, "headers: X-A", "a number"),
        ({"headers": {"X-A": None}}, "headers: X-A", "null"),
        ({"headers": {"X-A": "b\r\nBcc: eve@example.com"}}, "headers: X-A", "line break"),
        ({"headers": {"X-A": "\ud800"}}, "headers: X-A", "half a character"),
        ({"headers": {"X-A": "b" * 1_000}}, "headers: X-A", "998 bytes"),
        ({"headers": {"X-A": "b " * 10_000}}, "headers: X-A", "20,000 characters"),
        ({"headers": {f"X-{number}": "b" for number in range(101)}}, "headers", "101 fields"),
        ({"metadata": []}, "metadata", "a list"),
        ({"metadata": {"a": float("nan")}}, "metadata", "JSON"),
        ({"metadata": {"a": "\0"}}, "metadata", "NUL"),
        ({"metadata": {"a": "\ud800"}}, "metadata", "half a character"),
        ({"metadata": {7: "a"}}, "metadata", "key"),
        ({"metadata": {"a": object()}}, "metadata", "JSON"),
        ({"metadata": {"a": "b" * 1024 * 1024}}, "metadata", "at most 1,048,576"),
        ({"email_type": 7}, "email_type", "a number"),
        ({"idempotency_key": ""}, "idempotency_key", "empty"),
        ({"idempotency_key": "k" * 256}, "idempotency_key", "256 characters"),
    ],
)
def test_what_can_never_be_sent_gets_its_error(fields: dict[str, Any], field: str, says: str) -> None:
    """The error names the field and says what is wrong, in few words, whatever came in."""
    with pytest.raises(InvalidEmail) as refused:
        check_email(**GOOD | fields)
    assert refused.value.field == field
    assert says in refused.value.problem
    assert len(str(refused.value)) < 500


def test_a_backslash_before_u0000_is_no_nul() -> None:
    """The text `\\u0000` in metadata can be stored; only the character cannot."""
    assert check_email(**GOOD, metadata={"a": "\\u0000"}).metadata == {"a": "\\u0000"}


def test_accepted_email_shows_no_body() -> None:
    """Bodies do not get into a log by a repr."""
    assert "secret" not in repr(check_email(to="a@b.example", subject="secret", html="secret", text="secret"))
