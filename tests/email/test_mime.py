"""Rendering: a function of the row, equal in meaning to what the standard library makes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postroom.email.message import OutgoingEmail
from postroom.email.mime import RenderedEmail, render, rendered
from postroom.errors import PermanentFailure
from tests.email.conftest import NewEmail

ID = UUID("0d5b9a52-3f0a-4b0c-9d0a-6a2f7f1c0e11")


def parse(mail: RenderedEmail) -> EmailMessage:
    message = message_from_bytes(mail.content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def part(message: EmailMessage, subtype: str) -> str:
    found = message.get_body((subtype,))
    assert found is not None
    content = found.get_content()
    assert isinstance(content, str)
    return content.replace("\r\n", "\n")


def assert_can_travel(content: bytes) -> None:
    """Lines of at most 998 bytes, all of them ended by CRLF, no bare CR or LF, no NUL."""
    assert content.endswith(b"\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content)
    assert max(map(len, content.split(b"\r\n"))) <= 998


def test_same_row_gives_same_bytes(new_email: NewEmail) -> None:
    """Every attempt sends the same e-mail: Message-ID, Date and boundary come from the row."""
    columns: dict[str, Any] = {
        "id": ID,
        "html": "<p>Grüße</p>",
        "text": None,
        "headers": {"X-B": "1", "X-A": "2"},
    }
    first, second = render(new_email(**columns)), render(new_email(**columns | {"attempts": 3}))
    assert first.content == second.content
    message = parse(first)
    assert message["Message-ID"] == f"<{ID}@example.org>" == first.message_id
    assert message["Date"].datetime == datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC)


def test_parts_are_the_text_then_the_html(new_email: NewEmail) -> None:
    """multipart/alternative: the last part is the best one."""
    message = parse(render(new_email()))
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert part(message, "plain") == "Thank you.\n"
    assert part(message, "html") == "<p>Thank you.</p>\n"
    assert message["From"].addresses == (Address("Shop", "shop", "example.org"),)
    assert message["To"].addresses == (Address("", "ada", "example.com"),)
    assert message["Reply-To"] is None


def test_missing_text_is_made_from_the_html(new_email: NewEmail) -> None:
    """The row's text is taken where it has one, even an empty one."""
    html = '<p>See <a href="https://example.org/o/1">your order</a>.</p>'
    made = part(parse(render(new_email(html=html, text=None))), "plain")
    assert made == "See your order <https://example.org/o/1>.\n"
    assert part(parse(render(new_email(html=html, text=""))), "plain") == "\n"


def test_text_without_html_is_one_part(new_email: NewEmail) -> None:
    """The column html is not null, so an e-mail without HTML has an empty one."""
    message = parse(render(new_email(html="", text="Only text")))
    assert message.get_content_type() == "text/plain"
    assert part(message, "plain") == "Only text\n"


def test_date_is_in_utc_and_constant_where_the_row_has_none(new_email: NewEmail) -> None:
    """An old caller may have written NULL: the field must be there and must not change."""
    east = datetime(2026, 3, 1, 1, 0, tzinfo=timezone(timedelta(hours=5)))
    assert b"\r\nDate: Sat, 28 Feb 2026 20:00:00 +0000\r\n" in render(new_email(created_at=east)).content
    naive = datetime(2026, 3, 1, 1, 0)  # noqa: DTZ001
    assert b"\r\nDate: Sun, 01 Mar 2026 01:00:00 +0000\r\n" in render(new_email(created_at=naive)).content
    for moment in (None, datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))):
        assert (
            b"\r\nDate: Thu, 01 Jan 1970 00:00:00 +0000\r\n" in render(new_email(created_at=moment)).content
        )


@given(st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(9998, 1, 1)))  # noqa: DTZ001
def test_date_is_read_back(moment: datetime) -> None:
    """Seconds are kept, in any year."""
    row = OutgoingEmail(ID, "a@b.example", "s", "h", "c@d.example", created_at=moment)
    read = parsedate_to_datetime(parse(render(row))["Date"])
    assert read == moment.replace(microsecond=0, tzinfo=UTC)


def test_boundary_never_occurs_in_a_part(new_email: NewEmail) -> None:
    """An e-mail that quotes its own source is still two parts."""
    quoted = f"--=_postroom_{ID.hex}\n--=_postroom_{ID.hex}_--\n"
    message = parse(render(new_email(id=ID, text=quoted)))
    assert part(message, "plain") == quoted
    assert part(message, "html") == "<p>Thank you.</p>\n"


def test_international_addresses(new_email: NewEmail) -> None:
    """A domain travels in ASCII; a local part that cannot makes the e-mail need SMTPUTF8."""
    mail = render(new_email(to_email="ada@bücher.example", from_email="Zoë <zoe@bücher.local>"))
    assert (mail.recipient, mail.sender) == ("ada@xn--bcher-kva.example", "zoe@xn--bcher-kva.local")
    assert mail.content.isascii()
    assert not mail.needs_smtputf8
    assert parse(mail)["From"].addresses == (Address("Zoë", "zoe", "xn--bcher-kva.local"),)
    for column in ("to_email", "from_email", "reply_to"):
        mail = render(new_email(**{column: "zoë@example.com"}))
        assert mail.needs_smtputf8
        assert "zoë@example.com".encode() in mail.content


