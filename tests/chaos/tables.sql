-- The rig's own part of the database: effects, and triggers of the application's kind that note what must not happen.
CREATE SCHEMA chaos;

CREATE TABLE chaos.effects (
    handler  text NOT NULL,
    event_id text NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION chaos.on_event(payload jsonb, event_id text) RETURNS void LANGUAGE sql AS
$$ INSERT INTO chaos.effects (handler, event_id) VALUES ('sql', event_id) $$;

-- Outcomes that were written by somebody who did not hold the lease, or over an end.
CREATE TABLE chaos.overwritten (
    queue  text NOT NULL,
    id     uuid NOT NULL,
    what   text NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION chaos.note_outcome() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_entry jsonb := NEW.attempt_log -> -1;
BEGIN
    IF OLD.status IN ('sent', 'processed') AND NEW.status IS DISTINCT FROM OLD.status THEN
        INSERT INTO chaos.overwritten (queue, id, what)
        VALUES (TG_TABLE_NAME, NEW.id, format('%s became %s', OLD.status, NEW.status));
    END IF;
    IF NEW.attempt_log IS DISTINCT FROM OLD.attempt_log AND OLD.leased_by IS NOT NULL
        AND v_entry ->> 'worker' IS DISTINCT FROM OLD.leased_by::text
    THEN
        INSERT INTO chaos.overwritten (queue, id, what)
        VALUES (TG_TABLE_NAME, NEW.id, format('%s was leased to another worker', v_entry ->> 'outcome'));
    END IF;
    RETURN NULL;
END;
$$;

CREATE TRIGGER note_outcome AFTER UPDATE ON public.email_queue
    FOR EACH ROW EXECUTE FUNCTION chaos.note_outcome();
CREATE TRIGGER note_outcome AFTER UPDATE ON public.webhook_retry_queue
    FOR EACH ROW EXECUTE FUNCTION chaos.note_outcome();
