-- Who may do what. Run at every migrate: a role that is made later gets what it needs then.

-- may_do: whether a role could run a command on a table before us: by privilege, and by a policy where
-- row level security is on.
CREATE OR REPLACE FUNCTION postroom.may_do(p_role name, p_table regclass, p_command text)
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT has_table_privilege(p_role, p_table, p_command)
        AND (
            NOT class.relrowsecurity
            OR (SELECT role.rolbypassrls FROM pg_catalog.pg_roles AS role WHERE role.rolname = p_role)
            OR EXISTS (
                SELECT 1
                FROM pg_catalog.pg_policy AS policy
                WHERE policy.polrelid = p_table
                    AND policy.polpermissive
                    AND policy.polcmd IN ('*', CASE p_command
                        WHEN 'SELECT' THEN 'r' WHEN 'INSERT' THEN 'a' WHEN 'UPDATE' THEN 'w' ELSE 'd'
                    END)
                    AND (
                        0 = ANY (policy.polroles)
                        OR EXISTS (
                            SELECT 1 FROM unnest(policy.polroles) AS member (oid)
                            WHERE member.oid <> 0 AND pg_has_role(p_role, member.oid, 'USAGE')
                        )
                    )
            )
        )
    FROM pg_catalog.pg_class AS class
    WHERE class.oid = p_table;
$$;

-- policy_name: a name for a policy of ours that says what it does; where that is longer than a name may be, one that
-- is still no other's.
CREATE OR REPLACE FUNCTION postroom.policy_name(p_does text)
RETURNS text
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT 'postroom: ' || CASE
        WHEN octet_length(p_does) <= 53 THEN p_does
        ELSE left(encode(sha256(convert_to(p_does, 'UTF8')), 'hex'), 40)
    END;
$$;

-- policy_text: one policy as the statement that would make it again.
CREATE OR REPLACE FUNCTION postroom.policy_text(p_policy pg_catalog.pg_policies, p_name text, p_roles text)
RETURNS text
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT format(
        'CREATE POLICY %I ON %I.%I AS %s FOR %s TO %s%s%s',
        p_name, p_policy.schemaname, p_policy.tablename, p_policy.permissive, p_policy.cmd, p_roles,
        ' USING (' || p_policy.qual || ')',
        ' WITH CHECK (' || p_policy.with_check || ')'
    );
$$;

