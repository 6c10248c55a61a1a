"""The table that a run prints."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.rig import Run

EXAMPLES = 3


def table(run: Run) -> str:
    """All of a run on one page."""
    return "\n".join(_lines(run))


def _lines(run: Run) -> Iterator[str]:
    scenario, account = run.scenario, run.account
    yield f"seed {scenario.seed}: {scenario.seconds:g} s of faults, drained in {run.drain_s:.0f} s"
    yield f"{scenario.workers} workers, {scenario.doors} doors, lease {scenario.policy['lease']}"
    yield ""
    yield f"faults injected: {sum(run.faults.values()):,}"
    for kind, count in sorted(run.faults.items(), key=lambda one: -one[1]):
        yield _line(kind, f"{count:,}")
    for kind, why in run.missing.items():
        yield _line(kind, f"not here: {why}")
    yield ""
    yield "what went through"
    for name, count in account.facts.items():
        yield _line(name, f"{count:,}")
    yield ""
    yield "what must be nought"
    for name, found in account.findings.items():
        yield _line(name, f"{len(found):,}")
        yield from (f"      {one}" for one in found[:EXAMPLES])
    yield ""
    yield "green: every promise was kept" if account.green else "RED: a promise was broken"


def _line(name: str, value: str) -> str:
    return f"  {name:<58} {value:>8}"
