"""An e-mail's bytes taken apart for who looks at it: a stranger's mail costs no more than any."""

from __future__ import annotations

import pytest

from postroom.email import parts as parts_module
from postroom.email.parts import HEADER_CHARACTERS_MAX, HEADERS_MAX, NESTED_MAX, header, parse, read_parts


def test_of_fifty_thousand_headers_as_many_are_shown_as_one_can_read() -> None:
    """They were looked up one by one among all: 2.7 s for 16,000, and the square of that for more."""
    mail = b"Subject: first\r\n" + b"".join(b"X-%d: v\r\n" % n for n in range(50_000)) + b"\r\nHi"
    parts = read_parts(mail)
    assert len(parts.headers) == HEADERS_MAX
    assert parts.headers[:2] == [("Subject", "first"), ("X-0", "v")]
    assert parts.text == "Hi"


@pytest.mark.parametrize("encoded", [b"=?utf-8?q?a?=", b"a" * 50])
def test_the_beginning_of_a_long_header_is_decoded(encoded: bytes) -> None:
    """The standard library takes the square of its length: seconds for the addresses of one To."""
    mail = b"To: " + b", ".join(b"%s <a%d@example.com>" % (encoded, n) for n in range(20_000)) + b"\r\n\r\nHi"
    to = header(parse(mail), "to")
    assert 1_000 < len(to) <= HEADER_CHARACTERS_MAX
    assert ", a2@example.com" in to or "<a2@example.com>" in to


def test_a_header_that_is_not_there_is_empty_and_the_first_of_two_counts() -> None:
    """Whatever their case."""
    parsed = parse(b"SUBJECT: one\r\nsubject: two\r\n\r\nHi")
    assert (header(parsed, "subject"), header(parsed, "to")) == ("one", "")


@pytest.mark.parametrize(
    "level",
    [
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n",
        b"Content-Type: message/rfc822\r\n\r\n",
        b"Content-Type: message/rfc822\r\r",
        b"Content-Type: =?utf-8?q?message/rfc822?=\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary*0=b%d\r\n\r\n--b%d\r\n",
        b"Content-Type: multipart/mixed; boundary*=us-ascii''b%d\r\n\r\n--b%d\r\n",
        b"Content-Type: multipart/mixed; boundary (c) =b%d\r\n\r\n--b%d\r\n",
    ],
)
def test_parts_within_parts_are_read_as_deep_as_mails_are(level: bytes) -> None:
    """Twenty thousand of them ended in an error that stopped the page."""
    mail = b"Subject: deep\r\n" + b"".join(level.replace(b"%d", str(n).encode()) for n in range(20_000))
    parts = read_parts(mail + b"\r\nHi")
    assert parts.headers[0] == ("Subject", "deep")
    assert len(parts.attachments) <= NESTED_MAX


def test_of_what_is_nested_too_deeply_for_the_parser_the_headers_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However somebody gets around the count of parts: the page of all mails goes on."""
    monkeypatch.setattr(parts_module, "NESTED_MAX", 1_000_000)
    mail = b"Subject: deep\r\n" + b"Content-Type: message/rfc822\r\n\r\n" * 20_000 + b"\r\nHi"
    assert read_parts(mail).headers == [("Subject", "deep"), ("Content-Type", "message/rfc822")]


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_what_stands_behind_thousands_of_parts_is_left_out(end: bytes) -> None:
    """And each of those before is there, whatever ends a line."""
    part = b"--x\r\nContent-Disposition: attachment; filename=a\r\n\r\nHi\r\n".replace(b"\r\n", end)
    mail = b"Content-Type: multipart/mixed; boundary=x" + end + end + part * 6_000 + b"--x--"
    assert len(read_parts(mail).attachments) == 5_000
    assert len(read_parts(mail.replace(part * 6_000, part * 3)).attachments) == 3
