"""Schedulers that are broken at each point, in each way."""

from __future__ import annotations

from functools import partial

import pytest

from tests.failpoints.lanes import Bench, run_all
from tests.failpoints.schedulers import break_scheduler
from tests.failpoints.table import SCHEDULER, cases_of, one_a_point


@pytest.mark.timeout(300)
async def test_a_scheduler_may_be_broken_at_any_point(bench: Bench) -> None:
    """Each point with one of its faults: no minute has two runs, and the schedule goes on."""
    await run_all((case, partial(break_scheduler, bench, case)) for case in one_a_point(SCHEDULER))


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_the_whole_table_of_schedulers(bench: Bench) -> None:
    """All points times kill, exception, standstill and lost connections."""
    await run_all((case, partial(break_scheduler, bench, case)) for case in cases_of(SCHEDULER))
