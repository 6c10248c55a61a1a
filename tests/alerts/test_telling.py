"""Once, again after a while, over; whatever restarts, and whichever target fails."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from standardwebhooks import Webhook

from postroom.alerts.rules import Found
from postroom.alerts.settings import Target
from postroom.alerts.store import AlertStore
from postroom.alerts.targets import without_secrets
from postroom.database.connect import Database
from postroom.errors import DatabaseUnavailable, PostroomError
from tests.alerts.conftest import SECRET, Watched, watched

FOUND = {"no_worker": [Found("email", "no worker of queue email is alive", 120)]}
NOTHING: dict[str, list[Found]] = {"no_worker": []}


class Clock:
    """A store whose time is what a test says it is."""

    def __init__(self, database: Database, now: datetime) -> None:
        self.store = AlertStore(database)
        self.now = now

    async def track(self, found: dict[str, list[Found]], **later: float) -> list[tuple[str, int, bool]]:
        """Let time pass, and track; of what is owed: its subject, how often it was repeated, whether over."""
        self.now += timedelta(**later)
        owed = await self.store.track(found, off=[], targets=["ops"], repeat_s=4 * 3600, now=self.now)
        for alert in owed:
            await self.store.taken(alert, "ops")
        return [(alert.subject, alert.repeats, alert.over_at is not None) for alert in owed]


async def test_an_alert_fires_once_repeats_and_says_when_it_is_over(
    database_url: str, tmp_path: Path
) -> None:
    """It fires when it has held for long enough; what was over may come again, as a new one."""
    database = Database(database_url)
    clock = Clock(database, await database.fetchval("SELECT clock_timestamp()"))
    assert await clock.track(FOUND) == []
    assert await clock.track(FOUND, minutes=1) == []
    assert await clock.track(FOUND, minutes=1) == [("email", 0, False)]
    assert await clock.track(FOUND, minutes=1) == []
    assert await clock.track(FOUND, hours=3, minutes=58) == []
    assert await clock.track(FOUND, minutes=1) == [("email", 1, False)]
    assert await clock.track(FOUND, minutes=1) == []
    assert await clock.track(FOUND, hours=4) == [("email", 2, False)]
    assert await clock.track(NOTHING, minutes=1) == [("email", 2, True)]
    assert await clock.track(NOTHING, minutes=1) == []
    assert await clock.track(FOUND, minutes=1) == []
    assert await clock.track(FOUND, minutes=2) == [("email", 0, False)]
    await database.close()


async def test_what_ends_before_it_was_told_ends_unsaid(database_url: str) -> None:
    """A transport that pauses for a second is no news."""
    database = Database(database_url)
    clock = Clock(database, await database.fetchval("SELECT clock_timestamp()"))
    assert await clock.track(FOUND) == []
    assert await clock.track(NOTHING, minutes=1) == []
    assert await clock.track(FOUND, minutes=2) == []
    assert await database.fetchval("SELECT count(*) FROM postroom.alerts") == 1
    await database.close()


async def test_a_rule_that_could_not_look_ends_nothing(database_url: str) -> None:
    """And one that is switched off is forgotten."""
    database = Database(database_url)
    clock = Clock(database, await database.fetchval("SELECT clock_timestamp()"))
    await clock.track(FOUND)
    assert await clock.track(FOUND, minutes=3) == [("email", 0, False)]
    assert await clock.track({}, minutes=1) == []
    assert [alert.over_at for alert in await clock.store.read()] == [None]
    await clock.store.track({}, off=["no_worker"], targets=["ops"], repeat_s=60)
    assert await clock.store.read() == []
    await database.close()


async def test_a_target_that_fails_is_tried_again_and_hinders_no_other(
    database_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run has failed and says which; its message is the same the next time; no secret is in the log."""
    async with watched(database_url, tmp_path, oldest_due="0s") as house:
        await house.send()
        house.hook.status = 503
        with pytest.raises(PostroomError, match="1 message sent; target hook: it answered 503"):
            await house.look()
        assert len(house.mailbox.mails) == 1
        with pytest.raises(PostroomError, match="0 messages sent; target hook: it answered 503"):
            await house.look()
        house.hook.status = 200
        assert await house.look() == "oldest_due found, 1 message sent"
        assert await house.look() == "oldest_due found, 0 messages sent"
        assert len(house.mailbox.mails) == 1
        assert len({headers["webhook-id"] for headers, _ in house.hook.requests}) == 1
        await _holds_no_secret(house, capfd.readouterr().err)


async def _holds_no_secret(house: Watched, log: str) -> None:
    row = await house.room.database.fetchval(
        "SELECT string_agg(alert::text, ' ') FROM postroom.alerts AS alert"
    )
    assert "alert.not_sent" in log
    for secret in (SECRET, "token-of-the-hook", "ops@example.com"):
        assert secret not in log
        assert secret not in row


async def test_what_was_told_is_known_after_a_restart(database_url: str, tmp_path: Path) -> None:
    """Another process, with the same settings, goes on where the first one was."""
    async with watched(database_url, tmp_path, oldest_due="0s") as house:
        await house.send()
        await house.look()
    async with watched(database_url, tmp_path, oldest_due="0s") as house:
        await house.look()
        assert house.hook.told == []
        await house.work()
        await house.look()
        assert house.hook.told == [("alert.over", "oldest_due", "email")]


async def test_a_run_that_dies_after_it_told_tells_again_rather_than_never(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same id, so that a receiver can tell."""

    async def dies(*_: object) -> None:
        raise DatabaseUnavailable("it is away")

    async with watched(database_url, tmp_path, oldest_due="0s") as house:
        await house.send()
        with monkeypatch.context() as patch:
            patch.setattr(AlertStore, "taken", dies)
            with pytest.raises(DatabaseUnavailable):
                await house.look()
        await house.look()
        first, again = (headers["webhook-id"] for headers, _ in house.hook.requests)
        assert first == again


async def test_a_webhook_is_signed_as_standard_webhooks_has_it(database_url: str, tmp_path: Path) -> None:
    """The official library verifies it; it says what, since when, what to do."""
    async with watched(database_url, tmp_path, oldest_due="0s") as house:
        await house.send()
        await house.look()
        ((headers, body),) = house.hook.requests
        Webhook(SECRET).verify(body, headers)
        document: dict[str, Any] = orjson.loads(body)
        assert document["type"] == "alert.fired"
        assert document["data"] | {"summary": "", "since": ""} == {
            "house": "https://post.example",
            "rule": "oldest_due",
            "subject": "email",
            "summary": "",
            "since": "",
            "repeats": 0,
            "over_at": None,
            "advice": "see which rows wait, and whether workers keep up",
            "command": "postroom status",
            "dashboard": "https://post.example/dashboard",
        }


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "mailtos://ops:pass%20word@mail.example:465?to=a@b.example",
            "login as ops with pass word to mail.example",
        ),
        ("slack://TokenA/TokenB/TokenC/#channel", "403 for /TokenA/TokenB/TokenC of hooks.slack.com"),
        ("https://hooks.example/x/long-token?key=abcdef", "hooks.example/x/long-token?key=abcdef refused"),
    ],
)
def test_what_a_target_says_is_shown_without_its_address(url: str, said: str) -> None:
    """Its host stays; whatever may be a password or a token goes."""
    shown = without_secrets(said, Target("ops", "x", url))
    for secret in ("pass word", "TokenA", "TokenB", "long-token", "abcdef"):
        assert secret not in shown
    assert ("mail.example" in said) == ("mail.example" in shown)
