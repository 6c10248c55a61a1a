"""What those who read a queue must know of it: its table's name, and what its columns are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueTable:
    """
    One queue, as its readers see it. Every text is part of SQL: constants of ours, never input.

    Attributes:
        name: `email` or `webhook`, as in postroom.workers.
        table: The public table.
        noun: What people call a row, such as `e-mail`.
        about: The columns that tell a person what a row is about.
        listed: The columns of a list of rows.
        filters: The columns that a text is looked for in, by the name of their filter, such as `to`.
        hidden: The columns that hold its body.
        done: The status of a row that has succeeded.
        done_at: When it did.
        limit_key: The limit that all rows share; None where there is none.
        programs: SQL for the programs whose workers alone take the row `item`, an array; NULL where any does.
        behind: SQL for the row that `item` must wait for, as {"id", "status"}; NULL where there is none.
        retry, discard: The functions that act on dead letters.
        can_be_edited: Whether a dead letter may be mended, which makes another row.
    """

    name: str
    table: str
    noun: str
    about: tuple[str, ...]
    listed: tuple[str, ...]
    filters: Mapping[str, str]
    hidden: tuple[str, ...]
    done: str
    done_at: str
    retry: str
    discard: str
    limit_key: str | None = None
    programs: str = "NULL::text[]"
    behind: str = "NULL::jsonb"
    can_be_edited: bool = False
