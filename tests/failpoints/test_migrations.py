"""Upgrades that are broken at each point, in each way."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from postroom.database.migrate import migrate
from tests.failpoints.lanes import Bench, run_all
from tests.failpoints.migrations import break_migration
from tests.failpoints.table import MIGRATION, cases_of, one_a_point
from tests.upgrade.conftest import handmade_project
from tests.upgrade.end_state import end_state

TURNS = (1, 2)
"""The first to reach a point and the second, which is the step that changes email_queue."""

ONCE = {"migrate.preflight.after", "migrate.record.after"}


@pytest.fixture
async def whole(bench: Bench) -> dict[str, object]:
    """The end state of an upgrade that nothing broke."""

    def upgraded() -> dict[str, object]:
        with handmade_project(bench.server) as project:
            asyncio.run(migrate(project.url))
            return end_state(project)

    return await asyncio.to_thread(upgraded)


@pytest.mark.timeout(300)
async def test_an_upgrade_may_be_broken_at_any_point(bench: Bench, whole: dict[str, object]) -> None:
    """Each point with one of its faults: run again, it ends as if nothing had been."""
    await run_all(
        (case, partial(break_migration, bench, whole, case))
        for case in (replace(case, turn=1 if case.point in ONCE else 2) for case in one_a_point(MIGRATION))
    )


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_the_whole_table_of_migrations(bench: Bench, whole: dict[str, object]) -> None:
    """All points times kill, exception, standstill and lost connections, at the first turn and later."""
    await run_all(
        (each, partial(break_migration, bench, whole, each))
        for case in cases_of(MIGRATION)
        for each in (replace(case, turn=turn) for turn in TURNS)
        if each.turn == 1 or case.point not in ONCE
    )