def test_further_headers_are_sent_as_they_are_written(new_email: NewEmail) -> None:
    """ASCII values keep their grammar; others become encoded words."""
    headers = {
        "List-Unsubscribe": f"<https://example.org/{'u' * 100}>, <mailto:u@example.org?subject=x>",
        "X-Note": "Grüße",
        "X-Empty": "",
        "X-Tab": "a\tb",
        "X-Spaces": "a" * 60 + "   " + "b" * 60,
    }
    mail = render(new_email(headers=headers))
    assert_can_travel(mail.content)
    message = parse(mail)
    for name in ("List-Unsubscribe", "X-Note", "X-Empty", "X-Spaces"):
        assert message[name] == headers[name]
    assert message["X-Tab"] == "a b"


@pytest.mark.parametrize(
    ("columns", "column", "says"),
    [
        ({"from_email": None}, "from_email", "POSTROOM_FROM"),
        ({"from_email": " "}, "from_email", "POSTROOM_FROM"),
        ({"from_email": "shop"}, "from_email", "@-sign"),
        ({"from_email": "Eve\r\nBcc: x@y.example <a@b.example>"}, "from_email", "U+000D"),
        ({"to_email": "nobody"}, "to_email", "@-sign"),
        ({"to_email": "a@b.example, c@d.example"}, "to_email", "several"),
        ({"to_email": "a@b.example>\r\nDATA"}, "to_email", "U+000D"),
        ({"reply_to": "nobody"}, "reply_to", "@-sign"),
        ({"subject": "Hi\r\nBcc: eve@example.com"}, "subject", "line break"),
        ({"subject": "Hi\0"}, "subject", "NUL"),
        ({"subject": "\ud800"}, "subject", "half a character"),
        ({"html": "a\0"}, "html", "NUL"),
        ({"text": "\udfff"}, "text", "half a character"),
        ({"headers": {"X-A": 1}}, "headers: X-A", "a number"),
        ({"headers": {"X-A": "b\nBcc: c"}}, "headers: X-A", "line break"),
        ({"headers": {"X-A\r\n": "b"}}, "headers", "no header name"),
        ({"headers": {"Subject": "b"}}, "headers", "Subject"),
        ({"headers": ["X-A"]}, "headers", "a list"),
    ],
)
def test_row_that_can_never_be_sent_names_its_column(
    new_email: NewEmail, columns: dict[str, Any], column: str, says: str
) -> None:
    """A row that came by plain INSERT becomes a dead letter that says why."""
    with pytest.raises(PermanentFailure) as failed:
        render(new_email(**columns))
    assert failed.value.text.startswith(f"{column}: ")
    assert says in failed.value.text


async def test_large_email_is_rendered_in_a_thread_to_the_same_bytes(new_email: NewEmail) -> None:
    """20 MB take about 0.1 s, in which the event loop serves others."""
    email = new_email(html=f"<p>{'ü' * 1_000_000}</p>", text=None)
    mail = await rendered(email)
    assert mail.content == render(email).content
    assert_can_travel(mail.content)


def test_rendered_email_shows_no_content(new_email: NewEmail) -> None:
    """Bodies do not get into a log by a repr."""
    assert "secret" not in repr(render(new_email(html="secret", text="secret", subject="secret")))


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200)
BODY = st.lists(LINE | st.text("ab =.-_\t<>é", max_size=2_000), max_size=8).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n", "\r"]).map(lambda newline: newline.join(lines))
)
PLAIN_NAME = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="<>@"), max_size=60
)
HEADER_VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300)


def by_the_standard_library(row: OutgoingEmail, sender: Address) -> EmailMessage:
    message = EmailMessage(policy=policy.SMTP)
    message["From"] = sender
    message["To"] = row.to_email
    message["Subject"] = row.subject
    message.set_content(re.sub(r"\r\n|\r", "\n", row.text or ""))
    message.add_alternative(re.sub(r"\r\n|\r", "\n", row.html), subtype="html")
    read = message_from_bytes(message.as_bytes(), policy=policy.default)
    assert isinstance(read, EmailMessage)
    return read


@given(subject=LINE | HEADER_VALUE, name=PLAIN_NAME, text=BODY, html=BODY)
def test_bytes_mean_what_the_standard_library_means(subject: str, name: str, text: str, html: str) -> None:
    """Subject, addresses and the content of both parts are read back the same from either."""
    sender = Address(" ".join(name.split()), "shop", "example.org")
    quoted = sender.display_name.replace("\\", "\\\\").replace('"', '\\"')
    row = OutgoingEmail(
        ID, "ada@example.com", subject, f"<p>{html}", f'"{quoted}" <shop@example.org>', text=text
    )
    mail = render(row)
    assert mail.content.isascii()
    assert_can_travel(mail.content)
    ours, theirs = parse(mail), by_the_standard_library(row, sender)
    assert not ours.defects
    assert ours["To"].addresses == theirs["To"].addresses
    assert ours["From"].addresses[0].addr_spec == theirs["From"].addresses[0].addr_spec
    for subtype in ("plain", "html"):
        assert part(ours, subtype) == part(theirs, subtype)
    assert ours["Subject"] == subject


@given(
    st.dictionaries(st.from_regex(r"X-[A-Za-z0-9-]{1,70}", fullmatch=True), LINE | HEADER_VALUE, max_size=5)
)
def test_headers_cannot_be_injected(headers: dict[str, str]) -> None:
    """Whatever the values are, the e-mail has the fields that it was given, and no other."""
    row = OutgoingEmail(ID, "a@b.example", "s", "h", "c@d.example", headers=headers)
    mail = render(row)
    assert_can_travel(mail.content)
    own = {"From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"}
    assert set(parse(mail).keys()) == own | set(headers)
