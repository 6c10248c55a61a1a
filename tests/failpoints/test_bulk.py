"""An action on a whole group of dead letters that is broken at each point, in each way."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial
from uuid import UUID

import pytest

from postroom.database.audit import Actor
from postroom.database.connect import Database
from postroom.queue import bulk
from tests.failpoints.lanes import Bench, Lane, open_lane, run_all
from tests.failpoints.table import BULK, Case, cases_of

LETTERS, NEWS = 3_500, 40
"""Four steps; and dead letters of another reason, which nobody asked about."""

GRACE = Actor("grace", "operator")


@pytest.mark.timeout(300)
async def test_a_bulk_action_may_be_broken_at_any_point(bench: Bench) -> None:
    """It goes on where it was: each letter is retried once, no other is touched, the counts are true."""
    cases = [replace(case, turn=2 if "step" in case.point else 1) for case in cases_of(BULK)]
    await run_all((case, partial(break_action, bench, case)) for case in cases)


async def break_action(bench: Bench, case: Case) -> None:
    """Break the command line's in its second step; the dashboard goes on with it, as by its button."""
    async with open_lane(bench, case) as lane:
        await lane.db.execute(
            """
            INSERT INTO email_queue (to_email, subject, html, status, dead_reason, attempts, failed_at)
            SELECT 'u@example.com', kind.reason, 'h', 'dead_letter', kind.reason, 6, now()
            FROM (VALUES ('exhausted', $1::integer), ('poison', $2::integer)) AS kind (reason, count)
            CROSS JOIN LATERAL generate_series(1, kind.count)
            """,
            LETTERS,
            NEWS,
        )
        command = ("dead-letters", "retry", "--all", "--reason", "exhausted")
        victim = lane.start(command, {}, victim=True)
        await lane.struck(victim)
        if case.fault == "hang" and case.point == "bulk.step.inside":
            victim.signal(signal.SIGCONT)  # its transaction is open: nobody else can go on before it ends
        if case.fault != "hang" or case.point == "bulk.step.inside":
            code = {"kill": -9, "hang": 0}.get(str(case.fault), 1)
            assert await lane.ended(victim) == code, victim.log
        begun = await _action(lane)
        if begun is None:
            assert await _decided(lane) == {}
            assert await lane.db.fetchval("SELECT count(*) FROM postroom.audit") == 0
            again = lane.start(command, {}, victim=False)
            assert await lane.ended(again) == 0, again.log
        elif victim.code != 0:
            await _go_on(lane, begun)
        victim.signal(signal.SIGCONT)
        assert await lane.ended(victim) in (0, 1, -9), victim.log

        assert await _decided(lane) == {("pending", 1): LETTERS}
        actions = await lane.db.fetch("SELECT done, total, ended_at, refused FROM postroom.bulk_actions")
        counted = [row["done"] for row in actions if row["ended_at"] is not None]
        assert sum(counted) == LETTERS, actions
        poison = "SELECT count(*) FROM email_queue WHERE dead_reason = 'poison' AND status = 'dead_letter'"
        assert await lane.db.fetchval(poison) == NEWS
        trail = await lane.db.fetch(
            "SELECT about ->> 'state' AS state, about ->> 'count' AS count FROM postroom.audit"
        )
        ended = [int(row["count"]) for row in trail if row["state"] == "done"]
        assert sum(ended) == LETTERS, trail
        lane.check_logs()


async def _go_on(lane: Lane, action_id: UUID) -> None:
    """As after half a minute, when the lease of who died is over."""
    await lane.quiet(gone=False)
    done = await lane.db.fetchval(
        "UPDATE postroom.bulk_actions SET leased_until = clock_timestamp() RETURNING done"
    )
    assert await _decided(lane) == ({("pending", 1): done} if done else {}), (
        "its count is not what it has done"
    )
    database = await Database.open(lane.url)
    try:
        await bulk.run(database, action_id, GRACE)
    finally:
        await database.close()


async def _action(lane: Lane) -> UUID | None:
    found: UUID | None = await lane.db.fetchval("SELECT id FROM postroom.bulk_actions")
    return found


async def _decided(lane: Lane) -> dict[tuple[str, int], int]:
    """Of the letters that were asked about: how many were retried how often, by their own history."""
    rows = await lane.db.fetch(
        """
        SELECT status, jsonb_array_length(attempt_log) AS entries, count(*) AS count
        FROM email_queue
        WHERE subject = 'exhausted' AND jsonb_array_length(attempt_log) > 0
        GROUP BY status, entries
        """
    )
    return {(row["status"], row["entries"]): row["count"] for row in rows}
