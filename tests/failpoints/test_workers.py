"""Workers that are broken at each point, in each way: nothing is lost, and nothing costs more than it may."""

from __future__ import annotations

from functools import partial

import pytest

from tests.failpoints.lanes import Bench, run_all
from tests.failpoints.table import EMAIL, WEBHOOK, cases_of, one_a_point
from tests.failpoints.workers import break_worker


@pytest.mark.timeout(300)
async def test_a_worker_of_mails_may_be_broken_at_any_point(bench: Bench) -> None:
    """
    Each point with one of its faults.

    Each mail goes out; twice only where the server had taken it and its answer or its settle was lost, and
    then as the same bytes; what had not begun counts no attempt, what had begun counts one that failed.
    """
    await run_all((case, partial(break_worker, bench, EMAIL, case)) for case in one_a_point(EMAIL))


@pytest.mark.timeout(300)
async def test_a_worker_of_events_may_be_broken_at_any_point(bench: Bench) -> None:
    """Each point with one of its faults: each effect of each handler is there once."""
    await run_all((case, partial(break_worker, bench, WEBHOOK, case)) for case in one_a_point(WEBHOOK))


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_the_whole_table_of_mails(bench: Bench) -> None:
    """All points times kill, exception, hang and lost connections."""
    await run_all((case, partial(break_worker, bench, EMAIL, case)) for case in cases_of(EMAIL))


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_the_whole_table_of_events(bench: Bench) -> None:
    """All points times kill, exception, hang and lost connections."""
    await run_all((case, partial(break_worker, bench, WEBHOOK, case)) for case in cases_of(WEBHOOK))
