-- preflight: stop before anything is changed where the upgrade could not be finished.
--
-- The functions of the contract are replaced whatever they were. Where a view, a trigger or
-- another object hangs on one of them, replacing it would break that object behind its
-- owner's back, so it is named instead.
DO $$
DECLARE
    v_problem  text;
    v_table    text;
    v_has_rows boolean;
    v_default  text;
    v_word     text;
BEGIN
    SELECT string_agg(missing.what, '; ' ORDER BY missing.what)
    INTO v_problem
    FROM (
        SELECT format('%s may not create schema postroom: GRANT CREATE ON DATABASE %I TO %I',
            current_user, current_database(), current_user) AS what
        WHERE to_regnamespace('postroom') IS NULL AND NOT has_database_privilege(current_database(), 'CREATE')
        UNION ALL
        SELECT format('%s may not create in schema public: GRANT CREATE ON SCHEMA public TO %I', current_user, current_user)
        WHERE NOT has_schema_privilege('public', 'CREATE')
        UNION ALL
        SELECT format('%s is not the owner of table %s: that is %s',
            current_user, class.relname, class.relowner::pg_catalog.regrole)
        FROM pg_catalog.pg_class AS class
        WHERE class.relnamespace = 'public'::pg_catalog.regnamespace
            AND class.relname IN ('email_queue', 'webhook_retry_queue', 'rate_limit_counters')
            AND NOT pg_has_role(class.relowner, 'USAGE')
        UNION ALL
        SELECT format('%s is not the owner of function %s: that is %s',
            current_user, regexp_replace(proc.oid::pg_catalog.regprocedure::text, '^public\.', ''), proc.proowner::pg_catalog.regrole)
        FROM pg_catalog.pg_proc AS proc
        WHERE proc.pronamespace = 'public'::pg_catalog.regnamespace
            AND (
                proc.proname IN (
                    'calculate_email_retry_time', 'calculate_webhook_retry_time',
                    'get_email_queue_batch', 'mark_email_sent', 'mark_email_failed',
                    'get_webhook_retry_batch', 'mark_webhook_processed', 'mark_webhook_failed',
                    'increment_rate_limit', 'cleanup_rate_limit_counters', 'enqueue_email'
                )
                OR (proc.proname = 'enqueue_emails' AND pg_catalog.oidvectortypes(proc.proargtypes) = 'jsonb')
            )
            AND NOT pg_has_role(proc.proowner, 'USAGE')
    ) AS missing;

    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = v_problem,
            HINT = 'Migrate as the owner of the tables, or have it changed. Nothing was changed.';
    END IF;

    SELECT string_agg(
        format('%s depends on function %s', dependent.name, dependent.function_name),
        '; ' ORDER BY dependent.name, dependent.function_name
    )
    INTO v_problem
    FROM (
        SELECT DISTINCT
            replace(
                regexp_replace(
                    pg_catalog.pg_describe_object(depend.classid, depend.objid, depend.objsubid),
                    '^rule _RETURN on ', ''
                ),
                ' public.', ' '
            ) AS name,
            regexp_replace(proc.oid::pg_catalog.regprocedure::text, '^public\.', '') AS function_name
        FROM pg_catalog.pg_proc AS proc
        JOIN pg_catalog.pg_depend AS depend
            ON depend.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND depend.refobjid = proc.oid
        WHERE proc.pronamespace = 'public'::pg_catalog.regnamespace
            AND (
                proc.proname IN (
                    'calculate_email_retry_time', 'calculate_webhook_retry_time',
                    'get_email_queue_batch', 'mark_email_sent', 'mark_email_failed',
                    'get_webhook_retry_batch', 'mark_webhook_processed', 'mark_webhook_failed',
                    'increment_rate_limit', 'cleanup_rate_limit_counters', 'enqueue_email'
                )
                OR (proc.proname = 'enqueue_emails' AND pg_catalog.oidvectortypes(proc.proargtypes) = 'jsonb')
            )
            AND COALESCE(pg_catalog.obj_description(proc.oid, 'pg_proc'), '') NOT LIKE 'postroom:%'
    ) AS dependent;

    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = v_problem,
            HINT = 'Drop or change what is named, then migrate again. Nothing was changed.';
    END IF;

    SELECT string_agg(
        format('%I.%I is %s, not %s', wrong.table_name, wrong.column_name, wrong.found, wrong.wanted),
        '; ' ORDER BY wrong.table_name, wrong.column_name
    )
    INTO v_problem
    FROM (
        SELECT
            expected.table_name,
            listed.column_name,
            expected.wanted,
            COALESCE(pg_catalog.format_type(attribute.atttypid, NULL), 'missing') AS found
        FROM (VALUES
            ('email_queue', 'uuid', true, '{id}'::text[]),
            ('email_queue', 'text', true, '{to_email,subject,html}'),
            ('email_queue', 'text', false, '{from_email,reply_to,status,last_error,email_type,text,idempotency_key}'),
            ('email_queue', 'integer', false, '{attempts,max_attempts,error_count,priority}'),
            ('email_queue', 'jsonb', false, '{metadata,headers}'),
            ('email_queue', 'timestamp with time zone', false,
                '{next_retry_at,created_at,updated_at,sent_at,failed_at}'),
            ('webhook_retry_queue', 'uuid', true, '{id}'),
            ('webhook_retry_queue', 'text', true, '{webhook_type}'),
            ('webhook_retry_queue', 'text', false, '{webhook_event_id,status,last_error}'),
            ('webhook_retry_queue', 'integer', false, '{attempts,max_attempts,error_count,priority}'),
            ('webhook_retry_queue', 'jsonb', true, '{payload}'),
            ('webhook_retry_queue', 'jsonb', false, '{metadata,headers}'),
            ('webhook_retry_queue', 'timestamp with time zone', false,
                '{next_retry_at,last_error_at,created_at,updated_at,processed_at,failed_at}'),
            ('rate_limit_counters', 'text', true, '{key}'),
            ('rate_limit_counters', 'integer', false, '{count}'),
            ('rate_limit_counters', 'timestamp with time zone', false, '{window_start,window_end,updated_at}')
        ) AS expected (table_name, wanted, required, columns)
        CROSS JOIN LATERAL unnest(expected.columns) AS listed (column_name)
        LEFT JOIN pg_catalog.pg_attribute AS attribute
            ON attribute.attrelid = pg_catalog.to_regclass('public.' || expected.table_name)
            AND attribute.attname = listed.column_name
            AND NOT attribute.attisdropped
        WHERE pg_catalog.to_regclass('public.' || expected.table_name) IS NOT NULL
            AND (expected.required OR attribute.attnum IS NOT NULL)
    ) AS wrong
    WHERE wrong.found <> wrong.wanted;

    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'datatype_mismatch',
            MESSAGE = v_problem,
            HINT = 'postroom never retypes a column: ALTER TABLE ... ALTER COLUMN ... TYPE (varchar to text rewrites no row), '
                'then migrate again. Nothing was changed.';
    END IF;

    FOREACH v_table IN ARRAY ARRAY['email_queue', 'webhook_retry_queue'] LOOP
        SELECT pg_catalog.pg_get_expr(def.adbin, def.adrelid)
        INTO v_default
        FROM pg_catalog.pg_attribute AS attribute
        JOIN pg_catalog.pg_attrdef AS def ON def.adrelid = attribute.attrelid AND def.adnum = attribute.attnum
        WHERE attribute.attrelid = pg_catalog.to_regclass('public.' || v_table) AND attribute.attname = 'status';
        EXECUTE format('SELECT (%s)::pg_catalog.text', COALESCE(v_default, 'NULL')) INTO v_word;
        -- What is queued without a status would wait for ever.
        IF v_word <> 'pending' THEN
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_column_definition',
                MESSAGE = format('%I.status has the default %L, and what is to be sent is called %L', v_table, v_word, 'pending'),
                HINT = format(
                    'ALTER TABLE %I ALTER COLUMN status SET DEFAULT %L, and let your programs know that word; '
                    'then migrate again. Nothing was changed.', v_table, 'pending'
                );
        END IF;

        -- The column is added with 'pending': all that was ever sent would be due.
        CONTINUE WHEN pg_catalog.to_regclass('public.' || v_table) IS NULL OR EXISTS (
            SELECT 1
            FROM pg_catalog.pg_attribute AS attribute
            WHERE attribute.attrelid = pg_catalog.to_regclass('public.' || v_table)
                AND attribute.attname = 'status'
                AND NOT attribute.attisdropped
        );
        EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', v_table) INTO v_has_rows;
        IF v_has_rows THEN
            RAISE EXCEPTION USING
                ERRCODE = 'undefined_column',
                MESSAGE = format('%I has rows and no column status, so nobody can tell which of them are done', v_table),
                HINT = 'Add the column (text) and fill it: pending, sent or processed, failed; then migrate again. Nothing was changed.';
        END IF;
    END LOOP;
END;
$$;
