"""Behind a login: who may see the dashboard, and for how long."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from time import time

import pytest

from postroom.dashboard import sessions, throttle
from tests.dashboard.conftest import Visitor
from tests.http.conftest import KEY

KEY_HASH = hashlib.sha256(KEY.encode()).digest()
PAGES = ["", "/emails", "/webhooks?state=waiting", "/dead-letters", "/settings", "/cron", "/audit"]


def _cookie(visitor: Visitor, session: sessions.Session, key_hash: bytes = KEY_HASH) -> None:
    visitor.client.cookies.clear()
    visitor.client.cookies.set(sessions.COOKIE, sessions.write(session, key_hash), path="/dashboard")


@pytest.mark.parametrize("path", PAGES)
async def test_no_page_is_shown_without_a_login_and_the_login_leads_back(
    stranger: Visitor, path: str
) -> None:
    """The key, and then the page that was asked for."""
    answer = await stranger.client.get(f"/dashboard{path}")
    assert answer.status_code == 303
    form = await stranger.client.get(answer.headers["location"])
    assert 'type="password"' in form.text
    back = {"key": KEY, "to": f"/dashboard{path}"}
    answer = await stranger.client.post("/dashboard/login", data=back)
    assert answer.headers["location"] == f"/dashboard{path}"


async def test_a_wrong_key_opens_nothing_and_five_of_them_have_to_wait(stranger: Visitor) -> None:
    """401, then 429 with Retry-After, for the right key too."""
    for _ in range(throttle.FAILURES_MAX):
        answer = await stranger.log_in("wrong")
        assert (answer.status_code, answer.cookies.get(sessions.COOKIE)) == (401, None)
        assert "That key is not valid." in answer.text
    answer = await stranger.log_in()
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= throttle.WINDOW_S


async def test_the_cookie_is_for_no_script_and_no_other_site(stranger: Visitor) -> None:
    """HttpOnly, SameSite, a path of its own and an end."""
    written = (await stranger.log_in()).headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=lax", "Path=/dashboard", f"Max-Age={sessions.IDLE_S}"):
        assert part in written
    assert KEY not in written


async def test_a_session_ends_an_hour_after_its_last_use_and_half_a_day_after_its_beginning(
    stranger: Visitor,
) -> None:
    """By the time that is signed into the cookie."""
    now = int(time())
    fresh = sessions.begin(KEY_HASH, now)
    used = replace(fresh, began_at=now - 2 * sessions.IDLE_S, used_at=now - 120)
    unused = replace(fresh, began_at=now - 2 * sessions.IDLE_S, used_at=now - sessions.IDLE_S)
    old = replace(fresh, began_at=now - sessions.WHOLE_S, used_at=now - 1)
    for session, status in ((fresh, 200), (used, 200), (unused, 303), (old, 303)):
        _cookie(stranger, session)
        answer = await stranger.client.get("/dashboard")
        assert answer.status_code == status
        assert ("set-cookie" in answer.headers) == (session is used)


async def test_a_session_that_is_forged_or_of_another_key_is_none(stranger: Visitor) -> None:
    """Nothing of it is believed before its signature holds."""
    session = sessions.begin(KEY_HASH, int(time()))
    good = sessions.write(session, KEY_HASH)
    for cookie in (
        sessions.write(session, hashlib.sha256(b"another").digest()),
        good[:-2],
        good.partition(".")[0],
        f"{good.partition('.')[0]}.",
        "é",
        "." * 5_000,
    ):
        found = sessions.read(cookie, [KEY_HASH], int(time()))
        assert found is None
    assert sessions.read(good, [KEY_HASH], int(time())) == (session, KEY_HASH)


async def test_a_key_that_is_taken_away_ends_its_sessions(stranger: Visitor) -> None:
    """Those of keys that `postroom key new` has made, whose hashes are in the database."""
    key = "pr_another"
    database = stranger.served.room.database
    await database.execute("INSERT INTO postroom.service_keys (key_hash) VALUES (sha256($1))", key.encode())
    assert (await stranger.log_in(key)).status_code == 303
    await stranger.page()
    await database.execute("DELETE FROM postroom.service_keys")
    stranger.served.doors.keyring._stored_at -= 60  # as if some seconds had passed
    assert (await stranger.client.get("/dashboard")).status_code == 303


@pytest.mark.parametrize(
    "to", ["https://evil.example", "//evil.example", "/dashboard/../x//y", "/dashboardx", "\\"]
)
async def test_the_login_leads_to_no_other_site(stranger: Visitor, to: str) -> None:
    """Only to pages of the dashboard."""
    answer = await stranger.client.post("/dashboard/login", data={"key": KEY, "to": to})
    assert answer.headers["location"] == "/dashboard"


async def test_logging_out_forgets_the_session(visitor: Visitor) -> None:
    """In this browser."""
    assert (await visitor.submit("/logout")).status_code == 303
    assert (await visitor.client.get("/dashboard")).status_code == 303


@pytest.mark.parametrize("path", ["/settings", "/dead-letters/decide", "/logout"])
async def test_a_change_without_the_sessions_token_is_refused(visitor: Visitor, path: str) -> None:
    """A form of another site has the cookie, and no token; and the browser says where it comes from."""
    fields = {"key": "lease", "value": "5s", "what": "retry", "all": "yes"}
    for data in (fields, fields | {"csrf_token": "x"}, fields | {"csrf_token": "é"}):
        answer = await visitor.client.post(f"/dashboard{path}", data=data)
        assert answer.status_code == 403
    assert "lease = 5s" not in await visitor.page("/settings")


async def test_nothing_but_our_own_files_runs_or_is_loaded(visitor: Visitor) -> None:
    """By the policy of every page, and no page has a script or a style in itself."""
    for path in ("", "/emails", "/dead-letters", "/settings", "/cron", "/audit"):
        answer = await visitor.client.get(f"/dashboard{path}")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "<style" not in answer.text
        assert " style=" not in answer.text
        assert "<script>" not in answer.text
        assert "http://" not in answer.text.replace("http://www.w3.org", "")


async def test_files_are_served_to_all_and_kept_by_browsers(stranger: Visitor) -> None:
    """They hold no secret; what is not there is not found, whatever the name says."""
    for name in ("postroom.css", "postroom.js", "htmx-2.0.11.min.js", "uplot-1.6.32.min.js"):
        answer = await stranger.client.get(f"/dashboard/static/{name}")
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    for name in ("x.css", "..%2Fsite.py", "%2e%2e/site.py"):
        assert (await stranger.client.get(f"/dashboard/static/{name}")).status_code == 404
