-- What a hand-made project has received in the last 30 days is known: its provider may send it again, to the new door.
--
-- It only reads the queue: callers go on. Ids that are longer than any provider's are left out; they fit in no index.
INSERT INTO postroom.seen_webhooks (source, event_id, id, seen_at)
SELECT DISTINCT ON (webhook.webhook_type, webhook.webhook_event_id)
    webhook.webhook_type,
    webhook.webhook_event_id,
    webhook.id,
    LEAST(webhook.created_at, now())
FROM public.webhook_retry_queue AS webhook
WHERE length(webhook.webhook_event_id) BETWEEN 1 AND 255
    AND length(webhook.webhook_type) <= 255
    AND COALESCE(webhook.created_at, now()) > now() - interval '30 days'
ORDER BY webhook.webhook_type, webhook.webhook_event_id, webhook.created_at
ON CONFLICT (source, event_id) DO NOTHING;
