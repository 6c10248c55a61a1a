-- outside a transaction

-- Dead letters of one reason, newest first, and how many there are: a row enters it when it dies, not before. By an
-- expression: of the column PostgreSQL knows that nearly all rows have none, takes that for true of dead letters, too, and
-- reads those of all reasons to find the few that have none. Without the column beside it no count would be read from the
-- index alone.
CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_email_dead_reason
    ON public.email_queue ((COALESCE(dead_reason, 'none')), failed_at, id) INCLUDE (dead_reason)
    WHERE status = 'dead_letter';

CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_webhook_dead_reason
    ON public.webhook_retry_queue ((COALESCE(dead_reason, 'none')), failed_at, id) INCLUDE (dead_reason)
    WHERE status = 'dead_letter';
