-- outside a transaction

-- The claim: what is live, by priority, oldest due first. Rows that are older than postroom have
-- no due_at; what they wait for is next_retry_at.
CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_email_due
    ON public.email_queue (priority DESC, (COALESCE(due_at, next_retry_at, '-infinity'::timestamptz)))
    WHERE status IN ('pending', 'processing');

-- enqueue_email: the same key is the same e-mail.
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS postroom_email_idempotency_key
    ON public.email_queue (idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- The rows that wait for a recipient's limit: those of one recipient, to count them, and those that were
-- planned under another limit, to plan them anew.
CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_email_planned
    ON public.email_queue (planned_under, waits_for)
    WHERE status = 'pending' AND planned_under IS NOT NULL;

-- dead-letters list, newest first.
CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_email_dead_letter
    ON public.email_queue (failed_at)
    WHERE status = 'dead_letter';

CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_webhook_due
    ON public.webhook_retry_queue (priority DESC, (COALESCE(due_at, next_retry_at, '-infinity'::timestamptz)))
    WHERE status IN ('pending', 'processing');

CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_webhook_dead_letter
    ON public.webhook_retry_queue (failed_at)
    WHERE status = 'dead_letter';

-- The claim of an event in a lane: whether one stands before it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_webhook_lane
    ON public.webhook_retry_queue (webhook_type, lane, lane_place, id)
    WHERE lane IS NOT NULL AND status IN ('pending', 'processing', 'dead_letter');
