"""A house with two targets on loopback that really take messages: a mailbox by SMTP, and a webhook."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from postroom import Room
from postroom.alerts.run import run_alerts
from postroom.alerts.store import Alert, AlertStore
from postroom.queue.engine import Pass
from tests.journey.programs import Programs
from tests.support.web import listening

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


@dataclass
class Mailbox:
    """What an SMTP server took, for the people who are told."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)

    @property
    def url(self) -> str:
        """As [alerts.targets] names it."""
        return f"mailto://127.0.0.1:{self.port}?from=postroom@example.com&to=ops@example.com"

    async def handle_DATA(self, _server: object, _session: object, envelope: Envelope) -> str:  # noqa: N802
        """Take a mail; see aiosmtpd."""
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 taken"


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def open_mailbox() -> Iterator[Mailbox]:
    """A mailbox on a free port."""
    mailbox = Mailbox(free_port())
    controller = Controller(mailbox, hostname="127.0.0.1", port=mailbox.port, ready_timeout=30)
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


@dataclass
class Hook:
    """
    A webhook's receiver.

    Attributes:
        status: What it answers.
        requests: Headers and body of each.
    """

    url: str
    status: int = 200
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def documents(self) -> list[dict[str, Any]]:
        """What came, as JSON."""
        return [orjson.loads(body) for _, body in self.requests]

    @property
    def told(self) -> list[tuple[str, str, str]]:
        """Type, rule and subject of what came."""
        return [(one["type"], one["data"]["rule"], one["data"]["subject"]) for one in self.documents]


@asynccontextmanager
async def open_hook() -> AsyncIterator[Hook]:
    """A receiver on a free port."""
    hook = Hook("")

    async def take(request: web.Request) -> web.Response:
        hook.requests.append(({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        return web.Response(status=hook.status)

    application = web.Application()
    application.router.add_post("/token-of-the-hook", take)
    async with listening(application) as port:
        hook.url = f"http://127.0.0.1:{port}/token-of-the-hook"
        yield hook


@dataclass
class Watched:
    """A house whose alerts are tested."""

    room: Room
    mailbox: Mailbox
    hook: Hook

    async def look(self, now: datetime | None = None) -> str:
        """One round of the job."""
        return await run_alerts(self.room, now)

    async def alerts(self) -> list[Alert]:
        """All that is known."""
        return await AlertStore(self.room.database).read()

    async def work(self) -> Pass:
        """A worker's pass over what is due."""
        return await self.room.email_engine().run_pass()

    async def send(self, count: int = 1) -> None:
        """Queue e-mails, each to somebody else."""
        mails = [{"to": f"a{n}@example.net", "subject": "Hi", "html": "<p>Hi</p>"} for n in range(count)]
        await self.room.send_many(mails)

    async def now(self) -> datetime:
        """By the database's clock."""
        now: datetime = await self.room.database.fetchval("SELECT clock_timestamp()")
        return now


@pytest.fixture
def programs(database_url: str, tmp_path: Path) -> Programs:
    """postroom's programs on the same database."""
    return Programs(tmp_path, {"POSTROOM_DATABASE_URL": database_url, "POSTROOM_FROM": "shop@example.com"})


OFF = dict.fromkeys(
    (
        "dead_letter",
        "oldest_due",
        "failure_rate",
        "transport_paused",
        "no_worker",
        "cron_silent",
        "snapshot_held",
        "disk",
    ),
    "off",
)


def alerts_of(mailbox: Mailbox, hook: Hook, **rules: object) -> dict[str, Any]:
    """A table [alerts] with both targets, and these rules alone."""
    targets = {"mail": mailbox.url, "hook": {"webhook": hook.url, "secret": SECRET}}
    return {"targets": targets, "rules": {**OFF, **rules}}


@asynccontextmanager
async def watched(
    database_url: str, tmp_path: Path, *, transport: str | None = None, **rules: object
) -> AsyncIterator[Watched]:
    """A house with these rules."""
    with open_mailbox() as mailbox:
        async with (
            open_hook() as hook,
            Room(
                database_url=database_url,
                public_url="https://post.example",
                sender="shop@example.com",
                transport=transport or f"maildir:{tmp_path / 'mail'}",
                alerts=alerts_of(mailbox, hook, **rules),
            ) as room,
        ):
            yield Watched(room, mailbox, hook)


@asynccontextmanager
async def embedded_house(
    data_dir: Path, mailbox: Mailbox, hook: Hook, **rules: object
) -> AsyncIterator[Watched]:
    """A house on the embedded database of this folder, which is migrated already."""
    async with Room(
        data_dir=data_dir,
        public_url="https://post.example",
        sender="shop@example.com",
        alerts=alerts_of(mailbox, hook, **rules),
    ) as room:
        yield Watched(room, mailbox, hook)
