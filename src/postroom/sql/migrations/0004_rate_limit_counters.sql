-- Table public.rate_limit_counters. Where a hand-made project has it already, it keeps its rows, columns and
-- names; what is missing is added, with constant defaults, which touches no row.
--
-- One table a migration: each takes the lock of one table for some milliseconds, and never holds
-- one while it waits for another.

DO $$
BEGIN
    IF to_regclass('public.rate_limit_counters') IS NULL THEN
        CREATE TABLE public.rate_limit_counters (
            key          text PRIMARY KEY,
            count        integer DEFAULT 0,
            window_start timestamptz,
            window_end   timestamptz,
            updated_at   timestamptz DEFAULT now()
        );
        -- Default privileges may give a new table to anybody: until the grants are made, it is nobody's.
        ALTER TABLE public.rate_limit_counters ENABLE ROW LEVEL SECURITY;
    END IF;
END;
$$;

ALTER TABLE public.rate_limit_counters
    ADD COLUMN IF NOT EXISTS count         integer DEFAULT 0,
    ADD COLUMN IF NOT EXISTS window_start  timestamptz,
    ADD COLUMN IF NOT EXISTS window_end    timestamptz,
    ADD COLUMN IF NOT EXISTS updated_at    timestamptz DEFAULT now(),
    -- The book of a limit (schema/30_limits.sql): when slots were taken, and how many then, oldest
    -- first. NULL in rows that are older than postroom and in the application's own keys.
    ADD COLUMN IF NOT EXISTS taken_at      timestamptz[],
    ADD COLUMN IF NOT EXISTS taken         integer[],
    -- Slots ever taken, and the last ticket given to a row that waits: ticket t is served as slot t.
    ADD COLUMN IF NOT EXISTS taken_total   bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS planned       bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS planned_high  bigint NOT NULL DEFAULT 0,
    -- The limit under which the tickets were given: another one makes them void.
    ADD COLUMN IF NOT EXISTS planned_under text,
    ADD COLUMN IF NOT EXISTS checked_at    timestamptz;

-- About 2.5 kB, written once a batch: uncompressed, and in the row.
ALTER TABLE public.rate_limit_counters ALTER COLUMN taken_at SET STORAGE EXTERNAL;
ALTER TABLE public.rate_limit_counters ALTER COLUMN taken SET STORAGE EXTERNAL;
ALTER TABLE public.rate_limit_counters SET (
    toast_tuple_target = 8160,
    fillfactor = 40,
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 1000
);
