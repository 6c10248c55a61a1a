"""The table that a run prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.chaos.account import MOST, MOST_LATE
from tests.chaos.rig import Run

EXAMPLES = 3
TOLD = ("lease", "email.limit.global", "email.limit.recipient", "email.on_uncertain")


def table(*runs: Run) -> str:
    """One page for all of them."""
    return "\n".join(_lines(runs))


def _lines(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        scenario = run.scenario
        policy = ", ".join(f"{key} = {value}" for key, value in scenario.policy.items() if key in TOLD)
        yield f"seed {scenario.seed}: {scenario.seconds:g} s of faults, drained in {run.drain_s:.0f} s"
        yield f"  {scenario.workers} workers, {scenario.doors} doors; {policy}"
    faults = sum((run.faults for run in runs), Counter[str]())
    yield ""
    yield f"faults injected: {faults.total():,}"
    for kind, count in faults.most_common():
        yield _line(kind, f"{count:,}")
    for kind, why in {kind: why for run in runs for kind, why in run.missing.items()}.items():
        yield _line(kind, f"not here: {why}")
    yield ""
    yield "what went through"
    for name in _names(run.account.facts for run in runs):
        counts = [run.account.facts.get(name, 0) for run in runs]
        yield _line(name, f"{max(counts) if name.startswith((MOST, MOST_LATE)) else sum(counts):,}")
    yield ""
    yield "what must be nought"
    for name in _names(run.account.findings for run in runs):
        found = [one for run in runs for one in run.account.findings.get(name, ())]
        yield _line(name, f"{len(found):,}")
        yield from (f"      {one}" for one in found[:EXAMPLES])
    yield ""
    is_green = all(run.account.green for run in runs)
    yield "green: every promise was kept" if is_green else "RED: a promise was broken"


def _names(of_each: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for one in of_each for name in one))


def _line(name: str, value: str) -> str:
    return f"  {name:<58} {value:>8}"
