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
        format('%s is %s, not a plain table', class.relname, CASE class.relkind
            WHEN 'p' THEN 'a partitioned table' WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view'
            WHEN 'f' THEN 'a foreign table' ELSE 'something else'
        END),
        '; ' ORDER BY class.relname
    )
    INTO v_problem
    FROM pg_catalog.pg_class AS class
    WHERE class.oid IN (
            pg_catalog.to_regclass('public.email_queue'), pg_catalog.to_regclass('public.webhook_retry_queue'),
            pg_catalog.to_regclass('public.rate_limit_counters')
        )
        AND class.relkind <> 'r';

    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'wrong_object_type',
            MESSAGE = v_problem,
            HINT = 'Rename it, and postroom makes a table of its own; then migrate again. Nothing was changed.';
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
            expected.wanted || CASE WHEN expected.has_value THEN ' NOT NULL' ELSE '' END AS wanted,
            CASE
                WHEN attribute.attnum IS NULL THEN 'missing'
                WHEN attribute.attgenerated <> '' THEN 'generated'
                ELSE pg_catalog.format_type(attribute.atttypid, NULL)
                    || CASE WHEN expected.has_value AND attribute.attnotnull THEN ' NOT NULL' ELSE '' END
            END AS found
        FROM (VALUES
            ('email_queue', 'uuid', true, false, '{id}'::text[]),
            ('email_queue', 'text', true, false, '{to_email,subject,html}'),
            ('email_queue', 'text', false, false,
                '{from_email,reply_to,status,last_error,email_type,text,idempotency_key,waits_for,planned_under,dead_reason}'),
            ('email_queue', 'integer', false, false, '{attempts,max_attempts,error_count}'),
            ('email_queue', 'integer', false, true, '{priority,crashes}'),
            ('email_queue', 'bigint', false, true, '{lease_no}'),
            ('email_queue', 'uuid', false, false, '{leased_by}'),
            ('email_queue', 'jsonb', false, false, '{metadata,headers,attempt_log}'),
            ('email_queue', 'timestamp with time zone', false, false,
                '{next_retry_at,created_at,updated_at,sent_at,failed_at,due_at,wanted_at}'),
            ('webhook_retry_queue', 'uuid', true, false, '{id}'),
            ('webhook_retry_queue', 'text', true, false, '{webhook_type}'),
            ('webhook_retry_queue', 'text', false, false,
                '{webhook_event_id,status,last_error,waits_for,dead_reason,event_type,lane}'),
            ('webhook_retry_queue', 'integer', false, false, '{attempts,max_attempts,error_count}'),
            ('webhook_retry_queue', 'integer', false, true, '{priority,crashes}'),
            ('webhook_retry_queue', 'bigint', false, true, '{lease_no}'),
            ('webhook_retry_queue', 'uuid', false, false, '{leased_by}'),
            ('webhook_retry_queue', 'numeric', false, false, '{lane_place}'),
            ('webhook_retry_queue', 'boolean', false, true, '{lane_holds}'),
            ('webhook_retry_queue', 'text[]', false, true, '{handlers_done,handlers_stopped}'),
            ('webhook_retry_queue', 'jsonb', true, false, '{payload}'),
            ('webhook_retry_queue', 'jsonb', false, false, '{metadata,headers,attempt_log}'),
            ('webhook_retry_queue', 'timestamp with time zone', false, false,
                '{next_retry_at,last_error_at,created_at,updated_at,processed_at,failed_at,due_at}'),
            ('rate_limit_counters', 'text', true, false, '{key}'),
            ('rate_limit_counters', 'integer', false, false, '{count}'),
            ('rate_limit_counters', 'timestamp with time zone', false, false, '{window_start,window_end,updated_at}')
        ) AS expected (table_name, wanted, required, has_value, columns)
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
            HINT = CASE WHEN v_problem LIKE '% is missing,%'
                THEN 'Rename your column or your table; then migrate again. Nothing was changed.'
                WHEN v_problem LIKE '% NOT NULL' THEN 'Rename it; or where it means the same, fill it, and ALTER TABLE ... '
                    'ALTER COLUMN ... SET DEFAULT 0, ALTER COLUMN ... SET NOT NULL; then migrate again. Nothing was changed.'
                ELSE 'postroom never retypes a column: ALTER TABLE ... ALTER COLUMN ... TYPE (varchar to text rewrites no row), '
                    'or rename it; then migrate again. Nothing was changed.'
            END;
    END IF;

    SELECT string_agg(class.relname::text, ', ' ORDER BY class.relname)
    INTO v_problem
    FROM pg_catalog.pg_class AS class
    WHERE class.oid IN (
            pg_catalog.to_regclass('public.email_queue'), pg_catalog.to_regclass('public.webhook_retry_queue')
        )
        AND class.relpersistence = 'u';

    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_table_definition',
            MESSAGE = format('%s is unlogged: a crash of the server would empty it', v_problem),
            HINT = 'ALTER TABLE ... SET LOGGED; then migrate again. Nothing was changed.';
    END IF;

    -- It says when a row may be taken; give_back() takes ours away. One that is there before us means something else.
    SELECT string_agg(class.relname::text, ', ' ORDER BY class.relname)
    INTO v_problem
    FROM pg_catalog.pg_attribute AS attribute
    JOIN pg_catalog.pg_class AS class ON class.oid = attribute.attrelid
    WHERE attribute.attrelid IN (
            pg_catalog.to_regclass('public.email_queue'), pg_catalog.to_regclass('public.webhook_retry_queue')
        )
        AND attribute.attname = 'due_at'
        AND NOT attribute.attisdropped
        AND pg_catalog.to_regnamespace('postroom') IS NULL;

    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_column',
            MESSAGE = format('%s has a column due_at of its own, a name that postroom needs', v_problem),
            HINT = 'ALTER TABLE ... RENAME COLUMN due_at TO ...; then migrate again. Nothing was changed.';
    END IF;

    -- One row a key, found by it: whoever counts in windows of their own has several.
    IF pg_catalog.to_regclass('public.rate_limit_counters') IS NOT NULL AND NOT EXISTS (
        SELECT 1
        FROM pg_catalog.pg_index AS index
        JOIN pg_catalog.pg_attribute AS attribute
            ON attribute.attrelid = index.indrelid AND attribute.attname = 'key'
        WHERE index.indrelid = pg_catalog.to_regclass('public.rate_limit_counters')
            AND index.indisunique
            AND index.indisvalid
            AND index.indpred IS NULL
            AND index.indnkeyatts = 1
            AND index.indkey[0] = attribute.attnum
    ) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_table_definition',
            MESSAGE = 'rate_limit_counters.key is not unique by itself, and postroom keeps one row a key',
            HINT = 'ALTER TABLE rate_limit_counters RENAME TO rate_limit_counters_before (it holds the counts of the last '
                'minutes); then migrate again. Nothing was changed.';
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
