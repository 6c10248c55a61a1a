-- outside a transaction

-- The claim: what is live, by priority, oldest due first. Rows that are older than postroom have
-- no due_at; what they wait for is next_retry_at.
CREATE INDEX CONCURRENTLY IF NOT EXISTS email_queue_due_idx
    ON public.email_queue (priority DESC, (COALESCE(due_at, next_retry_at, '-infinity'::timestamptz)))
    WHERE status IN ('pending', 'processing');

-- enqueue_email: the same key is the same e-mail.
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS email_queue_idempotency_key_idx
    ON public.email_queue (idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- The rows that wait for a limit, to plan them anew when it is changed.
CREATE INDEX CONCURRENTLY IF NOT EXISTS email_queue_limited_idx
    ON public.email_queue (waits_for)
    WHERE status IN ('pending', 'processing') AND waits_for LIKE 'limit:%';

-- dead-letters list, newest first.
CREATE INDEX CONCURRENTLY IF NOT EXISTS email_queue_dead_letter_idx
    ON public.email_queue (failed_at)
    WHERE status = 'dead_letter';

CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_retry_queue_due_idx
    ON public.webhook_retry_queue (priority DESC, (COALESCE(due_at, next_retry_at, '-infinity'::timestamptz)))
    WHERE status IN ('pending', 'processing');

CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_retry_queue_dead_letter_idx
    ON public.webhook_retry_queue (failed_at)
    WHERE status = 'dead_letter';
