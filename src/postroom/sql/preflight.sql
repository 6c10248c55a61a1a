-- preflight: stop before anything is changed where the upgrade could not be finished.
--
-- The functions of the contract are replaced whatever they were. Where a view, a trigger or
-- another object hangs on one of them, replacing it would break that object behind its
-- owner's back, so it is named instead.
DO $$
DECLARE
    v_problem text;
BEGIN
    SELECT string_agg(
        format('%s depends on function %s', dependent.name, dependent.function_name),
        '; ' ORDER BY dependent.name, dependent.function_name
    )
    INTO v_problem
    FROM (
        SELECT DISTINCT
            regexp_replace(
                pg_catalog.pg_describe_object(depend.classid, depend.objid, depend.objsubid),
                '^rule _RETURN on ', ''
            ) AS name,
            proc.oid::pg_catalog.regprocedure::text AS function_name
        FROM pg_catalog.pg_proc AS proc
        JOIN pg_catalog.pg_depend AS depend
            ON depend.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND depend.refobjid = proc.oid
        WHERE proc.pronamespace = 'public'::pg_catalog.regnamespace
            AND proc.proname IN (
                'calculate_email_retry_time', 'calculate_webhook_retry_time',
                'get_email_queue_batch', 'mark_email_sent', 'mark_email_failed',
                'get_webhook_retry_batch', 'mark_webhook_processed', 'mark_webhook_failed',
                'increment_rate_limit', 'cleanup_rate_limit_counters', 'enqueue_email'
            )
            AND COALESCE(pg_catalog.obj_description(proc.oid, 'pg_proc'), '') NOT LIKE 'postroom:%'
    ) AS dependent;

    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = v_problem,
            HINT = 'Drop or change what is named, then migrate again. Nothing was changed.';
    END IF;

    SELECT string_agg(format('%I.%I is %s, not %s', wrong.table_name, wrong.column_name, wrong.found, wrong.wanted), '; ')
    INTO v_problem
    FROM (
        SELECT
            expected.table_name,
            expected.column_name,
            expected.wanted,
            COALESCE(pg_catalog.format_type(attribute.atttypid, NULL), 'missing') AS found
        FROM (VALUES
            ('email_queue', 'id', 'uuid'),
            ('email_queue', 'to_email', 'text'),
            ('email_queue', 'subject', 'text'),
            ('email_queue', 'html', 'text'),
            ('webhook_retry_queue', 'id', 'uuid'),
            ('webhook_retry_queue', 'webhook_type', 'text'),
            ('webhook_retry_queue', 'payload', 'jsonb'),
            ('rate_limit_counters', 'key', 'text')
        ) AS expected (table_name, column_name, wanted)
        LEFT JOIN pg_catalog.pg_attribute AS attribute
            ON attribute.attrelid = pg_catalog.to_regclass('public.' || expected.table_name)
            AND attribute.attname = expected.column_name
            AND NOT attribute.attisdropped
        WHERE pg_catalog.to_regclass('public.' || expected.table_name) IS NOT NULL
    ) AS wrong
    WHERE wrong.found NOT IN (wrong.wanted, 'character varying');

    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'datatype_mismatch',
            MESSAGE = v_problem,
            HINT = 'postroom never retypes a column. Change it, then migrate again. Nothing was changed.';
    END IF;
END;
$$;
