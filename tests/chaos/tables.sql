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

-- Rows that were leased although a person had paused their queue a second ago; a claim that was under way may take as long.
-- A direct e-mail (docs/decisions/0025) is not the queue's.
CREATE TABLE chaos.leased_in_a_pause (
    queue text NOT NULL,
    id    uuid NOT NULL,
    at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION chaos.note_lease() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos.leased_in_a_pause (queue, id)
    SELECT pause.name, NEW.id
    FROM postroom.pauses AS pause
    WHERE pause.kind = 'queue' AND pause.name = TG_ARGV[0]
        AND pause.since < clock_timestamp() - interval '1 second' AND pause.until > clock_timestamp();
    RETURN NULL;
END;
$$;

CREATE TRIGGER note_lease AFTER UPDATE ON public.email_queue
    FOR EACH ROW
    WHEN (NEW.status = 'processing' AND NEW.lease_no > OLD.lease_no AND OLD.planned_under IS DISTINCT FROM 'direct')
    EXECUTE FUNCTION chaos.note_lease('email');
CREATE TRIGGER note_lease AFTER UPDATE ON public.webhook_retry_queue
    FOR EACH ROW WHEN (NEW.status = 'processing' AND NEW.lease_no > OLD.lease_no)
    EXECUTE FUNCTION chaos.note_lease('webhook');

CREATE TRIGGER note_outcome AFTER UPDATE ON public.email_queue
    FOR EACH ROW EXECUTE FUNCTION chaos.note_outcome();
CREATE TRIGGER note_outcome AFTER UPDATE ON public.webhook_retry_queue
    FOR EACH ROW EXECUTE FUNCTION chaos.note_outcome();
