"""Servers that are broken at each point, in each way: an answer is a promise, whoever gave it."""

from __future__ import annotations

from functools import partial

import pytest

from tests.failpoints.doors import Door, break_server, queue_door, send_door, webhook_door
from tests.failpoints.lanes import Bench, run_all
from tests.failpoints.table import QUEUE_DOOR, SEND_DOOR, WEBHOOK_DOOR, Point, cases_of, one_a_point

DOORS: tuple[tuple[Door, dict[str, Point]], ...] = (
    (webhook_door, WEBHOOK_DOOR),
    (queue_door, QUEUE_DOOR),
    (send_door, SEND_DOOR),
)


@pytest.mark.timeout(300)
async def test_a_server_may_be_broken_at_any_point(bench: Bench) -> None:
    """
    Each point with one of its faults.

    What was answered 200 is stored, once; a mail that was to be attempted at once goes out at most once, and
    not at all where its caller was told that nothing was queued.
    """
    await run_all(
        (case, partial(break_server, bench, door, table[case.point], case))
        for door, table in DOORS
        for case in one_a_point(table)
    )


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_the_whole_table_of_doors(bench: Bench) -> None:
    """All points times kill, exception, hang and lost connections."""
    await run_all(
        (case, partial(break_server, bench, door, table[case.point], case))
        for door, table in DOORS
        for case in cases_of(table)
    )
