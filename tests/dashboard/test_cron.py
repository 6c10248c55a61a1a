"""A job that is run from the dashboard."""

from __future__ import annotations

import pytest

from postroom.dashboard import operations
from tests.dashboard.conftest import Visitor
from tests.support.waiting import until


async def test_a_job_is_run_now_and_the_page_says_what_it_did(visitor: Visitor) -> None:
    """It is in the history like any other, and in the audit trail."""
    answer = await visitor.submit("/cron", job="cleanup")
    assert answer.status_code == 200
    assert "cleanup: nothing was old enough" in answer.text
    assert "<code>job.run</code>" in await visitor.page("/audit")
    runs = await visitor.served.room.database.fetch("SELECT status FROM postroom.job_runs")
    assert [run["status"] for run in runs] == ["succeeded"]


async def test_a_persons_own_sql_is_run_now_with_the_rights_that_it_has_by_itself(visitor: Visitor) -> None:
    """Its history and the audit trail have it; what another user has scheduled is his to run."""
    database = visitor.served.room.database
    jobid = await database.fetchval("SELECT cron.schedule('mine', '@daily', 'SELECT 1')")
    bad = await database.fetchval("SELECT cron.schedule('bad', '@daily', 'SELECT 1 / 0')")
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL ROLE service_role")
        other = await connection.fetchval("SELECT cron.schedule('theirs', '@daily', 'SELECT 1')")
    page = await visitor.page("/cron")
    assert 'aria-label="Run mine now"' in page
    assert 'aria-label="Run theirs now"' not in page
    assert "as service_role" in page
    assert "mine: 1 row" in (await visitor.submit("/cron", job=str(jobid))).text
    assert "bad failed: DivisionByZeroError" in (await visitor.submit("/cron", job=str(bad))).text
    refused = await visitor.submit("/cron", job=str(other))
    assert "theirs runs with the rights of service_role, who has scheduled it" in refused.text
    runs = await database.fetch("SELECT jobid, status, minute FROM postroom.job_runs ORDER BY runid")
    assert [tuple(run) for run in runs] == [(jobid, "succeeded", None), (bad, "failed", None)]
    audit = await visitor.page("/audit")
    assert audit.count("<code>job.run</code>") == 2
    assert "mine, run " in audit


async def test_a_job_that_takes_long_goes_on_without_its_page(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page says so, and the history what became of it."""
    monkeypatch.setattr(operations, "WAITED_S", 0.0)
    assert "cleanup runs." in (await visitor.submit("/cron", job="cleanup")).text

    async def ended() -> bool:
        status = await visitor.served.room.database.fetchval("SELECT status FROM postroom.job_runs")
        return bool(status == "succeeded")

    await until(ended)


async def test_a_job_that_runs_already_or_is_none_is_said(visitor: Visitor) -> None:
    """Nothing is begun then."""
    await visitor.page("/cron")
    await visitor.submit("/cron", job="cleanup")
    await visitor.served.room.database.execute(
        "UPDATE postroom.job_runs SET status = 'running', end_time = NULL, "
        "leased_until = clock_timestamp() + interval '1 hour'"
    )
    assert "cleanup runs at the moment" in (await visitor.submit("/cron", job="cleanup")).text
    assert (await visitor.submit("/cron", job="nothing")).status_code == 404
