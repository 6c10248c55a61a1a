"""Queue policy: every key with its default, and every bad value with its line."""

from __future__ import annotations

from datetime import timedelta

import asyncpg
import pytest

from tests.sql.conftest import Connect
from tests.sql.session import Session

DEFAULTS = {
    "email.limit.global": "100/60s",
    "email.limit.recipient": "10/60s",
    "email.backoff": "1s,5s,30s,5m,30m",
    "webhook.backoff": "1m,5m,30m,2h,24h",
    "email.on_uncertain": "retry",
    "lease": "60s",
    "retention.sent": "30d",
    "retention.processed": "30d",
    "retention.dead_letter": "off",
    "retention.failed": "90d",
    "retention.cron": "7d",
    "retention.body": "off",
    "retention.stats": "30d",
    "retention.audit": "365d",
    "cron.process-email-queue": "* * * * *",
    "cron.process-webhook-retries": "*/5 * * * *",
    "cron.cleanup": "15 3 * * *",
    "cron.reconcile": "7 * * * *",
    "cron.alerts": "* * * * *",
}
LIMIT = (
    "write a number of e-mails from 1 to 10000000, a slash and a window of 1s to 31d, such as 100/60s; or off"
)
FURTHER = (
    "email.limit.domain.DOMAIN, email.limit.sender.ADDRESS, email.limit.type.TYPE, "
    "email.limit.transport.smtp|smtps|resend|maildir or a transport's name"
)
BACKOFF = "write 1 to 50 spans of 1ms to 31d with commas between them, such as 1s,5s,30s,5m,30m"
LEASE = "write a span of 1s to 1d, such as 60s"
RETENTION = "write a span of 1m to 36500d, such as 30d; or off"


async def test_a_new_database_has_the_defaults(connect: Connect) -> None:
    """Every key of the contract, those of cron, and no other."""
    rows = await (await connect()).fetch("SELECT key, value FROM postroom.settings")
    assert {row["key"]: row["value"] for row in rows} == DEFAULTS


async def test_every_default_is_a_value_that_may_be_written(connect: Connect) -> None:
    """And is read back as it was."""
    session = await connect()
    for key, value in DEFAULTS.items():
        await session.set(key, value)
        assert await session.fetchval("SELECT value FROM postroom.settings WHERE key = $1", key) == value


async def test_good_values_are_taken(sql: Session) -> None:
    """All units, the bounds themselves, spaces and capitals."""
    for key, written, kept in (
        ("email.limit.global", "1/1s", "1/1s"),
        ("email.limit.recipient", "10000000/31d", "10000000/31d"),
        ("email.limit.global", " 5 / 1500MS ", "5/1500ms"),
        ("email.limit.recipient", "OFF", "off"),
        ("email.backoff", "1ms", "1ms"),
        ("webhook.backoff", "1s, 2m, 3h, 31d", "1s,2m,3h,31d"),
        ("email.backoff", ",".join(["1s"] * 50), ",".join(["1s"] * 50)),
        ("email.on_uncertain", "Park", "park"),
        ("lease", "1000ms", "1000ms"),
        ("lease", "1d", "1d"),
        ("retention.sent", "off", "off"),
        ("retention.cron", "1m", "1m"),
        ("retention.dead_letter", "36500d", "36500d"),
    ):
        await sql.set(key, written)
        assert await sql.fetchval("SELECT value FROM postroom.settings WHERE key = $1", key) == kept


async def test_a_bad_value_is_refused_with_a_line_that_says_what_is_allowed(sql: Session) -> None:
    """One line that names key and value; the old value stays."""
    limits = ["", "100", "100/", "/60s", "0/60s", "-1/60s", "1.5/60s", "10000001/60s", "99999999999/60s"]
    limits += ["100/999ms", "100/32d", "100/60", "100/1w", "100/60s/60s", "on", "999999999/999999999d"]
    backoffs = [
        "",
        ",",
        "1s,",
        "1s,,5s",
        "0s",
        "32d",
        "1",
        "1s;5s",
        "-1s",
        ",".join(["1s"] * 51),
        "999999999d",
        "off",
    ]
    spans = ["", "off", "999ms", "0s", "25h", "60", "1 minute", "999999999d", "1s,2s"]
    retentions = ["", "59s", "0d", "30", "-30d", "forever", "36501d", "999999999d"]
    before = {row["key"]: row["value"] for row in await sql.fetch("SELECT key, value FROM postroom.settings")}
    for keys, values, allowed in (
        (("email.limit.global", "email.limit.recipient"), limits, LIMIT),
        (("email.backoff", "webhook.backoff"), backoffs, BACKOFF),
        (("email.on_uncertain",), ["", "off", "retry,park"], "write retry or park"),
        (("lease",), spans, LEASE),
        ([key for key in DEFAULTS if key.startswith("retention.")], retentions, RETENTION),
    ):
        for key in keys:
            for value in (*values, None):
                with pytest.raises(asyncpg.InvalidParameterValueError) as refused:
                    await sql.set(key, value)
                message = str(refused.value)
                assert message.startswith(f"{key} = "), value
                assert message.endswith(f" is not allowed; {allowed}")
                assert "\n" not in message
    after = {row["key"]: row["value"] for row in await sql.fetch("SELECT key, value FROM postroom.settings")}
    assert after == before


async def test_an_unknown_key_is_refused_with_the_list_of_keys(sql: Session) -> None:
    """Also one that only looks like ours."""
    for key in ("email.limit", "retention.everything", "leases", ""):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="there is no setting") as refused:
            await sql.set(key, "1s")
        assert refused.value.hint == f"Settings: {', '.join(DEFAULTS)}, {FURTHER}"


async def test_a_plain_update_is_checked_as_well(sql: Session) -> None:
    """The trigger holds whichever way the value was written, and keeps the parsed columns right."""
    with pytest.raises(asyncpg.InvalidParameterValueError, match="is not allowed"):
        await sql.execute("UPDATE postroom.settings SET value = 'soon' WHERE key = 'lease'")
    await sql.execute("UPDATE postroom.settings SET value = '2m' WHERE key = 'lease'")
    assert await sql.fetchval("SELECT postroom.lease_length()") == timedelta(minutes=2)
    await sql.execute("UPDATE postroom.settings SET value = '7/30s' WHERE key = 'email.limit.global'")
    rule = await sql.fetchrow("SELECT * FROM postroom.limit_rule_of('email:global')")
    assert rule is not None
    assert (rule["amount"], rule["span"], rule["written"]) == (7, timedelta(seconds=30), "7/30s")


async def test_spans_are_read_as_people_write_them(sql: Session) -> None:
    """500ms, 3s, 5m, 2h, 30d; anything else is no span."""
    for written, expected in (
        ("500ms", timedelta(milliseconds=500)),
        ("3s", timedelta(seconds=3)),
        ("5m", timedelta(minutes=5)),
        ("2h", timedelta(hours=2)),
        ("30d", timedelta(days=30)),
    ):
        assert await sql.fetchval("SELECT postroom.span($1)", written) == expected
    for wrong in ("", "3", "s", "3 s", "1.5s", "-3s", "3w", "3S", "1234567890s", "3s\n", "999999999d", None):
        assert await sql.fetchval("SELECT postroom.span($1)", wrong) is None
