-- outside a transaction

-- Lists of what has ended, newest first. A row enters one of them once, when it ends; no update of a live row touches them.
CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_email_sent
    ON public.email_queue (sent_at)
    WHERE status = 'sent';

CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_email_failed
    ON public.email_queue (failed_at)
    WHERE status = 'failed';

CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_webhook_processed
    ON public.webhook_retry_queue (processed_at)
    WHERE status = 'processed';

CREATE INDEX CONCURRENTLY IF NOT EXISTS postroom_webhook_failed
    ON public.webhook_retry_queue (failed_at)
    WHERE status = 'failed';
