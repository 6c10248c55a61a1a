-- What a hand-made table refuses of what postroom writes: a CHECK that a mail, an event or its attempts as they are here
-- would break, such as max_attempts <= 5; and a NOT NULL on a column that has one of our names. Dropped, and kept.
DO $$
DECLARE
    v_found   record;
    v_refuses boolean;
BEGIN
    FOR v_found IN
        SELECT
            con.conname AS name,
            pg_catalog.pg_get_expr(con.conbin, con.conrelid) AS expression,
            format('ALTER TABLE public.webhook_retry_queue ADD CONSTRAINT %I %s', con.conname, pg_catalog.pg_get_constraintdef(con.oid))
                AS definition
        FROM pg_catalog.pg_constraint AS con
        WHERE con.contype = 'c'
            AND con.conrelid = 'public.webhook_retry_queue'::regclass
            -- What it may say is the project's to decide, as one by which no other source is stored.
            AND NOT EXISTS (
                SELECT 1
                FROM pg_catalog.pg_attribute AS att
                WHERE att.attrelid = con.conrelid
                    AND att.attnum = ANY (con.conkey)
                    AND att.attname = ANY ('{webhook_type,payload,metadata}')
            )
        ORDER BY con.conname
    LOOP
        BEGIN
            EXECUTE format(
                'SELECT bool_or(NOT (%s)) FROM jsonb_populate_recordset(NULL::public.webhook_retry_queue, $1)', v_found.expression
            )
            INTO v_refuses
            USING (
                SELECT jsonb_agg(common.columns || written.columns)
                FROM (SELECT jsonb_build_object(
                    'id', gen_random_uuid(), 'webhook_type', 'stripe', 'payload', '{}'::jsonb,
                    'created_at', now(), 'updated_at', now(), 'metadata', '{}'::jsonb
                ) AS columns) AS common
                CROSS JOIN (VALUES
                    ('{"status": "pending", "attempts": 0, "max_attempts": 6, "error_count": 0}'::jsonb),
                    ('{"status": "pending", "attempts": 5, "max_attempts": 6, "error_count": 5, "last_error": "x"}'),
                    (jsonb_build_object(
                        'status', 'dead_letter', 'attempts', 6, 'max_attempts', 6, 'error_count', 6, 'last_error', 'x',
                        'failed_at', now()
                    )),
                    (jsonb_build_object('status', 'processed', 'attempts', 1, 'max_attempts', 1, 'error_count', 0, 'processed_at', now()))
                ) AS written (columns)
            );
        EXCEPTION WHEN OTHERS THEN
            v_refuses := false; -- it asks for what a row in the air has not
        END;
        IF v_refuses THEN
            INSERT INTO postroom.replaced_objects (kind, name, definition)
            VALUES ('constraint', format('%I on public.webhook_retry_queue', v_found.name), v_found.definition);
            EXECUTE format('ALTER TABLE public.webhook_retry_queue DROP CONSTRAINT %I', v_found.name);
            RAISE NOTICE 'constraint % on public.webhook_retry_queue refuses what postroom writes: dropped, kept in postroom.replaced_objects',
                v_found.name;
        END IF;
    END LOOP;

    FOR v_found IN
        SELECT
            att.attname AS name,
            format('ALTER TABLE public.webhook_retry_queue ALTER COLUMN %I SET NOT NULL', att.attname) AS definition
        FROM pg_catalog.pg_attribute AS att
        WHERE att.attrelid = 'public.webhook_retry_queue'::regclass
            AND NOT att.attisdropped
            AND att.attnotnull
            AND att.attname = ANY ('{leased_by,waits_for,dead_reason,event_type,lane,lane_place,attempt_log,due_at}')
        ORDER BY att.attnum
    LOOP
        INSERT INTO postroom.replaced_objects (kind, name, definition)
        VALUES ('constraint', format('NOT NULL of %I on public.webhook_retry_queue', v_found.name), v_found.definition);
        EXECUTE format('ALTER TABLE public.webhook_retry_queue ALTER COLUMN %I DROP NOT NULL', v_found.name);
        RAISE NOTICE 'NOT NULL of column % on public.webhook_retry_queue dropped, kept in postroom.replaced_objects', v_found.name;
    END LOOP;
END;
$$;
