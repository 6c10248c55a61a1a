"""`python -m tests.chaos`: a long run with its table, or one short run for each guard that is taken out."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
from dataclasses import replace
from pathlib import Path

from tests.chaos import sabotage
from tests.chaos.report import table
from tests.chaos.rig import run
from tests.chaos.scenario import Scenario

PARKED = 0.15
"""The share of the time in which what may have gone out is parked and not sent again."""


def main() -> int:
    """Exit code 0 where every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=480.0, help="of faults, in both runs together")
    parser.add_argument("--quiet", action="store_true", help="only the table")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the logs")
    parser.add_argument(
        "--sabotage", nargs="?", const="", default=None, metavar="GUARD", help="take guards out"
    )
    options = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of each call that its caller gave up
    if options.sabotage is not None:
        return sabotaged(seed, options.sabotage)
    print(f"make chaos SEED={seed}", flush=True)

    def tell(line: str) -> None:
        if not options.quiet:
            print(line, flush=True)

    repeated = Scenario(seed=seed, seconds=options.seconds * (1 - PARKED), keep=options.keep)
    parked = replace(repeated, seed=seed + 1, seconds=options.seconds * PARKED)
    runs = [run(repeated, tell), run(parked.with_policy(email__on_uncertain="park"), tell)]
    print(f"\n{table(*runs)}")
    return 0 if all(done.account.green for done in runs) else 1


def sabotaged(seed: int, only: str) -> int:
    """Exit code 0 where each guard that is taken out turns its run red."""
    print(f"make chaos SABOTAGE=1 SEED={seed}", flush=True)
    proved = []
    for guard, done, is_red in sabotage.runs(seed, only):
        print(sabotage.line(guard, done, is_red), flush=True)
        proved.append(is_red)
    print(f"{sum(proved)} of {len(proved)} guards are missed when they are gone")
    return 0 if all(proved) else 1


if __name__ == "__main__":
    sys.exit(main())
