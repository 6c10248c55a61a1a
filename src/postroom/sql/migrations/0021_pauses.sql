-- What a person has paused: a queue, or a transport (docs/decisions/0025).
CREATE TABLE postroom.pauses (
    kind      text NOT NULL CONSTRAINT pauses_kind CHECK (kind IN ('queue', 'transport')),
    name      text NOT NULL,
    paused_by text NOT NULL,
    since     timestamptz NOT NULL DEFAULT clock_timestamp(),
    until     timestamptz,
    reason    text,
    CONSTRAINT pauses_pkey PRIMARY KEY (kind, name),
    CONSTRAINT pauses_queue CHECK (kind <> 'queue' OR name IN ('email', 'webhook'))
);
