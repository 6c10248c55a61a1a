"""`postroom stats`: how long it took, how much went through, and what failed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from postroom.cli.errors import WrongUsage
from postroom.cli.house import opened_room, run
from postroom.cli.screen import (
    heading,
    is_terminal,
    print_json,
    print_line,
    print_table,
    print_text,
    progress,
)
from postroom.spans import parse_span
from postroom.wording import count_of, duration

if TYPE_CHECKING:
    from postroom.queue.times import Line, Stats

SPAN_MAX_S = 366 * 86400.0
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
CHART_COLUMNS_MAX = 60

_BARS = "▁▂▃▄▅▆▇█"
_ENDED_WELL = ("done", "unhandled")
_OUTCOMES = {
    "temporary": "failed for now",
    "permanent": "refused for good",
    "uncertain": "may have gone out, its answer was lost",
    "crashed": "lost with their worker",
    "transport_down": "found their transport down, and did not count",
    "abandoned": "found their transport down while somebody waited",
}


class By(StrEnum):
    """What to tell apart."""

    EMAIL_TYPE = "email_type"
    SOURCE = "source"
    TRANSPORT = "transport"
    HANDLER = "handler"


def stats(
    since: Annotated[
        str, typer.Option("--since", metavar="SPAN", help="How far back, such as 1h or 7d.")
    ] = "24h",
    by: Annotated[
        By | None, typer.Option("--by", help="Tell e-mails apart by this; source, handler: webhooks.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how long e-mails and events waited and took, how many there were, and what failed."""
    span_s = _span(since)
    columns = min(CHART_COLUMNS_MAX, max(get_terminal_size().columns - 2, 1))
    found = run(_read(span_s, by, columns))
    if json:
        print_json(_document(found))
    else:
        _print(found, since)


def _span(text: str) -> float:
    try:
        seconds = parse_span(text)
    except ValueError as error:
        raise WrongUsage(f"--since: {error}") from None
    if not 60 <= seconds <= SPAN_MAX_S:
        raise WrongUsage("--since: from 1m to 366d; the figures are kept by minute, for retention.stats")
    return seconds


async def _read(span_s: float, by: By | None, parts: int) -> Stats:
    from postroom.queue.times import read_stats

    async with opened_room() as room:
        with progress("adding up"):
            return await read_stats(
                room.database, timedelta(seconds=span_s), by.value if by is not None else None, parts=parts
            )


def _print(found: Stats, since: str) -> None:
    if not found.lines:
        print_line(f"no attempt has ended in the last {since}")
        return
    minutes = (found.now - found.since).total_seconds() / 60
    print_table(
        ["QUEUE", "KIND", "ATTEMPTS", "PER MINUTE", "DEAD LETTERS", "LIMIT WAITS"],
        [
            (
                line.queue,
                _kind(line),
                line.attempts,
                _rate(line.attempts / minutes),
                line.dead_letters,
                line.limit_waits,
            )
            for line in found.lines
        ],
        flexible=["KIND"],
    )
    heading("Times")
    print_table(
        ["QUEUE", "KIND", "TIME", "P50", "P95", "P99"],
        [
            (line.queue, _kind(line), measure, *map(_time, _percentiles(line, measure).values()))
            for line in found.lines
            for measure in line.times
            if line.times[measure].count
        ],
        flexible=["KIND"],
    )
    _print_failures(found)
    if is_terminal() and any(found.attempts):
        heading(f"Attempts in the last {since}")
        _print_chart(found.attempts)


def _print_failures(found: Stats) -> None:
    failed: Counter[tuple[str, str]] = Counter()
    for line in found.lines:
        for outcome, count in line.outcomes.items():
            if outcome not in _ENDED_WELL:
                failed[line.queue, outcome] += count
    if failed:
        heading("Failures")
    for (queue, outcome), count in failed.most_common():
        print_text(f"{queue}: {count_of(count, 'attempt')} {_OUTCOMES.get(outcome, outcome)} ({outcome})")


def _print_chart(attempts: list[int]) -> None:
    highest = max(attempts)
    bars = "".join(_BARS[(count * len(_BARS) - 1) // highest] if count else " " for count in attempts)
    colour = not os.environ.get("NO_COLOR")
    print(f"\x1b[36m{bars}\x1b[0m" if colour else bars)
    print_line(f"most at once: {highest:,}")


def _document(found: Stats) -> dict[str, Any]:
    return {
        "since": found.since,
        "now": found.now,
        "lines": [
            {
                **{name: value for name, value in asdict(line).items() if name != "times"},
                "times_ms": {
                    measure: {"count": line.times[measure].count, **_percentiles(line, measure)}
                    for measure in line.times
                },
            }
            for line in found.lines
        ],
        "attempts": found.attempts,
    }


def _percentiles(line: Line, measure: str) -> dict[str, float | None]:
    return {
        name: None if (found := line.times[measure].percentile_ms(share)) is None else round(found, 1)
        for name, share in SHARES.items()
    }


def _rate(per_minute: float) -> str:
    """Two digits of what is rare: 50 of a day are 0.035 a minute, not none."""
    return f"{per_minute:,.1f}" if per_minute >= 1 or not per_minute else f"{per_minute:.2g}"


def _kind(line: Line) -> str:
    return line.kind or "(none)"


def _time(ms: float | None) -> str:
    if ms is None:
        return ""
    return f"{ms:.0f} ms" if ms < 1000 else duration(ms / 1000)
