"""Room: what a program holds of postroom. It opens the database and the way out, and queues e-mail."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

from postroom.database import embedded
from postroom.database.connect import Database
from postroom.email.delivery import Delivery
from postroom.email.message import OutgoingEmail
from postroom.email.store import EmailStore
from postroom.email.transports import from_urls
from postroom.queue.engine import Engine
from postroom.settings import Settings, load_settings
from postroom.version import VERSION


class Room:
    """
    The house as one object: settings, database, queue and transports.

    A program makes one and keeps it. The database is opened at the first call, or by `async with`;
    where POSTROOM_DATABASE_URL is unset the embedded PostgreSQL is started, and stopped with the last
    process that uses it.

    Args:
        settings: Ready-made settings; else they are loaded (environment, postroom.toml).
        overrides: Settings by name, such as `database_url=...`: they win over the environment.
    """

    def __init__(self, *, settings: Settings | None = None, **overrides: object) -> None:
        self.settings = settings if settings is not None else load_settings(**overrides)
        self._open = AsyncExitStack()
        self._database: Database | None = None
        self._delivery: Delivery | None = None

    async def open(self) -> Self:
        """Open the database; does nothing where it is open."""
        if self._database is None:
            url = await self.database_url()
            self._database = await Database.open(url, listen_url=self.settings.listen_url)
            self._open.push_async_callback(self._database.close)
        return self

    async def close(self) -> None:
        """Close what is open."""
        await self._open.aclose()
        self._database = None
        self._delivery = None

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def database_url(self) -> str:
        """The database's address; starts the embedded one where none is set."""
        if self.settings.database_url is not None:
            return self.settings.database_url
        return await self._open.enter_async_context(embedded.running(self.settings.data_dir))

    @property
    def database(self) -> Database:
        """The open database."""
        assert self._database is not None, "open the room first"
        return self._database

    @property
    def emails(self) -> EmailStore:
        """The e-mail queue's SQL."""
        return EmailStore(self.database, sender=self.settings.sender)

    @property
    def delivery(self) -> Delivery:
        """E-mail's way out: one for the whole process, so that its connections and its pauses are shared."""
        if self._delivery is None:
            transport = from_urls(self.settings.transport_urls, self.settings)
            self._open.push_async_callback(transport.close)
            self._delivery = Delivery(self.emails, transport)
        return self._delivery

    def email_engine(self) -> Engine[OutgoingEmail]:
        """A worker of the e-mail queue."""
        return Engine(
            self.delivery,
            self.database,
            concurrency=self.settings.concurrency,
            attempt_deadline_s=self.settings.attempt_deadline_s,
            version=VERSION,
        )
