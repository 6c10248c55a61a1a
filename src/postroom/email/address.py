"""
Addresses: what an e-mail may be sent to and from.

Only the grammar is checked, by email-validator, never the DNS: whether a mail server exists is
found out by sending. Names that no public mail server has (`root@localhost`, `ops@mail.test`,
`nas@office.local`) are addresses here, since people run this on networks of their own.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from email_validator import EmailNotValidError, validate_email

from postroom.errors import InvalidEmail

ADDRESS_BYTES_MAX = 254
"""RFC 5321, 4.5.3.1.3: a path of 256 octets, less its angle brackets."""

NAME_CHARACTERS_MAX = 320

# A subset of what email-validator takes, which is nearly all there is; it saves 30 us a mail.
_PLAIN = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@(?!(?:[a-z0-9-]+\.)*[a-z0-9]{2}--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
    r"(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*\.[a-z]{2,63}"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME_NEEDS_QUOTES = re.compile(r'[()<>\[\]:;@\\,."]')
# email-validator refuses these as not deliverable in public; the local mail server may know better.
_SPECIAL_USE = frozenset({"arpa", "invalid", "local", "localhost", "onion", "test"})
_STAND_IN = "example"


@dataclass(frozen=True, slots=True)
class Mailbox:
    """
    One address that was checked, in the forms that the wire and people need.

    Attributes:
        name: The display name, empty where there is none.
        local: What stands before the @, quoted where it must be.
        domain: As people write it, in lower case.
        ascii_domain: As DNS and SMTP write it (A-labels).
    """

    name: str
    local: str
    domain: str
    ascii_domain: str

    @property
    def address(self) -> str:
        """The address as people write it."""
        return f"{self.local}@{self.domain}"

    @property
    def wire_address(self) -> str:
        """The address for an envelope or a header: its domain in ASCII."""
        return f"{self.local}@{self.ascii_domain}"

    @property
    def needs_smtputf8(self) -> bool:
        """Whether no ASCII form of the address exists."""
        return not self.local.isascii()

    def __str__(self) -> str:
        """`Name <a@b.c>`, or the address alone where there is no name."""
        if not self.name:
            return self.address
        return f"{quote_name(self.name)} <{self.address}>"


def check_address(field: str, value: object, *, named: bool | None = None) -> str:
    """
    Check one address and give it its one written form.

    Args:
        field: The field that errors name, such as `to`.
        value: `a@b.c`, or `Name <a@b.c>` where a name is allowed.
        named: Whether a display name is allowed; by default it is in `from` and `reply_to`.

    Returns:
        The address: no spaces around it, its domain in lower case, NFC.

    Raises:
        InvalidEmail: It is no address, or several; the text says what is wrong.
    """
    return str(parse_mailbox(field, value, named=field != "to" if named is None else named))


def parse_mailbox(field: str, value: object, *, named: bool) -> Mailbox:
    """
    Parse one address.

    Raises:
        InvalidEmail: It is no address, or several, or has a name where none is allowed.
    """
    if not isinstance(value, str):
        raise InvalidEmail(field, f"must be a text with one address, not {kind_of(value)}")
    return _parse(field, value, named)


def quote_name(name: str) -> str:
    """A display name as a phrase: in quotes where it holds more than words."""
    if not _NAME_NEEDS_QUOTES.search(name):
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def kind_of(value: object) -> str:
    """What people call a value's type: for errors, which show no more of it."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text"}
    names |= {list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)


def check_text(field: str, value: str) -> str:
    """
    Refuse a text that PostgreSQL cannot store, and give it back as it is.

    Raises:
        InvalidEmail: It holds a NUL or a lone surrogate.
    """
    if "\0" in value:
        raise InvalidEmail(field, f"holds a NUL at position {value.index(chr(0)) + 1}; take it out")
    return check_unicode(field, value)


