-- Columns of a hand-made table that may not be NULL, though the contract has them so: what enqueue_email or a worker writes would be
-- refused. As with a CHECK that refuses a status, the statement that would bring it back is kept. A column that postroom does
-- not know, without a default, cannot be helped here: it is named.
DO $$
DECLARE
    v_column record;
BEGIN
    FOR v_column IN
        SELECT
            att.attname AS name,
            att.attname = ANY ('{from_email,reply_to,next_retry_at,last_error,email_type,sent_at,failed_at,text,headers,idempotency_key}') AS is_known,
            format('ALTER TABLE public.email_queue ALTER COLUMN %I SET NOT NULL', att.attname) AS definition
        FROM pg_catalog.pg_attribute AS att
        WHERE att.attrelid = 'public.email_queue'::regclass
            AND att.attnum > 0
            AND NOT att.attisdropped
            AND att.attnotnull
            AND NOT EXISTS (
                SELECT 1
                FROM pg_catalog.pg_index AS index
                WHERE index.indrelid = att.attrelid AND index.indisprimary AND att.attnum = ANY (index.indkey)
            )
            AND (
                att.attname = ANY ('{from_email,reply_to,next_retry_at,last_error,email_type,sent_at,failed_at,text,headers,idempotency_key}')
                OR (
                    NOT att.atthasdef
                    AND att.attidentity = ''
                    AND att.attname <> ALL (
                        '{to_email,subject,html,status,attempts,max_attempts,error_count,metadata,created_at,updated_at,'
                        'leased_by,waits_for,planned_under,dead_reason,attempt_log,wanted_at,due_at,priority,crashes,lease_no}'
                    )
                )
            )
        ORDER BY att.attnum
    LOOP
        IF v_column.is_known THEN
            INSERT INTO postroom.replaced_objects (kind, name, definition)
            VALUES ('constraint', format('NOT NULL of %I on public.email_queue', v_column.name), v_column.definition);
            EXECUTE format('ALTER TABLE public.email_queue ALTER COLUMN %I DROP NOT NULL', v_column.name);
            RAISE NOTICE 'NOT NULL of column % on public.email_queue dropped, kept in postroom.replaced_objects', v_column.name;
        ELSE
            RAISE NOTICE 'column % of public.email_queue may not be NULL and has no default: enqueue_email and HTTP cannot queue; ALTER TABLE public.email_queue ALTER COLUMN % DROP NOT NULL, or give it a default',
                v_column.name, v_column.name;
        END IF;
    END LOOP;
END;
$$;
