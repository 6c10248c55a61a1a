"""postroom stats: how long it took, how much went through, and what failed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli, on_a_terminal

Db = psycopg.Connection[tuple[Any, ...]]

TALLIES = """
    INSERT INTO postroom.tallies (at, queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms)
    SELECT now() - ago, queue, kind, transport, outcome, status, array_fill(wait, ARRAY[n]),
        array_fill(attempt, ARRAY[n]), array_fill(total, ARRAY[n])
    FROM (VALUES
        (interval '2 minutes', 'email', 'receipt', 'smtp://mail:25', 'done', 'sent', 97, 50, 20, 70),
        (interval '2 minutes', 'email', 'receipt', 'smtp://mail:25', 'temporary', 'pending', 3, 5, 900, NULL),
        (interval '30 minutes', 'email', 'digest', 'resend', 'permanent', 'dead_letter', 2, 60000, 9, 70000),
        (interval '30 minutes', 'email', '', '', 'waits', 'limit_recipient', 7, NULL, NULL, NULL),
        (interval '30 minutes', 'webhook', 'stripe', '', 'done', 'processed', 5, 1, 4, 5),
        (interval '30 hours', 'email', 'old', 'resend', 'done', 'sent', 9, 1, 1, 1)
    ) AS tally (ago, queue, kind, transport, outcome, status, n, wait, attempt, total)
"""


@pytest.fixture
def filled(cli: Cli, db: Db) -> Cli:
    """A house with a day and more behind it."""
    db.execute(TALLIES)
    return cli


def test_it_shows_times_throughput_and_failures(filled: Cli) -> None:
    """Percentiles by kind of each time; attempts, dead letters, limit waits; failures with their reason."""
    lines = [" ".join(line.split()) for line in filled.ok("stats").splitlines()]
    assert "email receipt 100 0.069 0 0" in lines
    assert "email digest 2 0.0014 2 0" in lines
    assert "webhook stripe 5 0.0035 0 0" in lines
    assert "email (none) 0 0.0 0 7" in lines
    assert not any("old" in line for line in lines)
    times = {tuple(line.split()[:3]): line for line in lines}
    assert re.fullmatch(
        r"email receipt attempt (19|20) ms 2\d ms 9\d\d ms", times["email", "receipt", "attempt"]
    )
    assert re.search(r"(1 min|[45]\d s)", times["email", "digest", "wait"])
    assert "email: 3 attempts failed for now (temporary)" in lines
    assert "email: 2 attempts refused for good (permanent)" in lines
    assert not any("▁" in line or "█" in line for line in lines), "no chart in a pipe"


def test_by_transport_and_since(filled: Cli) -> None:
    """The same by another word, over another span."""
    found = filled("stats", "--since", "48h", "--by", "transport", "--json").json
    attempts = {(line["queue"], line["kind"]): line["attempts"] for line in found["lines"]}
    assert attempts == {("email", "smtp://mail:25"): 100, ("email", "resend"): 11, ("email", ""): 0}
    found = filled("stats", "--since", "10m", "--json").json
    assert [line["kind"] for line in found["lines"]] == ["receipt"]
    assert found["lines"][0]["outcomes"] == {"done": 97, "temporary": 3}
    assert found["lines"][0]["times_ms"]["total"]["count"] == 97
    assert sum(found["attempts"]) == 100
    found = filled("stats", "--by", "source", "--json").json
    assert [line["kind"] for line in found["lines"]] == ["stripe"]


def test_where_nothing_was_it_says_so(cli: Cli) -> None:
    """No table without rows."""
    assert cli.ok("stats", "--since", "1h") == "no attempt has ended in the last 1h\n"


@pytest.mark.parametrize("since", ["yesterday", "5s", "900d", "-1h"])
def test_a_span_that_is_none_is_refused(cli: Cli, since: str) -> None:
    """With a line that says what is allowed."""
    answer = cli("stats", f"--since={since}")
    assert answer.code == 2
    assert "--since" in answer.err


@pytest.mark.parametrize(("columns", "no_color"), [(100, ""), (100, "1"), (30, "")])
def test_a_terminal_gets_a_chart(
    filled: Cli, database_url: str, tmp_path: Path, columns: int, no_color: str
) -> None:
    """As wide as it fits; without colour where NO_COLOR is set."""
    settings = {
        "POSTROOM_DATABASE_URL": database_url,
        "NO_COLOR": no_color,
        "LC_ALL": "C.UTF-8",
        "POSTROOM_LOG_LEVEL": "error",
    }
    code, said = on_a_terminal("stats", "--since", "1h", folder=tmp_path, settings=settings, columns=columns)
    assert code == 0, said
    chart = next(line for line in said.splitlines() if "█" in line)
    assert ("\x1b[36m" in chart) == (not no_color)
    assert len(re.sub(r"\x1b\[\d+m", "", chart)) <= columns
