"""Triggers of the application's own: they find what they name without a schema, whoever writes the row."""

from __future__ import annotations

import psycopg

TRIGGERS = """
    CREATE TABLE audit_log (id uuid, operation text);
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO audit_log VALUES (COALESCE(NEW.id, OLD.id), TG_OP);
        RETURN NULL;
    END;
    $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON email_queue
        FOR EACH ROW EXECUTE FUNCTION audit();
    CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON webhook_retry_queue
        FOR EACH ROW EXECUTE FUNCTION audit()
"""

WAYS = (
    "SELECT enqueue_email('ada@example.com', 's', 'h')",
    "SELECT mark_email_failed(id, 'x') FROM get_email_queue_batch()",
    "UPDATE email_queue SET next_retry_at = now()",
    "SELECT mark_email_sent(id) FROM get_email_queue_batch()",
    "INSERT INTO webhook_retry_queue (webhook_type, payload) VALUES ('stripe', '{}')",
    "SELECT mark_webhook_failed(id, 'x') FROM get_webhook_retry_batch()",
    "UPDATE webhook_retry_queue SET next_retry_at = now()",
    "SELECT mark_webhook_processed(id) FROM get_webhook_retry_batch()",
    "SELECT postroom.replay_webhooks(array_agg(id), NULL) FROM webhook_retry_queue",
)


def test_a_trigger_that_names_a_table_without_its_schema_works_in_every_write(database_url: str) -> None:
    """It would work for a plain statement; none of our functions sets its rows aside or fails."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(TRIGGERS)
        for way in WAYS:
            before = owner.execute("SELECT count(*) FROM audit_log").fetchone()
            owner.execute(way)
            assert owner.execute("SELECT count(*) FROM audit_log").fetchone() > before, way  # type: ignore[operator]
        assert owner.execute("SELECT error FROM postroom.refused_rows").fetchall() == []
        assert owner.execute("SELECT status FROM email_queue").fetchall() == [("sent",)]
