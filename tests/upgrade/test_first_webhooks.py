"""The first webhooks after an upgrade: what a hand-made project has received is known."""

from __future__ import annotations

from uuid import uuid4

from postroom.database.connect import Database
from postroom.database.migrate import migrate
from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.request import Headers, WebhookRequest
from postroom.webhooks.store import WebhookStore
from tests.upgrade.conftest import Project


async def test_an_event_that_the_old_project_has_is_a_duplicate(project: Project) -> None:
    """For 30 days from when it came; an older one is new, and so is one without an id."""
    with project.connect() as db:
        db.execute(
            """
            INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload, created_at) VALUES
                ('paypal', 'known', '{}', now() - interval '29 days'),
                ('paypal', 'known', '{}', now()),
                ('paypal', 'forgotten', '{}', now() - interval '31 days'),
                ('paypal', repeat('x', 100000), '{}', now()),
                ('paypal', NULL, '{}', now())
            """
        )
        db.commit()
    await migrate(project.url)
    database = await Database.open(project.url)
    try:
        stored = await WebhookStore(database).keep([_event("known"), _event("forgotten"), _event("new")])
        assert len(stored) == 2
        seen = await database.fetch("SELECT event_id FROM postroom.seen_webhooks WHERE source = 'paypal'")
        assert {row["event_id"] for row in seen} == {"known", "forgotten", "new"}
    finally:
        await database.close()


def _event(event_id: str) -> IncomingEvent:
    request = WebhookRequest("POST", "http://localhost/webhooks/paypal", Headers(), b"{}")
    return IncomingEvent(uuid4(), "paypal", event_id, None, request, "/webhooks/paypal")
