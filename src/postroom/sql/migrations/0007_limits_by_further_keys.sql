-- An e-mail that must wait for a limit, as the limiter says it to the start (30_limits.sql).
CREATE TYPE postroom.waiting_email AS (
    place         integer,
    waits_for     text,
    planned_under text,
    due_at        timestamptz
);
