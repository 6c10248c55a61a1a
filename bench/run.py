"""
Runs benchmarks and prints a table for each: `make bench`, or `.venv/bin/python bench/run.py NAME…`.

Each is a module beside this one with a function run() -> Result, and answers one question. The results
are also appended to bench/.results/NAME.jsonl.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

NAMES = (
    "cleanup",
    "email_drain",
    "email_latency",
    "held_snapshot",
    "history",
    "limits",
    "memory",
    "noop_drain",
    "smtp_client",
    "webhook_intake",
    "workers",
)


def main(names: list[str]) -> int:
    """Run the benchmarks of these names, all where there is none."""
    if unknown := sorted(set(names) - set(NAMES)):
        print(f"{unknown[0]} is no benchmark; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    # As a script we see the folder of this file, and its modules are bench.*.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    for name in names or NAMES:
        result = importlib.import_module(f"bench.{name}").run()
        print(result.text(), flush=True)
        result.save()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
