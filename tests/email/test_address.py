"""Addresses: what is one, what is none, and what people are told."""

from __future__ import annotations

import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import given
from hypothesis import strategies as st

from postroom.email.address import check_address, parse_mailbox
from postroom.errors import InvalidEmail


@pytest.mark.parametrize(
    ("given_address", "written"),
    [
        ("ada@example.com", "ada@example.com"),
        ("  ada@example.com ", "ada@example.com"),
        ("Ada.Lovelace+tag@EXAMPLE.com", "Ada.Lovelace+tag@example.com"),
        ("zoë@example.com", "zoë@example.com"),
        ("ada@bücher.example", "ada@bücher.example"),
        ("ada@xn--bcher-kva.example", "ada@bücher.example"),
        ('"a b"@example.com', '"a b"@example.com'),
        ("ada@[127.0.0.1]", "ada@[127.0.0.1]"),
    ],
)
def test_address_has_one_written_form(given_address: str, written: str) -> None:
    """Spaces around it go, its domain is in lower case and in letters; the local part stays."""
    assert check_address("to", given_address) == written
    assert check_address("to", written) == written


@pytest.mark.parametrize(
    "address",
    ["root@localhost", "nas@office.local", "ops@mail.test", "x@gone.invalid", "a@host", "x@bücher.local"],
)
def test_addresses_of_private_networks_are_taken(address: str) -> None:
    """Whether a server exists for a domain is found out by sending, not by its name."""
    assert check_address("to", address) == address


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("nobody", "@-sign"),
        ("a@", "something after the @-sign"),
        ("@example.com", "something before the @-sign"),
        ("a@b@example.com", "@"),
        ("a b@example.com", "invalid character"),
        ("a@exa mple.com", "invalid character"),
        ("a@example..com", "period"),
        ("a@-example.com", "hyphen"),
        ("a@b.example, c@d.example", "several addresses"),
        ("a@b.example; c@d.example", "several addresses"),
        ("a@b.example,", "@"),
        ("a@b.c, Ada <a@b.example>", "several addresses"),
        ("Ada <a@b.example>", "display name"),
        ("<a@b.example", "< or >"),
        ("a@b.example>", "without its <"),
        ("a\r\nBcc: eve@example.com@b.example", "U+000D"),
        ("a@b.example\n", "U+000A"),
        ("a\0@b.example", "U+0000"),
        ("a\ud800@b.example", "half a character"),
        (f"{'a' * 65}@b.example", "too long"),
        (f"a@{'b' * 64}.example", "too"),
        (f"a@{'.'.join(['b' * 60] * 5)}", "too long"),
        ("a" * 10_000_000, "10,000,000 characters"),
        (None, "not null"),
        (7, "not a number"),
        (["a@b.example"], "not a list"),
        ({"email": "a@b.example"}, "not an object"),
        (b"a@b.example", "not bytes"),
    ],
)
def test_what_is_no_address_is_refused_with_its_reason(value: object, says: str) -> None:
    """The error names the field and says what is wrong."""
    with pytest.raises(InvalidEmail) as refused:
        check_address("to", value)
    assert refused.value.field == "to"
    assert says in refused.value.problem
    assert len(refused.value.problem) < 1_000


@pytest.mark.parametrize(
    ("given_sender", "written"),
    [
        ("Shop <shop@example.org>", "Shop <shop@example.org>"),
        ("<shop@example.org>", "shop@example.org"),
        ("Shop<shop@EXAMPLE.org> ", "Shop <shop@example.org>"),
        ("Acme Inc. <shop@example.org>", '"Acme Inc." <shop@example.org>'),
        ('"Acme, Inc." <shop@example.org>', '"Acme, Inc." <shop@example.org>'),
        ("Müller, Zoë <shop@example.org>", '"Müller, Zoë" <shop@example.org>'),
        ('Bob "B" Smith <shop@example.org>', '"Bob \\"B\\" Smith" <shop@example.org>'),
        ("shop@example.org <shop@example.org>", '"shop@example.org" <shop@example.org>'),
        ("店 <shop@example.org>", "店 <shop@example.org>"),
    ],
)
def test_sender_and_reply_to_may_have_a_name(given_sender: str, written: str) -> None:
    """A name is taken as people write it, and given back so that it is read the same again."""
    for field in ("from", "reply_to"):
        assert check_address(field, given_sender) == written
        assert check_address(field, written) == written


@given(
    st.from_regex(r"[A-Za-z0-9.+_-]{1,70}@[a-zA-Z0-9.-]{1,70}", fullmatch=True)
    | st.from_regex(r"[a-z]{1,5}@([a-z0-9-]{1,8}\.){1,3}[a-z0-9-]{1,8}", fullmatch=True)
)
def test_the_quick_check_takes_nothing_that_email_validator_refuses(address: str) -> None:
    """The regular expression that saves time accepts a subset of what the library accepts."""
    if address.rpartition(".")[2].lower() in {"arpa", "invalid", "local", "localhost", "onion", "test"}:
        return
    try:
        expected = validate_email(address, check_deliverability=False, globally_deliverable=False)
    except EmailNotValidError:
        expected = None
    try:
        found = parse_mailbox("to", address, named=False)
    except InvalidEmail:
        assert expected is None or len(expected.local_part) > 64
        return
    assert expected is not None
    assert found.wire_address.casefold() == str(expected.ascii_email).casefold()


@given(st.text(max_size=300))
def test_any_text_is_an_address_or_is_refused(text: str) -> None:
    """No text makes the check fail in another way, and what it takes holds no control character."""
    for named in (True, False):
        try:
            address = str(parse_mailbox("from", text, named=named))
        except InvalidEmail:
            continue
        assert not any(ord(character) < 32 or ord(character) == 127 for character in address)
        assert str(parse_mailbox("from", address, named=named)) == address
