-- Who did what by hand, and the names and roles of keys.
CREATE TABLE postroom.audit (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor  text NOT NULL,
    role   text NOT NULL CHECK (role IN ('operator', 'cli')),
    action text NOT NULL,
    about  jsonb NOT NULL DEFAULT '{}',
    note   text
);

ALTER TABLE postroom.service_keys
    ADD COLUMN name text CONSTRAINT service_keys_name UNIQUE,
    ADD COLUMN role text NOT NULL DEFAULT 'operator' CONSTRAINT service_keys_role CHECK (role IN ('operator', 'viewer'));
