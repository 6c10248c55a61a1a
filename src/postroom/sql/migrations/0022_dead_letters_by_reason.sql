-- outside a transaction

-- Dead letters of one reason, newest first, and how many there are: a row enters it when it dies, not before. By an
-- expression, since ANALYZE then knows how frequent each reason is among dead letters; of the column it knows that nearly
-- all rows have none.
CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_email_dead_reason
    ON public.email_queue ((COALESCE(dead_reason, 'none')), failed_at, id) INCLUDE (dead_reason)
    WHERE status = 'dead_letter';

CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_webhook_dead_reason
    ON public.webhook_retry_queue ((COALESCE(dead_reason, 'none')), failed_at, id) INCLUDE (dead_reason)
    WHERE status = 'dead_letter';
