"""What a mail server reads is one mail, whatever is in it: nothing ends it early or begins a command."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postroom.email.message import OutgoingEmail
from postroom.email.mime import render
from postroom.errors import PermanentFailure
from tests.email.transports.servers.scripted_smtp import ScriptedSmtp
from tests.journey.house import house_of

# What has ended a mail early for one server or another.
ENDS = (
    "\r\n.\r\n",
    "\n.\n",
    "\r.\r",
    "\n.\r\n",
    "\r\n.\n",
    "\r\n.\r",
    "\r\n\0.\r\n",
    "\n.",
    ".\n",
    "\x85.\x85",
    "\u2028.\u2028",
)
SMUGGLED = "MAIL FROM:<eve@example.com>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\nhi\r\n.\r\n"
PIECES = st.sampled_from(
    [*ENDS, "a", ".", "..", "=", "é", " " * 90, "x" * 1200, "\t", "\v", "\f", "\x1b", SMUGGLED]
)
CONTENT = st.lists(PIECES, max_size=12).map("".join)


def _email(**fields: str) -> OutgoingEmail:
    given = {
        "to_email": "ada@example.com",
        "subject": "s",
        "html": "<p>h</p>",
        "from_email": "shop@example.com",
    }
    return OutgoingEmail(id=UUID(int=1), created_at=datetime(2026, 1, 1, tzinfo=UTC), **(given | fields))  # type: ignore[arg-type]


@given(CONTENT, CONTENT)
def test_no_body_holds_a_bare_line_break_or_a_line_of_one_dot(html: str, text: str) -> None:
    """As it goes over the wire; and no line is longer than a server must take."""
    try:
        content = render(_email(html=html + "x", text=text)).content
    except PermanentFailure:
        assert "\0" in html + text
        return
    wire = content.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", wire)
    assert wire.count(b"\r\n.\r\n") == 1
    assert wire.endswith(b"\r\n.\r\n")
    assert max(map(len, wire.split(b"\r\n"))) <= 998
    assert b"\0" not in wire


@pytest.mark.parametrize(
    "address",
    [
        "ada@example.com>\r\nRCPT TO:<eve@example.com",
        "ada@example.com> SIZE=1",
        "<ada@example.com>,<eve@example.com>",
        "@relay.example:ada@example.com",
        "ada%example.com@relay.example\r\n",
        '"a\r\nb"@example.com',
        '"a\\"@example.com',
        "friends: ada@example.com, eve@example.com;",
        "ada@example.com\0",
        "ada@[127.0.0.1]\r\nQUIT",
        "ada@example.com\u2028eve@example.com",
        "ada@exa\nmple.com",
    ],
)
def test_no_address_is_more_than_one_argument_of_a_command(address: str) -> None:
    """It is refused, or stands between its brackets."""
    for field in ("to_email", "from_email"):
        try:
            mail = render(_email(**{field: address}))
        except PermanentFailure:
            continue
        for part in (mail.sender, mail.recipient):
            assert not re.search(r"[\x00-\x20<>]", part), part


async def test_a_mail_full_of_ends_is_one_mail_at_the_server(database_url: str) -> None:
    """One transaction, and the commands in the body were read as its text."""
    smtp = ScriptedSmtp()
    await smtp.open()
    try:
        async with house_of(database_url, f"smtp://127.0.0.1:{smtp.port}") as house, house.working():
            body = "".join(f"{end}{SMUGGLED}" for end in ENDS if "\0" not in end)
            row = await house.settled(await house.queue("s", body))
        assert row["status"] == "sent"
        assert smtp.commands.count("MAIL") == smtp.commands.count("DATA") == len(smtp.mails) == 1
    finally:
        await smtp.close()