def check_unicode(field: str, value: str) -> str:
    """
    Refuse a text that UTF-8 cannot write, and give it back as it is.

    Raises:
        InvalidEmail: It holds a lone surrogate.
    """
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            problem = f"holds half a character (a lone surrogate) at position {error.start + 1}"
            raise InvalidEmail(field, problem) from None
    return value


@lru_cache(maxsize=2048)
def _parse(field: str, value: str, named: bool) -> Mailbox:
    if len(value) <= ADDRESS_BYTES_MAX and _PLAIN.fullmatch(value):
        local, _, domain = value.rpartition("@")
        if domain.rpartition(".")[2] not in _SPECIAL_USE and len(local) <= 64:
            return Mailbox("", local, domain, domain)
    if len(value) > NAME_CHARACTERS_MAX + ADDRESS_BYTES_MAX + 3:
        raise InvalidEmail(field, f"is {len(value):,} characters long; an address has at most 254")
    if found := _CONTROL.search(value):
        raise InvalidEmail(field, f"holds the control character U+{ord(found[0]):04X}; take it out")
    value = check_unicode(field, value).strip(" ")
    if not value:
        raise InvalidEmail(field, "is empty; give an address such as name@example.com")
    _refuse_several(field, value)
    name, address = _split_name(field, value)
    if name and not named:
        raise InvalidEmail(field, f"{value!r} has a display name; give the address alone")
    return _validated(field, name, address)


def _refuse_several(field: str, value: str) -> None:
    """Say so where there is more than one address: each recipient gets an e-mail of its own."""
    bare = _QUOTED.sub("", value)
    head, bracket, _ = bare.rpartition("<")
    separated = "," in bare or ";" in bare
    if (bracket and "@" in head and separated) or (not bracket and "@" in bare and separated):
        raise InvalidEmail(field, f"{value!r} names several addresses; send one e-mail to each")
    if bracket and ("<" in head or ">" in head):
        raise InvalidEmail(field, f"{value!r} names several addresses, or its name holds < or >")


def _split_name(field: str, value: str) -> tuple[str, str]:
    if not value.endswith(">"):
        return "", value
    name, bracket, address = value[:-1].rpartition("<")
    if not bracket:
        raise InvalidEmail(field, f"{value!r} has a > without its <")
    name = name.strip(" ")
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1]).strip(" ")
    if len(name) > NAME_CHARACTERS_MAX:
        raise InvalidEmail(field, f"its name is longer than {NAME_CHARACTERS_MAX} characters")
    return unicodedata.normalize("NFC", name), address.strip(" ")


def _validated(field: str, name: str, address: str) -> Mailbox:
    if "<" in address or ">" in address:
        raise InvalidEmail(field, f"{address!r} holds < or >; give one address such as name@example.com")
    head, special = _without_special_use(address)
    try:
        found = validate_email(
            head,
            check_deliverability=False,
            globally_deliverable=False,
            allow_quoted_local=True,
            allow_domain_literal=True,
        )
    except (EmailNotValidError, UnicodeError) as error:
        raise InvalidEmail(field, f"{address!r} is not an e-mail address: {error}") from None
    domain, ascii_domain = found.domain, found.ascii_domain
    if special:
        domain = domain.removesuffix(_STAND_IN) + special
        ascii_domain = ascii_domain.removesuffix(_STAND_IN) + special
    mailbox = Mailbox(name, found.local_part, domain, ascii_domain)
    if len(found.local_part.encode()) > 64 or len(mailbox.wire_address.encode()) > ADDRESS_BYTES_MAX:
        raise InvalidEmail(field, f"{address!r} is too long: 64 bytes before the @, 254 in all")
    return mailbox


def _without_special_use(address: str) -> tuple[str, str]:
    """
    The address with its reserved last label replaced by one that email-validator takes.

    Its list of reserved names is a global of the library, which is not ours to change: the
    program that imports us may rely on it.
    """
    head, at, domain = address.rpartition("@")
    parent, dot, last = domain.rpartition(".")
    if at and last.lower() in _SPECIAL_USE:
        return f"{head}@{parent}{dot}{_STAND_IN}", last.lower()
    return address, ""
