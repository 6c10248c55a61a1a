"""Mails that are hard to carry, and the look at what arrived: is it what was queued?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from email import message_from_string, policy
from email.headerregistry import Address
from email.message import EmailMessage

from tests.journey.ledger import Delivered

SENDER = "shop@example.com"
"""POSTROOM_FROM of these tests."""


@dataclass(frozen=True)
class Mail:
    """
    What a caller gives for one mail.

    Attributes:
        envelope: The recipient as SMTP has it, where that is not `to`.
    """

    to: str
    subject: str
    html: str
    text: str | None = None
    sender: str | None = None
    reply_to: str | None = None
    headers: dict[str, str] | None = None
    envelope: str | None = field(default=None, kw_only=True)

    @property
    def needs_smtputf8(self) -> bool:
        """Whether its recipient has no ASCII form."""
        return not self.to.rpartition("@")[0].isascii()


DOTS = ".\n..\n.leading\n\n.\n...\nend of it."
KINDS = (
    Mail("ada@example.com", "Your order", "<p>Thank you, Ada</p>"),
    Mail(
        "bob@example.com", "Grüße aus Köln – 你好 🎉", "<p>Schöne Grüße 你好 🎉</p>", "Schöne Grüße 你好 🎉"
    ),
    Mail("cy@example.com", "Dots", f"<pre>{DOTS}</pre>", DOTS),
    Mail(
        "dee@example.com", "Long lines", f"<p>{'word ' * 4_000}</p>", "x" * 5_000 + "\nshort\n" + "é" * 3_000
    ),
    Mail(
        "eve@example.com",
        "A subject that goes on and on, " * 12 + "and ends with ünïcode",
        "<p>folded</p>",
        "folded",
        '"Müller, Jörg" <joerg@example.com>',
        "Ψηφος <help@example.com>",
    ),
    Mail(
        "fay@bücher.example",
        "To a domain with an umlaut",
        "<p>IDN</p>",
        "IDN",
        "Über <post@bücher.example>",
        envelope="fay@xn--bcher-kva.example",
    ),
    Mail("zoë@example.com", "To a mailbox that ASCII cannot write: zoë", "<p>SMTPUTF8</p>", "SMTPUTF8"),
    Mail(
        "gus@example.com",
        "=?utf-8?Q?not_encoded?=",
        "<p>headers</p>",
        "headers",
        "Shop <shop@example.org>",
        "back@example.org",
        {"List-Unsubscribe": "<https://example.com/u?a=1&b=2>", "X-Greeting": "Tschüß 🎉"},
    ),
    Mail("hal@example.com", "Line ends", "<p>one</p>\r\n<p>two</p>\r<p>three</p>", "one\r\ntwo\rthree\n\n\n"),
    Mail(
        "ida@example.com", "From mailboxes", "<p>From here</p>", "From here\n>From there\n\tTab \x0c feed  \n"
    ),
)
LARGE = Mail(
    "max@example.com",
    "A megabyte",
    "<p>" + "0123456789 äöü <br>\n" * 50_000 + "</p>",
    "".join(f"line {n} of a long letter.\n" for n in range(40_000)),
)


def mail(number: int) -> Mail:
    """The mail of a number: each kind in turn, each mail with its number in what it says."""
    kind = KINDS[number % len(KINDS)]
    return replace(
        kind,
        subject=f"{kind.subject} #{number}",
        html=f"{kind.html}<p>number {number}</p>",
        text=None if kind.text is None else f"{kind.text}number {number}",
    )


def parsed(content: bytes) -> EmailMessage:
    """A mail as its reader's program sees it, headers in UTF-8 too."""
    message = message_from_string(content.decode(), policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def check_arrived(sent: Mail, arrived: Delivered) -> None:
    """Compare each field with what was given for it; fails where one is not the same."""
    message = parsed(arrived.content)
    sender = _address(sent.sender or SENDER)
    assert arrived.recipient == (sent.envelope or sent.to)
    assert arrived.sender == sender.addr_spec
    assert str(message["Subject"]) == sent.subject
    assert _addresses(message, "From") == [sender]
    assert _addresses(message, "To") == [_address(arrived.recipient)]
    assert _addresses(message, "Reply-To") == ([_address(sent.reply_to)] if sent.reply_to else [])
    for name, value in (sent.headers or {}).items():
        assert message.get_all(name) == [value]
    html, plain = _part(message, "html"), _part(message, "plain")
    assert html == _lines(sent.html)
    if sent.text is not None:
        assert plain == _lines(sent.text)
    else:
        assert sent.html.split("<p>")[1].split("<")[0] in plain
    for line in arrived.content.split(b"\r\n"):
        assert len(line) <= 998
        assert b"\n" not in line
        assert b"\r" not in line


def _part(message: EmailMessage, subtype: str) -> str:
    part = message.get_body((subtype,))
    assert part is not None
    assert not part.defects
    content = part.get_content()
    assert isinstance(content, str)
    return _lines(content)


def _lines(text: str) -> str:
    """A mail ends its lines in one way, the last one too."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"


def _addresses(message: EmailMessage, name: str) -> list[Address]:
    header = message[name]
    return [] if header is None else list(header.addresses)


def _address(text: str) -> Address:
    name, bracket, spec = text.rpartition("<")
    spec = spec.removesuffix(">") if bracket else text
    local, _, domain = spec.rpartition("@")
    return Address(name.strip().strip('"'), local, domain.encode("idna").decode())
