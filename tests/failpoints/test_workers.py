"""Workers that are broken at each point, in each way: nothing is lost, and nothing costs more than it may."""

from __future__ import annotations

from collections import Counter
from functools import partial
from uuid import UUID

import pytest

from tests.failpoints.lanes import Bench, open_lane, run_all, until
from tests.failpoints.table import EMAIL, ENGINE, WEBHOOK, Case, cases_of, one_a_point
from tests.failpoints.workers import break_worker, end, is_settled, open_emails


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
    """Each point that mails have not, with one of its faults: each effect of each handler is there once."""
    own = {name: point for name, point in WEBHOOK.items() if name not in ENGINE}
    await run_all((case, partial(break_worker, bench, WEBHOOK, case)) for case in one_a_point(own))


@pytest.mark.parametrize("policy", ["retry", "park"])
async def test_three_workers_die_with_500_rows_in_their_buffers(bench: Bench, policy: str) -> None:
    """Each blames what it had begun, as its marks say, and none of the hundreds that it only held."""
    # A worker's first claim brings 16, which shows it how large they are; the second one brings hundreds.
    deaths = Case("smtp.content.after", "kill", turn=20)
    async with open_lane(bench, deaths) as lane, open_emails(lane, EMAIL[deaths.point]) as emails:
        await lane.db.execute("SELECT postroom.set_setting('email.on_uncertain', $1)", policy)
        await emails.queue(800)
        settings = {**emails.environment, "POSTROOM_CONCURRENCY": "125"}
        attempts: set[tuple[UUID, int]] = set()
        for _ in range(3):
            victim = lane.start(emails.arguments, settings, victim=True)
            await lane.struck(victim)
            await lane.quiet(gone=True)
            held = await lane.db.fetchval("SELECT count(*) FROM email_queue WHERE status = 'processing'")
            begun = await lane.begun("email_queue")
            assert held >= 400
            # Of the 20 that it sent, those whose end is not written down yet: 6 have been seen.
            assert 1 <= len(begun) <= 125
            attempts |= begun
            await lane.end_leases("email_queue")
        await lane.db.execute("UPDATE email_queue SET due_at = clock_timestamp() WHERE status = 'pending'")
        rescuer = lane.start(emails.arguments, settings, victim=False)
        await until(lambda: is_settled(lane, emails))
        await end(lane, rescuer)
        blamed = Counter(email_id for email_id, _ in attempts)
        for row in await lane.db.fetch("SELECT * FROM email_queue"):
            deaths_during = blamed[row["id"]]
            is_dead = deaths_during >= (1 if policy == "park" else 3)
            assert row["error_count"] == deaths_during, row
            assert row["status"] == ("dead_letter" if is_dead else "sent"), row


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
