"""
What each setting means: docs/reference/settings.md is made of it, and a test compares it with what there is.

What a value may be stands where it is checked: settings.py, and postroom.parse_setting for queue policy.
"""

from __future__ import annotations

PROCESS = {
    "database_url": "PostgreSQL 15 or newer. Unset: an embedded one, started and stopped by postroom.",
    "listen_url": "A direct address for LISTEN where the first is a pooler; without it, workers poll.",
    "data_dir": "Where the embedded database, its key and the mails of the maildir lie.",
    "transport": "Where e-mail leaves, in the order in which it is tried. Unset: Resend where its key is "
    "set, else a maildir in the data folder.",
    "sender": "The sender where an e-mail names none.",
    "service_key": "The bearer key of the HTTP API and the dashboard. Unset: a file in the data folder where "
    "the database is embedded, else what `postroom key new` made.",
    "jwt_secret": "Supabase's tokens of HS256: their `role` counts then.",
    "jwks_url": "Supabase's tokens of ES256 and RS256: where their keys are.",
    "stripe_webhook_secret": "What Stripe signs with, for source `stripe`. STRIPE_WEBHOOK_SECRET works too.",
    "stripe_api_key": "Lets the job `reconcile` ask Stripe what it has sent. STRIPE_API_KEY works too.",
    "stripe_api_url": "Another Stripe, for tests.",
    "resend_api_key": "The transport where none is set.",
    "public_url": "The address that providers and people call; sources that sign the URL need it.",
    "host": "Where to listen.",
    "port": "Where to listen.",
    "log_format": "Unset: text on a terminal, else json.",
    "log_level": "Lines below it are not written.",
    "concurrency": "Attempts in flight in one worker (unset: 100), and handlers at once (unset: 40).",
    "attempt_deadline_s": "How long one attempt may take in all.",
    "smtp.connect_timeout_s": "Until the connection stands.",
    "smtp.greeting_timeout_s": "For the server's greeting.",
    "smtp.ehlo_timeout_s": "For the answer to EHLO.",
    "smtp.mail_timeout_s": "For the answer to MAIL FROM.",
    "smtp.rcpt_timeout_s": "For the answer to RCPT TO.",
    "smtp.data_timeout_s": "For the answer to DATA.",
    "smtp.block_timeout_s": "For the server to take a block of the content.",
    "smtp.final_timeout_s": "For the answer to the final dot.",
    "smtp.idle_timeout_s": "How long a connection is kept that has nothing to send.",
    "webhooks": "The sources, their secrets and handlers: tables in postroom.toml.",
    "alerts": "Who is told what: a table in postroom.toml.",
}
"""By field of Settings; those of the table [smtp] with its name."""

POLICY = {
    "email.limit.global": "E-mails that may leave in any window of this length.",
    "email.limit.recipient": "The same, to one address.",
    "email.backoff": "Delays after the first, second, … failed attempt of an e-mail; then the last again.",
    "webhook.backoff": "The same for an event.",
    "email.on_uncertain": "What becomes of an e-mail that may have gone out: tried again, or a dead letter.",
    "lease": "How long a worker holds a row before another may take it.",
    "retention.sent": "Sent e-mails older than this are deleted.",
    "retention.processed": "Processed events older than this are deleted.",
    "retention.dead_letter": "Dead letters older than this are deleted.",
    "retention.failed": "Dead letters that a person discarded, longer ago than this, are deleted.",
    "retention.cron": "Runs of jobs older than this are deleted.",
    "retention.body": "Html, attachments and payload of what was done longer ago are emptied; the row stays.",
    "retention.stats": "Figures by minute older than this are deleted.",
    "retention.audit": "Entries of the audit trail older than this are deleted.",
    "cron.process-email-queue": "When the job runs that delivers what is due where no worker does.",
    "cron.process-webhook-retries": "The same for events.",
    "cron.cleanup": "When the retention is applied.",
    "cron.reconcile": "When Stripe is asked for events that never came.",
    "cron.alerts": "When the alert rules look.",
}
"""By key of postroom.default_settings(); further limits by domain, sender, type and transport have none."""
