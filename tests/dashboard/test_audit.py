"""The audit trail, in the dashboard."""

from __future__ import annotations

from postroom.dashboard import audit
from tests.dashboard.conftest import Visitor
from tests.dashboard.test_pages import HOSTILE, _dead


async def test_what_is_done_in_the_dashboard_is_in_the_trail(visitor: Visitor) -> None:
    """With the key, the role, what it was about and the note, as text and nothing else."""
    letter = await _dead(visitor)
    await visitor.submit("/dead-letters/decide", what="discard", id=str(letter), note=HOSTILE)
    await visitor.submit("/settings", key="lease", value="50s")
    page = await visitor.page("/audit")
    assert "<code>dead_letter.discard</code>" in page
    assert f'1 e-mail: <a href="/dashboard/emails/{letter}">' in page
    assert "lease: 60s → 50s" in page
    assert "operator" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


async def test_the_trail_has_pages(visitor: Visitor) -> None:
    """By the entry's number: what is new moves nobody's page."""
    assert "Nobody has done anything by hand yet." in await visitor.page("/audit")
    await visitor.served.room.database.execute(
        """
        INSERT INTO postroom.audit (actor, role, action, about)
        SELECT 'ada', 'cli', 'job.run', jsonb_build_object('job', 'job-' || number)
        FROM generate_series(1, 60) AS number
        """
    )
    page = await visitor.page("/audit")
    assert page.count("<code>job.run</code>") == audit.PAGE_ROWS
    assert 'href="/dashboard/audit?after=11">Next page' in page
    page = await visitor.page("/audit?after=11")
    assert page.count("<code>job.run</code>") == 10
    assert "Next page" not in page
    for place in ("x", "-1", "9" * 30, "0" * 5_000, "²"):
        await visitor.page(f"/audit?after={place}", 400)
