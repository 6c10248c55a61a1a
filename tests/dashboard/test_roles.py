"""Who may do what: every address of the dashboard, for a stranger, a viewer and an operator."""

from __future__ import annotations

import re
from dataclasses import replace
from time import time
from uuid import UUID

import pytest
from starlette.routing import Route

from postroom.dashboard import sessions
from postroom.dashboard.routes import ROUTES
from postroom.database.audit import Actor
from postroom.database.keys import Role, make_key, revoke_key
from tests.dashboard.conftest import Visitor
from tests.dashboard.test_login import KEY_HASH
from tests.dashboard.test_pages import _dead
from tests.http.conftest import KEY

ADA = Actor("ada@house", "cli")
OPEN_TO_ALL = {"/dashboard/login", "/dashboard/static/{name}"}
NO_CHANGE = {"/dashboard/logout"}

READS = [route.path for route in ROUTES if "GET" in (route.methods or ()) and route.path not in OPEN_TO_ALL]
CHANGES = [
    route.path
    for route in ROUTES
    if route.path not in OPEN_TO_ALL and {*(route.methods or ())} - {"GET", "HEAD"}
]


def _address(path: str) -> str:
    """A route's address, with something in its places."""
    filled = path.replace("{kind}", "emails").replace("{id:uuid}", str(UUID(int=1)))
    return re.sub(r"\{[^}]*\}", "x", filled)


async def _key(visitor: Visitor, role: Role, name: str | None = None) -> str:
    key = await make_key(visitor.served.room.database, role, name, by=ADA)
    visitor.served.doors.keyring._stored_at -= 60  # as if some seconds had passed: it is looked up at once
    return key


async def _token(visitor: Visitor) -> str:
    token = re.search(r'name="csrf_token" value="([^"]+)"', await visitor.page())
    assert token is not None
    return token[1]


def test_every_address_is_walked_over() -> None:
    """A new one is in the matrix by itself, and none is a mount that would hide others."""
    assert all(isinstance(route, Route) for route in ROUTES)
    assert {*READS, *CHANGES, *OPEN_TO_ALL} == {route.path for route in ROUTES}
    for route in ROUTES:
        assert {*(route.methods or ())} <= {"GET", "HEAD", "POST"}


@pytest.mark.parametrize("path", READS)
async def test_a_page_is_for_viewers_and_operators_and_for_no_stranger(stranger: Visitor, path: str) -> None:
    """What is not there is not found; nobody who has logged in is refused."""
    assert (await stranger.client.get(_address(path))).status_code == 303
    for key in (await _key(stranger, "viewer"), KEY):
        await stranger.log_in(key)
        assert (await stranger.client.get(_address(path))).status_code in (200, 404)


@pytest.mark.parametrize("path", CHANGES)
async def test_a_change_is_for_operators_alone(stranger: Visitor, path: str) -> None:
    """A viewer is told why; without the session's token nobody, nor with an old one."""
    address = _address(path)
    assert (await stranger.client.post(address)).headers["location"] == "/dashboard/login"

    await stranger.log_in(await _key(stranger, "viewer"))
    assert (await stranger.client.post(address)).status_code == 403
    if path not in NO_CHANGE:
        refused = await stranger.client.post(address, data={"csrf_token": await _token(stranger)})
        assert refused.status_code == 403
        assert "only an operator may change this" in refused.text

    await stranger.log_in(KEY)
    assert (await stranger.client.post(address)).status_code == 403
    token = await _token(stranger)
    over = replace(sessions.begin(KEY_HASH, int(time())), used_at=int(time()) - sessions.IDLE_S)
    stranger.client.cookies.clear()
    answer = await stranger.client.post(
        address,
        data={"csrf_token": token},
        headers={"cookie": f"{sessions.COOKIE}={sessions.write(over, KEY_HASH)}"},
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/login")

    await stranger.log_in(KEY)
    answer = await stranger.client.post(address, data={"csrf_token": await _token(stranger)})
    assert answer.status_code not in (401, 403)


async def test_a_viewer_sees_no_button_that_would_be_refused(stranger: Visitor) -> None:
    """The one that logs out is left."""
    letter = await _dead(stranger)
    await stranger.log_in(await _key(stranger, "viewer"))
    for path in (
        "",
        "/emails",
        "/dead-letters",
        f"/emails/{letter}",
        "/settings",
        "/cron",
        "/queues",
        "/audit",
    ):
        forms = re.findall(r'<form[^>]*method="post"[^>]*>.*?</form>', await stranger.page(path), re.DOTALL)
        assert all("<button" not in form or "Log out" in form for form in forms)
    await stranger.log_in(KEY)
    assert "Retry all" in await stranger.page("/dead-letters")


async def test_a_viewers_key_does_not_open_the_api(stranger: Visitor) -> None:
    """It is known, so the answer is 403, not 401; an operator's of the database opens it."""
    for role, status in (("viewer", 403), ("operator", 400)):
        key = await _key(stranger, "viewer" if role == "viewer" else "operator")
        answer = await stranger.client.post(
            "/functions/v1/send-email", json={}, headers={"authorization": f"Bearer {key}"}
        )
        assert answer.status_code == status
        assert ("a viewer's key opens the dashboard's pages alone" in answer.text) == (role == "viewer")


async def test_a_revoked_key_ends_its_sessions_and_no_others(stranger: Visitor) -> None:
    """Within seconds, in every process."""
    database = stranger.served.room.database
    await stranger.log_in(await _key(stranger, "operator", "ada"))
    await stranger.page()
    other = await _key(stranger, "viewer", "grace")
    await revoke_key(database, "ada", by=ADA)
    stranger.served.doors.keyring._stored_at -= 60  # as if some seconds had passed
    assert (await stranger.client.get("/dashboard")).status_code == 303
    assert (await stranger.log_in(other)).status_code == 303
    await stranger.page()


async def test_the_trail_names_the_key_that_was_shown(stranger: Visitor) -> None:
    """By its name; where it has none, by the beginning of its hash; the process's own is the service key."""
    for number, key in enumerate([await _key(stranger, "operator", "ada"), KEY]):
        await stranger.log_in(key)
        await stranger.submit("/settings", key="lease", value=f"{50 + number}s")
    page = await stranger.page("/audit")
    assert re.findall(r"<td[^>]*>(ada|service key)</td>", page) == ["service key", "ada"]
