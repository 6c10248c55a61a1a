"""GET /healthz and /readyz: open to all, and true."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from postroom import Room
from postroom.database.migrate import require_schema
from postroom.http import app, readiness
from postroom.http.server import serve
from tests.http.conftest import KEY, MAIL, SEND, Served, serving, settings_of
from tests.support.postgres import free_port


async def test_health_needs_no_key(served: Served) -> None:
    """A probe has none."""
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as probe:
        for path, status in (("/healthz", "ok"), ("/readyz", "ready")):
            answer = await probe.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": status})
        assert (await probe.head("/healthz")).status_code == 200
        assert (await probe.post("/readyz")).status_code == 405


async def test_a_database_that_is_not_migrated_is_not_ready(empty_database_url: str, tmp_path: Path) -> None:
    """Alive, but of no use: 503 and what to do; a request says the same."""
    async with Room(**settings_of(empty_database_url, tmp_path)) as room, serving(room) as served:
        answer = await served.client.get("/readyz")
        assert answer.status_code == 503
        assert "run `postroom migrate`" in answer.json()["error"]
        assert (await served.client.get("/healthz")).status_code == 200
        answer = await served.send(use_queue=True)
        assert answer.status_code == 500
        assert "run `postroom migrate`" in answer.json()["error"]


async def test_a_server_starts_without_its_database(tmp_path: Path) -> None:
    """It answers that it cannot: 503 to the probe, 500 to a caller, and no name of a host to anybody."""
    url = f"postgresql://postgres:secret@127.0.0.1:{free_port()}/nothing"
    room = Room(**settings_of(url, tmp_path))
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(app(room), "127.0.0.1", 0, ready=address.set_result, stop=stop))
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=await address, headers=headers, trust_env=False) as client:
        answers = [
            await client.get("/readyz"),
            await client.post(SEND, json=MAIL),
            await client.post(SEND, json=MAIL | {"use_queue": True}),
        ]
        assert [answer.status_code for answer in answers] == [503, 500, 500]
        for answer in answers:
            assert "the database does not answer" in answer.json()["error"]
            assert not any(word in answer.text for word in ("127.0.0.1", "nothing at", "secret"))
        assert (await client.get("/healthz")).status_code == 200
    stop.set()
    await task


async def test_many_probes_are_one_look(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may ask, so asking must not cost the database anything."""
    looks = 0

    async def counted(connection: Any) -> None:
        nonlocal looks
        looks += 1
        await require_schema(connection)

    monkeypatch.setattr(readiness, "require_schema", counted)
    async with Room(**settings_of(database_url, tmp_path)) as room:
        one = readiness.Readiness(room)
        assert {await one.problem() for _ in range(50)} == {None}
        assert set(await asyncio.gather(*(one.problem() for _ in range(50)))) == {None}
    assert 1 <= looks < 20
