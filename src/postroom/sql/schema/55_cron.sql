-- Scheduled jobs: who leads among the schedulers, which run may begin, how it ended (docs/decisions/0012).
--
-- The functions take the time as their last argument, by default the database's own. No lease of theirs is believed that
-- lies further ahead than a scheduler could have written it: where the clock was set back, nobody waits for it.

-- cron_lease: how long a leader, and a run, is believed to live after it was last heard of.
CREATE OR REPLACE FUNCTION postroom.cron_lease()
RETURNS interval
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT interval '6 seconds';
$$;

-- holds_at: whether a lease of cron holds. Twice its length ahead: two who ask at once have two slightly different times.
CREATE OR REPLACE FUNCTION postroom.holds_at(p_until timestamptz, p_now timestamptz)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT COALESCE(p_until > p_now AND p_until < p_now + 2 * postroom.cron_lease(), false);
$$;

-- lead_cron: a scheduler shows itself; leads says whether it is the leader, can_run what the leader can run.
CREATE OR REPLACE FUNCTION postroom.lead_cron(
    p_scheduler uuid,
    p_host      text,
    p_pid       integer,
    p_version   text,
    p_can_run   text[],
    p_now       timestamptz DEFAULT clock_timestamp()
)
RETURNS TABLE (leads boolean, term bigint, at timestamptz, can_run text[])
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_leader postroom.cron_leader;
BEGIN
    SELECT * INTO v_leader FROM postroom.cron_leader;
    -- A lease is written anew when a third of it is used up: a standing leader costs a write in two seconds, and who
    -- follows costs none.
    IF NOT COALESCE(
        postroom.holds_at(v_leader.leads_until, p_now)
        AND (v_leader.scheduler <> p_scheduler OR v_leader.leads_until > p_now + postroom.cron_lease() * 2 / 3),
        false
    ) THEN
        INSERT INTO postroom.cron_leader AS leader (
            scheduler, host, pid, version, can_run, term, leads_since, leads_until
        )
        VALUES (
            p_scheduler, p_host, p_pid, p_version, p_can_run, 1, p_now, p_now + postroom.cron_lease()
        )
        ON CONFLICT (one) DO UPDATE
        SET scheduler = EXCLUDED.scheduler, host = EXCLUDED.host, pid = EXCLUDED.pid, version = EXCLUDED.version,
            can_run = EXCLUDED.can_run, leads_until = EXCLUDED.leads_until,
            term = leader.term + (leader.scheduler IS DISTINCT FROM EXCLUDED.scheduler)::integer,
            leads_since = CASE
                WHEN leader.scheduler = EXCLUDED.scheduler THEN leader.leads_since ELSE EXCLUDED.leads_since
            END
        WHERE leader.scheduler = EXCLUDED.scheduler OR NOT postroom.holds_at(leader.leads_until, p_now);
        SELECT * INTO v_leader FROM postroom.cron_leader;
    END IF;
    RETURN QUERY SELECT v_leader.scheduler = p_scheduler, v_leader.term, p_now, v_leader.can_run;
END;
$$;

-- resign_cron: a scheduler that ends leaves its place to the next at once.
CREATE OR REPLACE FUNCTION postroom.resign_cron(p_scheduler uuid)
RETURNS void
LANGUAGE sql
SET search_path = ''
AS $$
    UPDATE postroom.cron_leader
    SET leads_until = NULL
    WHERE cron_leader.scheduler = p_scheduler;
$$;

-- begin_run: one run of a job, for one minute; NULL where it may not begin.
--
-- It may where the scheduler leads, or can run what the leader cannot; where the job is active, does not run, and has
-- not had that minute or a later one. With no minute a person asks for it, whoever leads. A last_minute that lies ahead
-- is no reason: the clock was set back. That minutes which come twice are run once is for the unique key to say.
-- Who asks again, since the answer was lost, is given the run that he has begun, unless it was given up meanwhile.
CREATE OR REPLACE FUNCTION postroom.begin_run(
    p_scheduler uuid,
    p_jobid     bigint,
    p_minute    timestamptz,
    p_pid       integer,
    p_now       timestamptz DEFAULT clock_timestamp()
)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_may   boolean := true;
    v_job   postroom.jobs;
    v_runid bigint;
