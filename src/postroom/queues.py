"""The two queues of the house, for screens that show both."""

from __future__ import annotations

from postroom.queue.table import QueueTable

EMAILS = QueueTable(
    name="email",
    table="public.email_queue",
    noun="e-mail",
    about=("to_email", "subject"),
    listed=("to_email", "subject", "email_type"),
    filters={"to": "to_email", "subject": "subject", "type": "email_type", "error": "last_error"},
    hidden=("html", "text"),
    done="sent",
    done_at="sent_at",
    retry="postroom.retry_dead_emails",
    discard="postroom.discard_dead_emails",
    limit_key="email:global",
    can_be_edited=True,
)

WEBHOOKS = QueueTable(
    name="webhook",
    table="public.webhook_retry_queue",
    noun="webhook event",
    about=("webhook_type", "webhook_event_id"),
    listed=("webhook_type", "webhook_event_id", "event_type"),
    filters={
        "source": "webhook_type",
        "type": "event_type",
        "event": "webhook_event_id",
        "error": "last_error",
    },
    hidden=("payload",),
    done="processed",
    done_at="processed_at",
    retry="postroom.retry_dead_webhooks",
    discard="postroom.discard_dead_webhooks",
    programs="""(
        SELECT array_agg(DISTINCT handlers.app)
        FROM postroom.handlers
        WHERE handlers.source = item.webhook_type
    )""",
    behind="""(
        SELECT jsonb_build_object('id', before.id, 'status', before.status)
        FROM public.webhook_retry_queue AS before
        WHERE before.webhook_type = item.webhook_type
            AND before.lane = item.lane
            AND before.status IN ('pending', 'processing', 'dead_letter')
            AND (before.status <> 'dead_letter' OR before.lane_holds)
            AND (before.lane_place, before.id) < (item.lane_place, item.id)
        ORDER BY before.lane_place, before.id
        LIMIT 1
    )""",
)

QUEUES = (EMAILS, WEBHOOKS)
