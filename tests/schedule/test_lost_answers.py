"""A begin_run that has committed and whose answer was lost: who asks again goes on with the run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest

from postroom.database.audit import Actor, read_audit
from postroom.database.connect import Database
from postroom.errors import DatabaseUnavailable
from postroom.schedule.by_hand import run_by_hand
from postroom.schedule.store import CronStore
from tests.schedule.conftest import NOON, Clockwork
from tests.support.postgres import PostgresServer
from tests.support.proxy import CUT_AFTER, CUT_BEFORE, Fault, Proxy, running_proxy

EMAILS = "process-email-queue"
MINUTE = NOON + timedelta(minutes=1)
ONE_RUN = [(EMAILS, "succeeded", MINUTE)]


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[Proxy]:
    """A line to the server that a test can cut."""
    with running_proxy(postgres_server.port) as proxy:
        yield proxy


@pytest.fixture
async def database(database_url: str, proxy: Proxy) -> AsyncIterator[Database]:
    """A fresh migrated database behind that line."""
    database = Database(proxy.url_of(database_url))
    yield database
    await database.close()


@pytest.mark.parametrize("fault", [CUT_AFTER, CUT_BEFORE], ids=["answer", "question"])
@pytest.mark.parametrize("away_s", [1, 30])
async def test_the_minute_whose_begin_was_lost_has_its_run(
    clockwork: Clockwork, proxy: Proxy, fault: Fault, away_s: float
) -> None:
    """Once, whether the question or the answer was lost, also after more than a lease."""
    scheduler = clockwork.scheduler()
    await clockwork.tick(scheduler)
    lost = proxy.on("begin_run", fault)
    with pytest.raises(DatabaseUnavailable):
        await clockwork.tick(scheduler, minutes=1)
    assert (lost.fired, clockwork.ran) == (1, [])
    await clockwork.tick(scheduler, seconds=away_s)
    await scheduler.settled()
    assert await clockwork.history() == ONE_RUN
    assert [name for name, _ in clockwork.ran] == [EMAILS]


async def test_two_lost_answers_for_one_run_cost_nothing_either(clockwork: Clockwork, proxy: Proxy) -> None:
    """It asks until it knows."""
    scheduler = clockwork.scheduler()
    await clockwork.tick(scheduler)
    lost = proxy.on("begin_run", CUT_AFTER, times=2)
    for later_s in (60, 1, 1):
        with suppress(DatabaseUnavailable):
            await clockwork.tick(scheduler, seconds=later_s)
    await scheduler.settled()
    assert lost.fired == 2
    assert await clockwork.history() == ONE_RUN


async def test_who_has_lost_the_lead_meanwhile_goes_on_with_his_run(
    clockwork: Clockwork, proxy: Proxy, database: Database
) -> None:
    """The run is his; the new leader neither begins it again nor gives it up."""
    first, second = clockwork.scheduler(), clockwork.scheduler()
    await clockwork.tick(first)
    proxy.on("begin_run", CUT_AFTER)
    with pytest.raises(DatabaseUnavailable):
        await clockwork.tick(first, minutes=1)
    await database.execute("UPDATE postroom.cron_leader SET leads_until = NULL")
    assert await clockwork.tick(second, seconds=1)
    assert not await clockwork.tick(first)
    await first.settled()
    assert await clockwork.history() == ONE_RUN
    assert len(clockwork.ran) == 1


async def test_a_run_that_another_has_given_up_is_not_taken_up_again(
    clockwork: Clockwork, proxy: Proxy
) -> None:
    """After a lease in which nobody heard of him his minute is failed, and stays so."""
    first, second = clockwork.scheduler(), clockwork.scheduler()
    await clockwork.tick(first)
    proxy.on("begin_run", CUT_AFTER)
    with pytest.raises(DatabaseUnavailable):
        await clockwork.tick(first, minutes=1)
    await clockwork.tick(second, seconds=7)
    await clockwork.tick(first)
    await first.settled()
    assert await clockwork.history() == [(EMAILS, "failed", MINUTE)]
    assert clockwork.ran == []


@pytest.mark.parametrize("statement", ["begin_run", "COMMIT"])
async def test_a_run_by_hand_survives_a_lost_answer(
    clockwork: Clockwork, proxy: Proxy, statement: str
) -> None:
    """The person who asked gets what came of it; it is one run, and once in the audit trail."""

    async def work() -> str:
        return "done by hand"

    store = CronStore(clockwork.database)
    job = await store.job(EMAILS)
    assert job is not None
    lost = proxy.on(statement, CUT_AFTER)
    assert await run_by_hand(store, job, work, by=Actor("ada@house", "cli")) == "done by hand"
    assert lost.fired == 1
    assert await clockwork.history() == [(EMAILS, "succeeded", None)]
    assert [entry.action for entry in await read_audit(clockwork.database, limit=9)] == ["job.run"]