-- grant_access: roles, row level security, policies and grants, as the contract has them.
CREATE OR REPLACE FUNCTION postroom.grant_access(p_app_role text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
SET client_min_messages = notice
AS $$
DECLARE
    v_tables  regclass[] := ARRAY[
        'public.email_queue', 'public.webhook_retry_queue', 'public.rate_limit_counters'
    ]::regclass[];
    v_ours    regprocedure[];
    v_role    name;
    v_table   regclass;
    v_command text;
    v_policy  pg_catalog.pg_policies;
    v_kept    jsonb := '[]'::jsonb;
    v_keep    record;
    v_has     boolean;
    v_proc    regprocedure;
BEGIN
    -- 1. The roles.
    FOREACH v_role IN ARRAY ARRAY['service_role', 'authenticated', 'anon']::name[] LOOP
        IF to_regrole(v_role::text) IS NULL THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', v_role);
            EXCEPTION
                WHEN insufficient_privilege THEN
                    RAISE NOTICE 'role % is missing and % may not make it: where something calls as it, have it made and migrate again',
                        v_role, current_user;
                WHEN duplicate_object OR unique_violation THEN
                    NULL;
            END;
        END IF;
    END LOOP;
    IF p_app_role IS NOT NULL THEN
        IF to_regrole(quote_ident(p_app_role)) IS NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = 'undefined_object',
                MESSAGE = format('--app-role: there is no role %I', p_app_role),
                HINT = format('CREATE ROLE %I LOGIN PASSWORD ...; then migrate again', p_app_role);
        END IF;
        INSERT INTO postroom.app_roles (name) VALUES (p_app_role) ON CONFLICT DO NOTHING;
    END IF;

    -- 2. What other roles can do now and must not lose: by command and table, and by which policy.
    FOREACH v_table IN ARRAY v_tables LOOP
        FOR v_role IN
            SELECT role.rolname
            FROM pg_catalog.pg_roles AS role
            WHERE role.rolname NOT IN ('anon', 'authenticated', 'service_role')
                AND role.rolname NOT LIKE 'pg\_%'
                AND NOT role.rolsuper
                AND role.oid <> (SELECT class.relowner FROM pg_catalog.pg_class AS class WHERE class.oid = v_table)
        LOOP
            BEGIN
                FOREACH v_command IN ARRAY ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'] LOOP
                    IF postroom.may_do(v_role, v_table, v_command) THEN
                        v_kept := v_kept
                            || jsonb_build_object('role', v_role, 'table', v_table::text, 'command', v_command);
                    END IF;
                END LOOP;
            EXCEPTION WHEN undefined_object THEN
                NULL;  -- Dropped meanwhile: roles belong to all databases of a server.
            END;
        END LOOP;
    END LOOP;

    -- 3. Policies that speak for PUBLIC, anon or authenticated go; their text is kept, and a role that lived by
    -- one of them gets it in its own name.
    FOR v_policy IN
        SELECT policy.*
        FROM pg_catalog.pg_policies AS policy
        WHERE policy.schemaname = 'public'
            AND policy.tablename IN ('email_queue', 'webhook_retry_queue', 'rate_limit_counters')
            AND policy.roles && ARRAY['public', 'anon', 'authenticated']::name[]
            AND policy.policyname NOT LIKE 'postroom: %'
        ORDER BY policy.tablename, policy.policyname
    LOOP
        INSERT INTO postroom.replaced_objects (kind, name, definition)
        VALUES (
            'policy',
            format('%I on %I.%I', v_policy.policyname, v_policy.schemaname, v_policy.tablename),
            postroom.policy_text(
                v_policy, v_policy.policyname,
                (SELECT string_agg(CASE named.role WHEN 'public' THEN 'public' ELSE quote_ident(named.role) END, ', ')
                    FROM unnest(v_policy.roles) AS named (role))
            )
        );
        RAISE NOTICE 'policy % on % replaced, its text is kept in postroom.replaced_objects',
            v_policy.policyname, v_policy.tablename;
        EXECUTE format('DROP POLICY %I ON %I.%I', v_policy.policyname, v_policy.schemaname, v_policy.tablename);
        FOR v_keep IN
            SELECT DISTINCT kept.value ->> 'role' AS role
            FROM jsonb_array_elements(v_kept) AS kept (value)
            WHERE to_regclass(kept.value ->> 'table') = to_regclass(format('%I.%I', v_policy.schemaname, v_policy.tablename))
                AND v_policy.cmd IN ('ALL', kept.value ->> 'command')
                AND ('public' = ANY (v_policy.roles) OR kept.value ->> 'role' = ANY (v_policy.roles))
        LOOP
            EXECUTE postroom.policy_text(
                v_policy, postroom.policy_name(v_keep.role || ': ' || v_policy.policyname), quote_ident(v_keep.role)
            );
        END LOOP;
    END LOOP;

    -- 4. Row level security, on; and the privileges that came by way of PUBLIC, in each role's own name.
    FOREACH v_table IN ARRAY v_tables LOOP
        SELECT class.relrowsecurity INTO v_has FROM pg_catalog.pg_class AS class WHERE class.oid = v_table;
        IF NOT v_has THEN
            INSERT INTO postroom.replaced_objects (kind, name, definition)
            VALUES (
                'policy', 'row level security on ' || v_table,
                format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', v_table)
            );
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', v_table);
        END IF;
        PERFORM postroom.note_table_rights(v_table);
        PERFORM postroom.revoke_all('TABLE', v_table::text, outsiders.role)
        FROM (SELECT relacl FROM pg_catalog.pg_class WHERE pg_class.oid = v_table) AS class
        CROSS JOIN LATERAL postroom.outsiders_in(class.relacl) AS outsiders (role)
        WHERE NOT (v_table = 'public.email_queue'::regclass AND outsiders.role = 'authenticated' AND (
            SELECT array_agg(acl.privilege_type) = '{SELECT}'
            FROM pg_catalog.aclexplode(class.relacl) AS acl
            WHERE acl.grantee = to_regrole('authenticated')
        ));
        PERFORM postroom.revoke_all('TABLE', v_table::text, outsiders.role)
        FROM pg_catalog.pg_attribute AS att
        CROSS JOIN LATERAL postroom.outsiders_in(att.attacl) AS outsiders (role)
        WHERE att.attrelid = v_table AND att.attacl IS NOT NULL;
    END LOOP;
    FOR v_keep IN
        SELECT kept.value ->> 'role' AS role, (kept.value ->> 'table')::regclass AS "table", kept.value ->> 'command' AS command
        FROM jsonb_array_elements(v_kept) AS kept (value)
    LOOP
        IF NOT has_table_privilege(v_keep.role, v_keep.table, v_keep.command) THEN
            EXECUTE format('GRANT %s ON TABLE %s TO %I', v_keep.command, v_keep.table, v_keep.role);
        END IF;
        IF NOT postroom.may_do(v_keep.role, v_keep.table, v_keep.command) THEN
            EXECUTE format(
                'CREATE POLICY %I ON %s FOR %s TO %I %s',
                postroom.policy_name(v_keep.role || ' may ' || v_keep.command), v_keep.table, v_keep.command,
                v_keep.role,
                CASE v_keep.command
                    WHEN 'INSERT' THEN 'WITH CHECK (true)'
                    WHEN 'UPDATE' THEN 'USING (true) WITH CHECK (true)'
                    ELSE 'USING (true)'
                END
            );
        END IF;
    END LOOP;

    PERFORM postroom.let_owner_in();

    -- 5. Nobody outside calls our functions; default privileges may have given them to anybody.
    SELECT array_agg(proc.oid::regprocedure)
    INTO v_ours
    FROM pg_catalog.pg_proc AS proc
    WHERE proc.pronamespace = to_regnamespace('postroom')
        OR (
            proc.pronamespace = to_regnamespace('public')
            AND obj_description(proc.oid, 'pg_proc') LIKE 'postroom:%'
        );
    FOREACH v_proc IN ARRAY v_ours LOOP
        PERFORM postroom.revoke_all('ROUTINE', v_proc::text, outsiders.role)
        FROM pg_catalog.pg_proc AS proc
        CROSS JOIN LATERAL postroom.outsiders_in(
            COALESCE(proc.proacl, pg_catalog.acldefault('f', proc.proowner))
        ) AS outsiders (role)
        WHERE proc.oid = v_proc;
    END LOOP;
    PERFORM postroom.revoke_all('SCHEMA', 'postroom', outsiders.role)
    FROM pg_catalog.pg_namespace AS schema
    CROSS JOIN LATERAL postroom.outsiders_in(schema.nspacl) AS outsiders (role)
    WHERE schema.oid = to_regnamespace('postroom');
    PERFORM postroom.revoke_all(
        CASE class.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, class.oid::regclass::text, outsiders.role
    )
    FROM pg_catalog.pg_class AS class
    CROSS JOIN LATERAL postroom.outsiders_in(class.relacl) AS outsiders (role)
    WHERE class.relnamespace = to_regnamespace('postroom') AND class.relkind IN ('r', 'p', 'v', 'm', 'f', 'S');

    -- 6. service_role: everything; but what give_back will run as the owner, it may only read.
    IF to_regrole('service_role') IS NOT NULL THEN
        IF NOT has_schema_privilege('service_role', 'public', 'USAGE') THEN
            GRANT USAGE ON SCHEMA public TO service_role;
        END IF;
        IF NOT has_schema_privilege('service_role', 'postroom', 'USAGE') THEN
            GRANT USAGE ON SCHEMA postroom TO service_role;
        END IF;
        FOR v_keep IN
            SELECT
                class.oid::regclass AS name,
                CASE class.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind
            FROM pg_catalog.pg_class AS class
            WHERE class.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
                AND (class.relnamespace = to_regnamespace('postroom') OR class.oid = ANY (v_tables))
                AND class.oid <> 'postroom.replaced_objects'::regclass
                AND NOT COALESCE((
                    SELECT count(*) >= CASE class.relkind WHEN 'S' THEN 3 ELSE 7 END
                    FROM pg_catalog.aclexplode(class.relacl) AS acl
                    WHERE acl.grantee = to_regrole('service_role')
                ), false)
        LOOP
            EXECUTE format('GRANT ALL ON %s %s TO service_role', v_keep.kind, v_keep.name);
        END LOOP;
        IF NOT has_table_privilege('service_role', 'postroom.replaced_objects', 'SELECT')
            OR has_table_privilege(
                'service_role', 'postroom.replaced_objects', 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'
            )
        THEN
            REVOKE ALL ON TABLE postroom.replaced_objects FROM service_role;
            GRANT SELECT ON TABLE postroom.replaced_objects TO service_role;
        END IF;
        FOREACH v_table IN ARRAY v_tables LOOP
            PERFORM postroom.make_policy(v_table, 'postroom: service_role may do everything',
                'FOR ALL TO service_role USING (true) WITH CHECK (true)');
        END LOOP;
        FOREACH v_proc IN ARRAY v_ours LOOP
            IF NOT has_function_privilege('service_role', v_proc, 'EXECUTE') THEN
                EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO service_role', v_proc);
            END IF;
        END LOOP;
    END IF;

    -- 7. authenticated: the e-mails that were sent to them.
    IF to_regrole('authenticated') IS NOT NULL THEN
        IF NOT has_table_privilege('authenticated', 'public.email_queue', 'SELECT') THEN
            GRANT SELECT ON TABLE public.email_queue TO authenticated;
        END IF;
        PERFORM postroom.make_policy('public.email_queue', 'postroom: authenticated may read their own',
            $policy$FOR SELECT TO authenticated USING (
                lower(to_email) = lower(NULLIF(
                    NULLIF(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email', ''
                ))
            )$policy$);
    END IF;

    -- 8. The application's own roles.
    FOR v_role IN SELECT app.name FROM postroom.app_roles AS app WHERE to_regrole(quote_ident(app.name)) IS NOT NULL LOOP
        IF NOT has_schema_privilege(v_role, 'public', 'USAGE') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', v_role);
        END IF;
        EXECUTE format('GRANT SELECT, INSERT ON TABLE public.email_queue TO %I', v_role);
        EXECUTE format(
            'GRANT EXECUTE ON FUNCTION public.enqueue_email(
                text, text, text, text, text, text, jsonb, text, timestamptz, integer, integer, text, jsonb
            ) TO %I', v_role
        );
        EXECUTE format('GRANT EXECUTE ON FUNCTION public.enqueue_emails(jsonb) TO %I', v_role);
        PERFORM postroom.make_policy('public.email_queue', postroom.policy_name('app role ' || v_role || ' may read'),
            format('FOR SELECT TO %I USING (true)', v_role));
        PERFORM postroom.make_policy('public.email_queue', postroom.policy_name('app role ' || v_role || ' may insert'),
            format('FOR INSERT TO %I WITH CHECK (true)', v_role));
    END LOOP;

    -- 9. Schema cron, where it is ours to make.
    PERFORM postroom.make_cron_schema();
END;
$$;

-- outsiders_in: which of those who may do nothing have something in a list of privileges.
CREATE OR REPLACE FUNCTION postroom.outsiders_in(p_acl aclitem[])
RETURNS SETOF text
LANGUAGE sql
STABLE
SET search_path = ''
AS $$
    SELECT DISTINCT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
    FROM pg_catalog.aclexplode(p_acl) AS acl
    WHERE acl.grantee IN (0, to_regrole('anon'), to_regrole('authenticated'));
$$;

-- note_table_rights: writes down what outsiders have on a table that was there before postroom, so that it can be
-- given back (85_give_back.sql).
CREATE OR REPLACE FUNCTION postroom.note_table_rights(p_table regclass)
RETURNS void
LANGUAGE sql
SET search_path = ''
AS $$
    SELECT postroom.note_rights('TABLE ' || p_table, held.rights, held.owner, outsiders.roles, held.name)
    FROM (
        SELECT class.relacl AS rights, class.relowner AS owner, NULL AS name
        FROM pg_catalog.pg_class AS class
        WHERE class.oid = p_table
        UNION ALL
        SELECT att.attacl, class.relowner, att.attname
        FROM pg_catalog.pg_attribute AS att
        JOIN pg_catalog.pg_class AS class ON class.oid = att.attrelid
        WHERE att.attrelid = p_table AND att.attacl IS NOT NULL
    ) AS held
    CROSS JOIN LATERAL (
        SELECT array_agg(named.role) AS roles
        FROM postroom.outsiders_in(held.rights) AS named (role)
        -- Since our first migrate it reads by us.
        WHERE named.role <> 'authenticated' OR NOT EXISTS (
            SELECT 1
            FROM pg_catalog.pg_policy AS policy
            WHERE policy.polrelid = p_table AND policy.polname = 'postroom: authenticated may read their own'
        )
    ) AS outsiders
    WHERE outsiders.roles IS NOT NULL AND NOT EXISTS (
        SELECT 1
        FROM pg_catalog.pg_attribute AS att
        WHERE att.attrelid = p_table AND att.attnum = 1 AND postroom.written_since_upgrade(att.xmin)
    );
$$;

-- revoke_all: takes what one of them has, and what others have through its right to grant.
CREATE OR REPLACE FUNCTION postroom.revoke_all(p_kind text, p_name text, p_role text)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    EXECUTE format('REVOKE ALL ON %s %s FROM %s CASCADE', p_kind, p_name, p_role);
END;
$$;

-- make_policy: a policy of ours, where it is not there yet.
CREATE OR REPLACE FUNCTION postroom.make_policy(p_table regclass, p_name text, p_rest text)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM pg_catalog.pg_policy AS policy WHERE policy.polrelid = p_table AND policy.polname = p_name
    ) THEN
        EXECUTE format('CREATE POLICY %I ON %s %s', p_name, p_table, p_rest);
    END IF;
END;
$$;