BEGIN
    -- Before the job's own row, so that whoever takes over waits until what has begun is known.
    IF p_minute IS NOT NULL THEN
        PERFORM 1
        FROM postroom.cron_leader AS leader
        JOIN postroom.jobs AS job ON job.jobid = p_jobid
        WHERE postroom.holds_at(leader.leads_until, p_now)
            AND (leader.scheduler = p_scheduler OR postroom.what_runs(job) <> ALL (leader.can_run))
        FOR SHARE OF leader;
        v_may := FOUND;
    END IF;

    SELECT * INTO v_job FROM postroom.jobs AS job WHERE job.jobid = p_jobid FOR UPDATE;
    UPDATE postroom.job_runs AS run
    SET leased_until = p_now + postroom.cron_lease()
    WHERE run.jobid = p_jobid AND run.status = 'running'
        AND run.scheduler = p_scheduler AND run.minute IS NOT DISTINCT FROM p_minute
    RETURNING run.runid INTO v_runid;
    IF FOUND THEN
        RETURN v_runid;
    ELSIF p_minute IS NOT NULL AND NOT COALESCE(
        v_may AND v_job.active AND (v_job.last_minute < p_minute OR v_job.last_minute > p_now + interval '1 minute'),
        false
    ) THEN
        RETURN NULL;
    END IF;

    INSERT INTO postroom.job_runs (jobid, job_pid, command, start_time, minute, scheduler, leased_until)
    VALUES (p_jobid, p_pid, v_job.command, p_now, p_minute, p_scheduler, p_now + postroom.cron_lease())
    ON CONFLICT DO NOTHING
    RETURNING runid INTO v_runid;
    IF v_runid IS NOT NULL THEN
        UPDATE postroom.jobs
        SET last_minute = COALESCE(p_minute, jobs.last_minute), first_began_at = COALESCE(jobs.first_began_at, p_now)
        WHERE jobs.jobid = p_jobid;
    END IF;
    RETURN v_runid;
END;
$$;

-- what_runs: what a scheduler must be able to run for this job: the job by its name, or SQL as its user.
CREATE OR REPLACE FUNCTION postroom.what_runs(p_job postroom.jobs)
RETURNS text
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    SELECT CASE WHEN p_job.builtin THEN p_job.jobname ELSE 'sql:' || p_job.username END;
$$;

-- extend_runs: the runs go on; returns those that are still ours.
CREATE OR REPLACE FUNCTION postroom.extend_runs(
    p_scheduler uuid, p_runids bigint[], p_now timestamptz DEFAULT clock_timestamp()
)
RETURNS SETOF bigint
LANGUAGE sql
SET search_path = ''
AS $$
    UPDATE postroom.job_runs
    SET leased_until = p_now + postroom.cron_lease()
    WHERE job_runs.runid = ANY (p_runids) AND job_runs.scheduler = p_scheduler AND job_runs.status = 'running'
    RETURNING job_runs.runid;
$$;

-- end_run: writes down how a run ended; false where it was given up meanwhile.
CREATE OR REPLACE FUNCTION postroom.end_run(
    p_scheduler uuid, p_runid bigint, p_status text, p_message text, p_now timestamptz DEFAULT clock_timestamp()
)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    -- Never before its start: the clock may have been set back.
    UPDATE postroom.job_runs
    SET status = p_status, return_message = p_message, end_time = GREATEST(p_now, job_runs.start_time)
    WHERE job_runs.runid = p_runid AND job_runs.scheduler = p_scheduler AND job_runs.status = 'running';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE postroom.jobs
    SET last_succeeded_at = run.start_time
    FROM postroom.job_runs AS run
    WHERE run.runid = p_runid AND jobs.jobid = run.jobid AND p_status = 'succeeded';
    RETURN true;
