"""What a command prints: tables and sentences on a terminal, plain lines in a pipe, JSON where asked."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

ROWS_ON_A_TERMINAL = 50

Row = Sequence[object]

# What a terminal would obey instead of showing it: an e-mail's subject may be anybody's text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_terminal() -> bool:
    """Whether a person reads the output."""
    return sys.stdout is not None and sys.stdout.isatty()


PROGRAM = "postroom"
_program = [PROGRAM]


def speak_as(program: str) -> None:
    """What a person is told to run is called by this name from now on: `manage.py postroom` in Django."""
    _program[0] = program


def print_line(line: str) -> None:
    """Print one line of the command's answer."""
    print(one_line(_spoken(line)))


def note(line: str) -> None:
    """Print one line beside the answer, to stderr: how it goes, or what to mind."""
    print(one_line(_spoken(line)), file=sys.stderr)


def _spoken(text: str) -> str:
    return text if _program[0] == PROGRAM else text.replace(f"`{PROGRAM} ", f"`{_program[0]} ")


def one_line(text: str) -> str:
    """A text in one line that no terminal obeys."""
    return _CONTROL.sub(" ", text) if _CONTROL.search(text) else text


def print_json(data: object) -> None:
    """Print one JSON document; what a terminal would obey is written as JSON's escapes."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    text = orjson.dumps(data, default=str, option=options).decode()
    lines = text.split("\n")
    if any(_CONTROL.search(line) for line in lines):
        text = "\n".join(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in lines)
    sys.stdout.write(text)


def print_table(columns: Sequence[str], rows: Sequence[Row], *, flexible: Sequence[str] = ()) -> None:
    """
    Print a table: drawn to the terminal's width, or in a pipe as aligned columns of their full width.

    Args:
        flexible: The columns that give way where a terminal is too narrow; the others keep their width.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[place], int | float | None) for row in rows)
        for place in range(len(columns))
    ]
    if is_terminal():
        _draw(columns, cells, numeric, flexible)
    else:
        _align(columns, cells, numeric)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, one a line."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name:<{width}}  {_cell(value)}".rstrip())


def print_text(text: str, indent: str = "", *, lead: str = "", colour: int = 0) -> None:
    """
    Print a sentence: on a terminal broken between its words, elsewhere in one line.

    Args:
        lead: Stands where the first line's indent would.
        colour: Of the lead, on a terminal.
    """
    lead = lead or indent
    text = _spoken(text)
    if not is_terminal():
        print(f"{lead}{one_line(text)}")
        return
    width = get_terminal_size().columns
    lines = wrap(one_line(text), width, initial_indent=lead, subsequent_indent=indent or "  ") or [lead]
    first = lines[0].removeprefix(lead)
    print(f"\x1b[{colour}m{lead}\x1b[0m{first}" if colour else lines[0])
    for line in lines[1:]:
        print(line)


def print_records(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print rows as a table where a terminal is wide enough for it, else one value a line."""
    cells = [[_cell(value) for value in row] for row in rows]
    wanted = [max([len(name), *(len(row[place]) for row in cells)]) for place, name in enumerate(columns)]
    if not is_terminal() or sum(wanted) + 3 * len(wanted) <= get_terminal_size().columns:
        print_table(columns, rows)
        return
    for number, row in enumerate(rows, 1):
        heading(f"Row {number}")
        print_facts(dict(zip(columns, row, strict=True)))


def heading(text: str) -> None:
    """Print the title of what follows."""
    if is_terminal():
        print(f"\n\x1b[1m{one_line(text)}\x1b[0m")
    else:
        print(f"\n{one_line(text)}")


@contextmanager
def progress(what: str) -> Iterator[Any]:
    """
    Show on a terminal that something goes on; elsewhere say nothing.

    Yields:
        A function that takes what is being done now.
    """
    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)) as status:
        yield lambda text: status.update(Text(one_line(text)))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if is_terminal() else str(value)
    return one_line(str(value))


def _align(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
    widths = [max([len(name), *(len(row[place]) for row in rows)]) for place, name in enumerate(columns)]
    for row in [columns, *rows]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _draw(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    flexible: Sequence[str],
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(
            Text(name),
            justify="right" if right else "left",
            no_wrap=name not in flexible,
            overflow="fold" if name in flexible else "ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)
