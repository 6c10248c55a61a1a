-- Columns of a hand-made table that may not be NULL, though the contract has them so: what the door or a worker writes would be
-- refused. As with a CHECK that refuses a status, the statement that would bring it back is kept. A column that postroom does
-- not know, without a default, cannot be helped here: it is named.
DO $$
DECLARE
    v_column record;
BEGIN
    FOR v_column IN
        SELECT
            att.attname AS name,
            att.attname = ANY ('{webhook_event_id,headers,next_retry_at,last_error,last_error_at,processed_at,failed_at}') AS is_known,
            format('ALTER TABLE public.webhook_retry_queue ALTER COLUMN %I SET NOT NULL', att.attname) AS definition
        FROM pg_catalog.pg_attribute AS att
        WHERE att.attrelid = 'public.webhook_retry_queue'::regclass
            AND att.attnum > 0
            AND NOT att.attisdropped
            AND att.attnotnull
            AND NOT EXISTS (
                SELECT 1
                FROM pg_catalog.pg_index AS index
                WHERE index.indrelid = att.attrelid AND index.indisprimary AND att.attnum = ANY (index.indkey)
            )
            AND (
                att.attname = ANY ('{webhook_event_id,headers,next_retry_at,last_error,last_error_at,processed_at,failed_at}')
                OR (
                    NOT att.atthasdef
                    AND att.attidentity = ''
                    AND att.attname <> ALL (
                        '{webhook_type,payload,status,attempts,max_attempts,error_count,metadata,created_at,updated_at,'
                        'leased_by,waits_for,dead_reason,event_type,lane,lane_place,attempt_log,due_at,priority,crashes,lease_no,handlers_done,handlers_stopped,lane_holds}'
                    )
                )
            )
        ORDER BY att.attnum
    LOOP
        IF v_column.is_known THEN
            INSERT INTO postroom.replaced_objects (kind, name, definition)
            VALUES ('constraint', format('NOT NULL of %I on public.webhook_retry_queue', v_column.name), v_column.definition);
            EXECUTE format('ALTER TABLE public.webhook_retry_queue ALTER COLUMN %I DROP NOT NULL', v_column.name);
            RAISE NOTICE 'NOT NULL of column % on public.webhook_retry_queue dropped, kept in postroom.replaced_objects', v_column.name;
        ELSE
            RAISE NOTICE 'column % of public.webhook_retry_queue may not be NULL and has no default: no event can be stored; ALTER TABLE public.webhook_retry_queue ALTER COLUMN % DROP NOT NULL, or give it a default',
                v_column.name, v_column.name;
        END IF;
    END LOOP;
END;
$$;
