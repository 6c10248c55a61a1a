-- What a person does to all dead letters of a group: how far it came.
CREATE TABLE postroom.bulk_actions (
    id           uuid PRIMARY KEY,
    action       text NOT NULL CHECK (action IN ('retry', 'discard')),
    queue        text CHECK (queue IN ('email', 'webhook')),
    reason       text,
    note         text,
    begun_by     text NOT NULL,
    begun_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    asked_at     timestamptz NOT NULL,
    total        integer NOT NULL,
    place_queue  text NOT NULL,
    place_at     timestamptz,
    place_id     uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    done         integer NOT NULL DEFAULT 0,
    refused      integer NOT NULL DEFAULT 0,
    why          text,
    runner       uuid,
    leased_until timestamptz NOT NULL,
    ended_at     timestamptz,
    stopped_by   text,
    CONSTRAINT bulk_actions_end CHECK (stopped_by IS NULL OR ended_at IS NOT NULL)
);
