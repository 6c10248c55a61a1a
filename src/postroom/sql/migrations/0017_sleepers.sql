-- Until when a worker may be asleep, in seconds since 1970: an INSERT looks for sleepers only until then.
CREATE SEQUENCE postroom.email_sleepers;
CREATE SEQUENCE postroom.webhook_sleepers;
