"""Ids as they are written on the command line."""

from __future__ import annotations

from uuid import UUID

import typer


def row_id_of(text: str) -> UUID:
    """The id of a row, as `postroom send` prints it."""
    try:
        return UUID(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no id; write one as `postroom send` prints it") from None
