-- The newest version of a worker's row is found by its generation, before the dead ones that an old snapshot keeps.
ALTER TABLE postroom.workers ADD COLUMN generation bigint NOT NULL DEFAULT 0;
ALTER TABLE postroom.workers DROP CONSTRAINT workers_pkey;
ALTER TABLE postroom.workers ADD CONSTRAINT workers_pkey PRIMARY KEY (id, generation);

CREATE INDEX workers_asleep ON postroom.workers (queue, seen_at) WHERE asleep;
