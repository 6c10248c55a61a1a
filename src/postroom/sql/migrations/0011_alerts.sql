-- What is wrong, and who was told.
CREATE TABLE postroom.alerts (
    rule      text NOT NULL,
    subject   text NOT NULL,
    summary   text NOT NULL,
    since     timestamptz NOT NULL,
    fired_at  timestamptz,
    last_sent timestamptz,
    repeats   integer NOT NULL DEFAULT 0,
    over_at   timestamptz,
    owed      text[] NOT NULL DEFAULT '{}',
    CONSTRAINT alerts_pkey PRIMARY KEY (rule, subject),
    CONSTRAINT alerts_sent CHECK ((fired_at IS NULL) = (last_sent IS NULL)),
    CONSTRAINT alerts_over CHECK (over_at IS NULL OR fired_at IS NOT NULL)
);