END;
$$;

-- fail_dead_runs: runs whose scheduler was not heard of for a lease have failed; their jobs may run again.
CREATE OR REPLACE FUNCTION postroom.fail_dead_runs(p_now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (runid bigint, job text)
LANGUAGE sql
SET search_path = ''
AS $$
    UPDATE postroom.job_runs AS run
    SET status = 'failed', end_time = GREATEST(p_now, run.start_time),
        return_message = 'its scheduler died during the run'
    FROM (
        SELECT dead.runid, COALESCE(job.jobname, dead.jobid::text) AS job
        FROM postroom.job_runs AS dead
        LEFT JOIN postroom.jobs AS job ON job.jobid = dead.jobid
        WHERE dead.status = 'running' AND NOT postroom.holds_at(dead.leased_until, p_now)
    ) AS found
    WHERE run.runid = found.runid AND run.status = 'running' AND NOT postroom.holds_at(run.leased_until, p_now)
    RETURNING run.runid, found.job;
$$;

-- check_job: a schedule must be one; a command runs as whoever has written it; what was due under another schedule, or
-- while the job was off, is not caught up.
CREATE OR REPLACE FUNCTION postroom.check_job()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    IF NOT postroom.is_schedule(NEW.schedule) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('invalid schedule: %s', NEW.schedule),
            HINT = 'Write a schedule of cron, such as */5 * * * *, @daily or 30 seconds.';
    END IF;
    IF TG_OP = 'INSERT' THEN
        NEW.username := current_user;
    ELSIF NEW.command <> OLD.command OR NEW.username <> OLD.username OR NEW.builtin <> OLD.builtin THEN
        NEW.username := current_user;
    END IF;
    IF TG_OP = 'UPDATE' AND (NEW.schedule <> OLD.schedule OR NEW.active AND NOT OLD.active) THEN
        NEW.last_minute := clock_timestamp();
    END IF;
    RETURN NEW;
END;
$$;

CREATE OR REPLACE TRIGGER jobs_check
    BEFORE INSERT OR UPDATE ON postroom.jobs
    FOR EACH ROW EXECUTE FUNCTION postroom.check_job();

-- reschedule_job: the setting cron.NAME is the schedule of the job NAME.
CREATE OR REPLACE FUNCTION postroom.reschedule_job()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_job postroom.jobs;
BEGIN
    UPDATE postroom.jobs
    SET schedule = CASE NEW.value WHEN 'off' THEN jobs.schedule ELSE NEW.value END, active = NEW.value <> 'off'
    WHERE jobs.builtin
        AND 'cron.' || jobs.jobname = NEW.key
        AND (jobs.schedule <> NEW.value OR NOT jobs.active)
    RETURNING jobs.* INTO v_job;
    IF v_job.pg_cron_command IS NOT NULL AND postroom.may_use_pg_cron() THEN
        IF v_job.username = current_user THEN
            PERFORM postroom.tell_pg_cron(v_job);
        ELSE
            RAISE WARNING 'pg_cron has % as it was: have % run `postroom cron use-pg-cron`', v_job.jobname, v_job.username;
        END IF;
    END IF;
    RETURN NULL;
END;
$$;

CREATE OR REPLACE TRIGGER settings_reschedule
    AFTER INSERT OR UPDATE ON postroom.settings
    FOR EACH ROW WHEN (NEW.key LIKE 'cron.%') EXECUTE FUNCTION postroom.reschedule_job();

-- builtin_jobs: postroom's own jobs and their ids. always: every scheduler can run it; the others come to the table
-- with the first scheduler that can (offer_jobs).
CREATE OR REPLACE FUNCTION postroom.builtin_jobs()
RETURNS TABLE (jobid bigint, jobname text, always boolean)
LANGUAGE sql
IMMUTABLE
SET search_path = ''
AS $$
    VALUES
        (19::bigint,   'process-email-queue',     true),
        (20::bigint,   'process-webhook-retries', true),
        (1001::bigint, 'cleanup',                 true),
        (1002::bigint, 'reconcile',               false),
        (1003::bigint, 'alerts',                  true);
$$;

-- offer_jobs: makes those of postroom's own jobs that are not there yet.
CREATE OR REPLACE FUNCTION postroom.offer_jobs(p_names text[])
RETURNS void
LANGUAGE sql
SET search_path = ''
AS $$
    INSERT INTO postroom.jobs (jobid, jobname, schedule, command, active, builtin, last_minute)
    SELECT
        own.jobid, own.jobname, CASE setting.value WHEN 'off' THEN standard.value ELSE setting.value END,
        'postroom cron run ' || own.jobname, setting.value <> 'off', true,
        -- The net has always been due: the first scheduler begins with it, and one sees that it works.
        CASE WHEN own.jobname LIKE 'process-%' THEN '2000-01-01' ELSE clock_timestamp() END
    FROM postroom.builtin_jobs() AS own
    JOIN postroom.default_settings() AS standard ON standard.key = 'cron.' || own.jobname
    JOIN postroom.settings AS setting ON setting.key = standard.key
    WHERE own.jobname = ANY (p_names)
    ON CONFLICT DO NOTHING;
$$;

SELECT postroom.offer_jobs(array_agg(own.jobname)) FROM postroom.builtin_jobs() AS own WHERE own.always;

-- People's own jobs, as pg_cron's functions have them: schedule_job is cron.schedule, and so on.

-- find_job: the caller's job, by its id or its name.
CREATE OR REPLACE FUNCTION postroom.find_job(p_jobid bigint, p_name text)
RETURNS postroom.jobs
LANGUAGE plpgsql
STABLE
SET search_path = ''
AS $$
DECLARE
    v_job postroom.jobs;
BEGIN
    SELECT job.*
    INTO v_job
    FROM postroom.jobs AS job
    WHERE (job.jobid = p_jobid OR job.jobname = p_name) AND pg_has_role(current_user, job.username, 'USAGE')
    ORDER BY job.username = current_user DESC
    LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_object',
            MESSAGE = format('could not find valid entry for job %L', COALESCE(p_name, p_jobid::text));
    END IF;
    RETURN v_job;
END;
$$;

-- schedule_job: makes a job, or gives the one of that name another schedule and command; returns its id.
CREATE OR REPLACE FUNCTION postroom.schedule_job(p_name text, p_schedule text, p_command text, p_active boolean)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_jobid bigint;
BEGIN
    IF p_name IN (SELECT own.jobname FROM postroom.builtin_jobs() AS own) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_object',
            MESSAGE = format('job %L is one of postroom''s own', p_name),
            HINT = format('Change its schedule by: postroom settings set cron.%s ''SCHEDULE''', p_name);
    END IF;
    INSERT INTO postroom.jobs (jobname, schedule, command, active)
    VALUES (p_name, p_schedule, p_command, p_active)
    ON CONFLICT (jobname, username) DO UPDATE
    SET schedule = EXCLUDED.schedule, command = EXCLUDED.command, active = EXCLUDED.active
    RETURNING jobs.jobid INTO v_jobid;
    RETURN v_jobid;
END;
$$;

-- schedule_job_in: schedule_job, for who names the database and the user: they are this one and the caller.
CREATE OR REPLACE FUNCTION postroom.schedule_job_in(
    p_name text, p_schedule text, p_command text, p_database text, p_username text, p_active boolean
)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = ''
AS $$
BEGIN
    IF p_database IS DISTINCT FROM current_database()::text THEN
        RAISE EXCEPTION USING
            ERRCODE = 'feature_not_supported',
            MESSAGE = format('job %L: database is %L; postroom runs jobs in its own database, %L', p_name, p_database, current_database()),
            HINT = 'Name that one, or schedule the job where it belongs: postroom migrate there, with a scheduler of its own.';
    ELSIF p_username <> current_user THEN
        RAISE EXCEPTION USING
            ERRCODE = 'feature_not_supported',
            MESSAGE = format('job %L: username is %L; a scheduler runs a person''s SQL only as its own user', p_name, p_username),
            HINT = format('Leave username out, for %s; or call this as that user, with a scheduler that logs in so.', current_user);
    END IF;
    RETURN postroom.schedule_job(p_name, p_schedule, p_command, COALESCE(p_active, true));
END;
$$;

-- unschedule_job: drops a job; one of postroom's own is switched off.
CREATE OR REPLACE FUNCTION postroom.unschedule_job(p_jobid bigint, p_name text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_job postroom.jobs := postroom.find_job(p_jobid, p_name);
BEGIN
    IF v_job.builtin THEN
        PERFORM postroom.set_setting('cron.' || v_job.jobname, 'off');
    ELSE
        DELETE FROM postroom.jobs WHERE jobs.jobid = v_job.jobid;
    END IF;
    RETURN true;
END;
$$;

-- alter_job: changes what is not NULL.
CREATE OR REPLACE FUNCTION postroom.alter_job(
    p_jobid bigint, p_schedule text, p_command text, p_database text, p_username text, p_active boolean
)
RETURNS void
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_job postroom.jobs := postroom.find_job(p_jobid, NULL);
BEGIN
    IF p_database <> v_job.database OR p_username <> v_job.username OR v_job.builtin AND p_command <> v_job.command THEN
        RAISE EXCEPTION USING
            ERRCODE = 'feature_not_supported',
            MESSAGE = format(
                'job %s: postroom runs jobs in its own database, as the user who has written them, and its own as they are',
                p_jobid
            );
    END IF;
    IF v_job.builtin THEN
        PERFORM postroom.set_setting(
            'cron.' || v_job.jobname,
            CASE WHEN COALESCE(p_active, v_job.active OR p_schedule IS NOT NULL) THEN COALESCE(p_schedule, v_job.schedule) ELSE 'off' END
        );
    ELSE
        UPDATE postroom.jobs
        SET schedule = COALESCE(p_schedule, jobs.schedule), command = COALESCE(p_command, jobs.command),
            active = COALESCE(p_active, jobs.active)
        WHERE jobs.jobid = p_jobid;
    END IF;
END;
$$;

-- make_cron_schema: schema cron over our tables, where it may be made: pg_cron is not installed, and could not be
-- (CREATE EXTENSION refuses where there is a schema cron) or is not wanted (p_use_own: `postroom cron use-own`).
--
-- Returns what there is now: own, or why not: pg_cron, available (pg_cron could be installed), taken (the schema
-- is somebody else's), refused (we may make no schema).
CREATE OR REPLACE FUNCTION postroom.make_cron_schema(p_use_own boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql
SET search_path = ''
AS $$
DECLARE
    v_mark   CONSTANT text := 'postroom: jobs and their history, version 2';
    v_schema oid := to_regnamespace('cron');
    v_found  text := obj_description(v_schema, 'pg_namespace');
    v_object text;
    v_kind   text;
    v_role   text;
BEGIN
    IF EXISTS (SELECT 1 FROM pg_catalog.pg_extension AS extension WHERE extension.extname = 'pg_cron') THEN
        RETURN 'pg_cron';
    ELSIF v_schema IS NOT NULL AND v_found NOT LIKE 'postroom: %' IS NOT FALSE THEN
        RETURN 'taken';
    ELSIF v_schema IS NULL AND NOT p_use_own
        AND EXISTS (SELECT 1 FROM pg_catalog.pg_available_extensions AS extension WHERE extension.name = 'pg_cron')
    THEN
        RETURN 'available';
    ELSIF v_schema IS NULL AND NOT has_database_privilege(current_database(), 'CREATE') THEN
        RETURN 'refused';
    END IF;

    IF v_found IS DISTINCT FROM v_mark THEN
        CREATE SCHEMA IF NOT EXISTS cron;
        EXECUTE format('COMMENT ON SCHEMA cron IS %L', v_mark);
        CREATE OR REPLACE VIEW cron.job AS
        SELECT jobid, schedule, command, nodename, nodeport, database, username, active, jobname
        FROM postroom.jobs;
        CREATE OR REPLACE VIEW cron.job_run_details AS
        SELECT
            jobid, runid, job_pid, database, username, command, status, return_message, start_time, end_time
        FROM postroom.job_runs;

        CREATE OR REPLACE FUNCTION cron.schedule(schedule text, command text) RETURNS bigint
        LANGUAGE sql SET search_path = ''
        AS 'SELECT postroom.schedule_job(NULL, $1, $2, true)';

        CREATE OR REPLACE FUNCTION cron.schedule(job_name text, schedule text, command text) RETURNS bigint
        LANGUAGE sql SET search_path = ''
        AS 'SELECT postroom.schedule_job($1, $2, $3, true)';

        CREATE OR REPLACE FUNCTION cron.schedule_in_database(
            job_name text, schedule text, command text, database text,
            username text DEFAULT NULL, active boolean DEFAULT true
        ) RETURNS bigint
        LANGUAGE sql SET search_path = ''
        AS 'SELECT postroom.schedule_job_in($1, $2, $3, $4, $5, $6)';

        CREATE OR REPLACE FUNCTION cron.unschedule(job_id bigint) RETURNS boolean
        LANGUAGE sql SET search_path = ''
        AS 'SELECT postroom.unschedule_job($1, NULL)';

        CREATE OR REPLACE FUNCTION cron.unschedule(job_name text) RETURNS boolean
        LANGUAGE sql SET search_path = ''
        AS 'SELECT postroom.unschedule_job(NULL, $1)';

        CREATE OR REPLACE FUNCTION cron.alter_job(
            job_id bigint, schedule text DEFAULT NULL, command text DEFAULT NULL, database text DEFAULT NULL,
            username text DEFAULT NULL, active boolean DEFAULT NULL
        ) RETURNS void
        LANGUAGE sql SET search_path = ''
        AS 'SELECT postroom.alter_job($1, $2, $3, $4, $5, $6)';
    END IF;

    -- Default privileges may have given it to anybody.
    FOR v_kind, v_object, v_role IN
        SELECT found.kind, found.name, outsiders.role
        FROM (
            SELECT 'SCHEMA' AS kind, 'cron' AS name, schema.nspacl AS acl
            FROM pg_catalog.pg_namespace AS schema
            WHERE schema.nspname = 'cron'
            UNION ALL
            SELECT 'TABLE', class.oid::regclass::text, class.relacl
            FROM pg_catalog.pg_class AS class
            WHERE class.relnamespace = to_regnamespace('cron')
            UNION ALL
            SELECT
                'ROUTINE', proc.oid::regprocedure::text, COALESCE(proc.proacl, pg_catalog.acldefault('f', proc.proowner))
            FROM pg_catalog.pg_proc AS proc
            WHERE proc.pronamespace = to_regnamespace('cron')
        ) AS found (kind, name, acl)
        CROSS JOIN LATERAL postroom.outsiders_in(found.acl) AS outsiders (role)
    LOOP
        PERFORM postroom.revoke_all(v_kind, v_object, v_role);
    END LOOP;
    -- Also where the schema is of another version: what is new in it was granted to nobody.
    IF to_regrole('service_role') IS NOT NULL
        AND (v_found IS DISTINCT FROM v_mark OR NOT has_schema_privilege('service_role', 'cron', 'USAGE'))
    THEN
        GRANT USAGE ON SCHEMA cron TO service_role;
        GRANT SELECT ON ALL TABLES IN SCHEMA cron TO service_role;
        GRANT EXECUTE ON ALL ROUTINES IN SCHEMA cron TO service_role;
    END IF;
    RETURN 'own';
END;
$$;
