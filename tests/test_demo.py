"""`make demo`: the tour, as a newcomer runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples/demo.py"


@pytest.mark.timeout(240)
def test_the_demo_ends_as_promised_and_leaves_nothing(tmp_path: Path) -> None:
    """Exit 0, each story in its table, and neither a folder nor a process is left."""
    before = set(Path("/tmp").glob("postroom-demo-*"))
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        env={**os.environ, "POSTROOM_TRANSPORT": "smtp://nobody.example.com"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=220,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for row in ("by a plain INSERT", "to no such user (550)", "4 alerts to one person", "12 newsletters"):
        assert row in done.stdout.split("What became of each e-mail")[1]
    for row in ("one with another secret", "one that nobody wants", "24 checkouts, kill -9"):
        assert row in done.stdout.split("What became of each event")[1]
    assert "All as promised" in done.stdout
    assert set(Path("/tmp").glob("postroom-demo-*")) <= before
