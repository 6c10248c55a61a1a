-- outside a transaction

-- Dead letters of one reason, newest first, and how many there are: a row enters it when it dies, not before.
CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_email_dead_reason
    ON public.email_queue (dead_reason, failed_at, id)
    WHERE status = 'dead_letter';

CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_webhook_dead_reason
    ON public.webhook_retry_queue (dead_reason, failed_at, id)
    WHERE status = 'dead_letter';
