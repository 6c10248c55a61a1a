"""What the other side said, fit for a log, a row and a screen."""

from __future__ import annotations

import re
from collections.abc import Iterator

from postroom.email.attachments import as_json
from postroom.email.message import OutgoingEmail

TEXT_CHARACTERS_MAX = 500

QUOTED_CHARACTERS = 32
"""So many characters of an e-mail's body, one after the other, are a quotation of it."""

BODY_CHARACTERS_MAX = 64 * 1024

_WORD = re.compile(r"\S+")


def printable(text: str) -> str:
    """One line of at most 500 characters, none of which controls anything."""
    head = text[: 2 * TEXT_CHARACTERS_MAX]
    if head.isprintable():
        return " ".join(head.split())[:TEXT_CHARACTERS_MAX]
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
    for body in (email.html, email.text or "", *_contents(email.attachments)):
        head = body[:BODY_CHARACTERS_MAX]
        if not _may_quote(searched, head):
            continue
        known = " ".join(head.split())
        for start in range(len(searched) - QUOTED_CHARACTERS + 1):
            window = searched[start : start + QUOTED_CHARACTERS]
            if window in known and not window.isspace():
                return f"{text[:start]}[the e-mail itself]"
    return text


def _contents(attachments: object) -> Iterator[str]:
    """What files hold, in base64, as a provider was given them."""
    attachments = as_json(attachments)
    for each in attachments if isinstance(attachments, list) else ():
        if isinstance(each, dict) and isinstance(content := each.get("content"), str):
            yield content


def _may_quote(said: str, body: str) -> bool:
    """
    Whether a quotation can be in what was said: it would hold no whole word that the body has not.

    Most replies end here, after one word; to bring a body of 2 KB into one line takes 5 us.
    """
    words = [(word.start(), word.end(), word[0]) for word in _WORD.finditer(said)]
    start = 0
    while start <= len(said) - QUOTED_CHARACTERS:
        whole = [word for word in words if start <= word[0] and word[1] <= start + QUOTED_CHARACTERS]
        whole.sort(key=lambda word: word[0] - word[1])  # the longest is the least likely to be there
        strange = next((word for word in whole if word[2] not in body), None)
        if strange is None:
            return True
        start = strange[0] + 1
    return False
