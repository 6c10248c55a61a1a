"""A browser's side of the dashboard: pages over a fresh database, without a browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from postroom import Room
from tests.http.conftest import KEY, Served, serving, settings_of


@dataclass
class Visitor:
    """Somebody with a browser, who keeps cookies and follows nothing by himself."""

    served: Served
    client: httpx.AsyncClient

    async def log_in(self, key: str = KEY) -> httpx.Response:
        """Show a key."""
        return await self.client.post("/dashboard/login", data={"key": key})

    async def page(self, path: str = "", status: int = 200) -> str:
        """A page's HTML."""
        answer = await self.client.get(f"/dashboard{path}")
        assert answer.status_code == status, answer.text
        return answer.text

    async def submit(self, path: str, **fields: str) -> httpx.Response:
        """Send a form of this session."""
        token = re.search(r'name="csrf_token" value="([^"]+)"', await self.page())
        assert token is not None
        return await self.client.post(f"/dashboard{path}", data={"csrf_token": token[1], **fields})


@pytest.fixture
async def stranger(database_url: str, tmp_path: Path) -> AsyncIterator[Visitor]:
    """Who has not logged in."""
    async with (
        Room(**settings_of(database_url, tmp_path)) as room,
        serving(room) as served,
        httpx.AsyncClient(base_url=served.url, timeout=30, trust_env=False) as client,
    ):
        yield Visitor(served, client)


@pytest.fixture
async def visitor(stranger: Visitor) -> Visitor:
    """Who has."""
    assert (await stranger.log_in()).status_code == 303
    return stranger
