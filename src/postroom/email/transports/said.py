"""What the other side said, fit for a log, a row and a screen."""

from __future__ import annotations

from postroom.email.message import OutgoingEmail

TEXT_CHARACTERS_MAX = 500

QUOTED_CHARACTERS = 32
"""So many characters of an e-mail's body, one after the other, are a quotation of it."""

BODY_CHARACTERS_MAX = 64 * 1024


def printable(text: str) -> str:
    """One line of at most 500 characters, none of which controls anything."""
    head = text[: 2 * TEXT_CHARACTERS_MAX]
    return " ".join("".join(c if c.isprintable() else " " for c in head).split())[:TEXT_CHARACTERS_MAX]


def without_body(text: str, email: OutgoingEmail) -> str:
    """
    What was said about an e-mail, up to where it begins to repeat its body.

    Some providers give back the request that they refuse; a body has no business in a log.
    """
    if len(text) < QUOTED_CHARACTERS:
        return text  # as most answers are: the body is not looked at for 8 us
    # The address stands in many bodies, and in the errors about it.
    searched = text.replace(email.to_email, " " * len(email.to_email))
    for body in (email.html, email.text or ""):
        known = " ".join(body[:BODY_CHARACTERS_MAX].split())
        for start in range(len(searched) - QUOTED_CHARACTERS + 1):
            window = searched[start : start + QUOTED_CHARACTERS]
            if window in known and not window.isspace():
                return f"{text[:start]}[the e-mail itself]"
    return text
