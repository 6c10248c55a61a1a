-- What pg_cron runs in our place, and the keys that its requests show at our door.
ALTER TABLE postroom.jobs ADD COLUMN pg_cron_command text;

CREATE TABLE postroom.job_keys (
    key_hash bytea PRIMARY KEY,
    made_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
