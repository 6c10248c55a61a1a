"""
Runs benchmarks and prints a table for each: `make bench`, or `.venv/bin/python bench/run.py NAME…`.

Each is a module beside this one with a function run() -> Result, and answers one question. What follows a
name as `key=value` goes to its run(): `noop_drain count=5000 rounds=1 with_peers=False`. The results are also
appended to bench/.results/NAME.jsonl; at the end each one's time is listed.
"""

from __future__ import annotations

import ast
import importlib
import sys
import time
from pathlib import Path

NAMES = (
    "bulk_action",
    "cleanup",
    "dashboard",
    "email_drain",
    "email_latency",
    "enqueue",
    "held_snapshot",
    "http_enqueue",
    "history",
    "limits",
    "memory",
    "noop_drain",
    "smtp_client",
    "smtp_distance",
    "webhook_intake",
    "webhook_sql",
    "workers",
)


def main(words: list[str]) -> int:
    """Run the benchmarks of these names, all where there is none."""
    asked: dict[str, dict[str, object]] = {}
    for word in words:
        key, is_setting, value = word.partition("=")
        if not is_setting:
            asked[word] = {}
        elif asked:
            asked[list(asked)[-1]][key] = ast.literal_eval(value)
        else:
            print(f"{word} follows no benchmark's name", file=sys.stderr)
            return 2
    names = list(asked)
    if unknown := sorted(set(names) - set(NAMES)):
        print(f"{unknown[0]} is no benchmark; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    # As a script we see the folder of this file, and its modules are bench.*.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    took_s: dict[str, float] = {}
    failed: list[str] = []
    for name in names or NAMES:
        began_s = time.monotonic()
        try:
            result = importlib.import_module(f"bench.{name}").run(**asked.get(name, {}))
        except Exception as error:
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        finally:
            took_s[name] = time.monotonic() - began_s
        print(result.text(), flush=True)
        result.save()
    for name, seconds in took_s.items():
        print(f"{name:<16}{seconds:6.0f} s{', failed' if name in failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
