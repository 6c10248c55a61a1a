"""What the other side said, fit for a log, a row and a screen."""

from __future__ import annotations

TEXT_CHARACTERS_MAX = 500


def printable(text: str) -> str:
    """One line of at most 500 characters, none of which controls anything."""
    head = text[: 2 * TEXT_CHARACTERS_MAX]
    return " ".join("".join(c if c.isprintable() else " " for c in head).split())[:TEXT_CHARACTERS_MAX]
