"""Servers for the tests of transports, closed when the test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.email.transports.servers.certificates import Authority
from tests.email.transports.servers.resend_api import ResendApi
from tests.email.transports.servers.scripted_smtp import ScriptedSmtp


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def smtp() -> AsyncIterator[ScriptedSmtp]:
    """An SMTP server that fails as it is told."""
    server = ScriptedSmtp()
    await server.open()
    yield server
    await server.close()


@pytest.fixture
async def resend_api() -> AsyncIterator[ResendApi]:
    """A server that speaks Resend's API."""
    server = ResendApi()
    await server.open()
    yield server
    await server.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a maildir may be made."""
    return tmp_path / "mail"
