"""A cleanup that is broken at each point, in each way: a matter of some batches, so all of it is here."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial

import pytest

from tests.failpoints.lanes import Bench, open_lane, run_all
from tests.failpoints.table import CLEANUP, Case, cases_of

OLD, LIVE = 4_000, 50
"""Enough for several batches."""


@pytest.mark.timeout(300)
async def test_a_cleanup_may_be_broken_at_any_point(bench: Bench) -> None:
    """Begun anew, it has forgotten what is old and nothing that lives."""
    cases = [replace(case, turn=2) for case in cases_of(CLEANUP)]
    await run_all((case, partial(break_cleanup, bench, case)) for case in cases)


async def break_cleanup(bench: Bench, case: Case) -> None:
    """Break one in its second batch; another goes through the tables, beside it where it stands still."""
    async with open_lane(bench, case) as lane:
        await lane.db.execute(
            """
            INSERT INTO email_queue (to_email, subject, html, status, sent_at)
            SELECT 'u@example.com', kind.name, repeat('<p>Hi</p>', 30), kind.status, kind.sent_at
            FROM (
                VALUES
                    ('old', 'sent', now() - interval '60 days', $1::integer),
                    ('live', 'sent', now(), $2::integer),
                    ('live', 'pending', NULL, $2)
            ) AS kind (name, status, sent_at, count)
            CROSS JOIN LATERAL generate_series(1, kind.count)
            """,
            OLD,
            LIVE,
        )
        victim = lane.start(("cleanup",), {}, victim=True)
        await lane.struck(victim)
        left = await lane.db.fetchval("SELECT count(*) FROM email_queue WHERE subject = 'old'")
        assert 0 < left < OLD, "it was not broken in the middle"
        again = lane.start(("cleanup",), {}, victim=False)
        assert await lane.ended(again) == 0, again.log
        victim.signal(signal.SIGCONT)
        code = {"kill": -9, "hang": 0}.get(str(case.fault), 1)
        assert await lane.ended(victim) == code, victim.log
        rows = await lane.db.fetch("SELECT subject, count(*) FROM email_queue GROUP BY subject")
        assert {row["subject"]: row["count"] for row in rows} == {"live": 2 * LIVE}

        lane.check_logs()
