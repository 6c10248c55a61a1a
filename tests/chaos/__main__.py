"""`python -m tests.chaos`: a long run with its table, or one short run for each guard that is taken out."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from tests.chaos import sabotage
from tests.chaos.report import table
from tests.chaos.rig import run
from tests.chaos.scenario import Scenario


def main() -> int:
    """Exit code 0 where every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--quiet", action="store_true", help="only the table")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the logs")
    parser.add_argument(
        "--sabotage", nargs="?", const="", default=None, metavar="GUARD", help="take guards out"
    )
    options = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    if options.sabotage is not None:
        return sabotaged(seed, options.sabotage)
    print(f"make chaos SEED={seed}", flush=True)

    def tell(line: str) -> None:
        if not options.quiet:
            print(line, flush=True)

    done = run(Scenario(seed=seed, seconds=options.seconds, keep=options.keep), tell)
    print(f"\n{table(done)}")
    return 0 if done.account.green else 1


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
