"""
Which outcome a refusal of an SMTP server is: the one place where its codes become verdicts.

An enhanced code says more than the basic one and wins (RFC 3463): `550 4.2.1` is temporary and
`450 5.1.1` permanent. Some codes speak of the connection or the server, not of the e-mail; they
make the transport pause, and the e-mail loses nothing:

- 421, at any point: the server closes the connection.
- 432: Exchange answers it to the content where an account has too many connections at once.
- 530, 534, 535, 538 and X.7.8, X.7.9, X.7.11: it wants authentication, or another one.
- 454 with 4.7.0 or no enhanced code: authentication fails for now, or the account sends too fast.
- X.4.5: congestion, which providers send for a used-up quota.
- X.3.1 and X.3.2 answering MAIL FROM, where no recipient was named yet: its disk is full, or it
  takes no mail at present.

`relaying denied` (550 or 554 5.7.1) is permanent: it depends on the recipient at most servers.
503, bad sequence, is a confused dialogue and not the e-mail's fault: temporary. So is a BDAT that a
server does not know though it offered CHUNKING (500, 502, 504): it gets DATA from then on.
"""

from __future__ import annotations

from enum import StrEnum

from postroom.email.transports.smtp.reply import Reply
from postroom.errors import PermanentFailure, SendError, TemporaryFailure, TransportDown

_DOWN_CODES = frozenset({421, 432, 530, 534, 535, 538})
_DOWN_DETAILS = frozenset({"7.8", "7.9", "7.11", "4.5"})
_UNKNOWN = frozenset({500, 502, 504})
_DOWN_DETAILS_AT_MAIL = frozenset({"3.1", "3.2"})


class Stage(StrEnum):
    """What a reply answers."""

    MAIL = "MAIL FROM"
    RCPT = "RCPT TO"
    DATA = "DATA"
    CONTENT = "the e-mail"
    BDAT = "BDAT with the e-mail"


def refusal(stage: Stage, reply: Reply) -> SendError:
    """The outcome of an e-mail whose transaction was refused."""
    text = f"{reply} (answering {stage})"
    if _speaks_of_the_server(stage, reply):
        return TransportDown(text, code=reply.code)
    if reply.code == 503 or reply.ok or reply.go_on or knows_no_chunks(stage, reply):
        return TemporaryFailure(text, code=reply.code)
    deciding_digit = reply.enhanced[:1] if reply.enhanced[:1] in ("4", "5") else str(reply.code)[0]
    if deciding_digit == "5":
        return PermanentFailure(text, code=reply.code)
    return TemporaryFailure(text, code=reply.code)


def knows_no_chunks(stage: Stage, reply: Reply) -> bool:
    """Whether BDAT is a command that the server does not know."""
    return stage == Stage.BDAT and reply.code in _UNKNOWN


def _speaks_of_the_server(stage: Stage, reply: Reply) -> bool:
    detail = reply.enhanced[2:]
    return (
        reply.code in _DOWN_CODES
        or detail in _DOWN_DETAILS
        or (reply.code == 454 and detail in ("", "7.0"))
        or (stage == Stage.MAIL and detail in _DOWN_DETAILS_AT_MAIL)
    )
