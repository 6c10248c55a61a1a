"""Room: what a program holds of postroom. It opens the database and the way out, and queues e-mail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

from postroom.errors import ConfigError, PostroomError
from postroom.failpoints import reach
from postroom.settings import Settings, load_settings
from postroom.version import VERSION

if TYPE_CHECKING:
    from postroom.alerts.settings import AlertSettings
    from postroom.database.connect import Database
    from postroom.email.attachments import Attachment
    from postroom.email.delivery import Delivery
    from postroom.email.direct import DirectSends
    from postroom.email.enqueue import Email
    from postroom.email.message import OutgoingEmail
    from postroom.email.store import EmailStore
    from postroom.queue.claim import Work
    from postroom.queue.engine import Engine
    from postroom.queue.pauses import Pauses
    from postroom.telemetry.signals import Telemetry
    from postroom.webhooks.delivery import Delivery as WebhookDelivery
    from postroom.webhooks.handlers import Handlers
    from postroom.webhooks.registry import Registry
    from postroom.webhooks.slots import Slots
    from postroom.webhooks.source import Source
    from postroom.webhooks.store import ClaimedEvent, WebhookStore

F = TypeVar("F", bound="Callable[..., Any]")

LOCAL_SENDER = "postroom@localhost"


class Room:
    """
    The house as one object: settings, database, queue and transports.

    A program makes one and keeps it. The database is opened at the first call, or by `async with`;
    where POSTROOM_DATABASE_URL is unset the embedded PostgreSQL is started, and stopped with the last
    process that uses it.

    Attributes:
        telemetry: Where spans and metrics go; None, unless a process of postroom's was told to send them.

    Args:
        settings: Ready-made settings; else they are loaded (environment, postroom.toml).
        registry: Handlers that a framework has registered; else on() registers them.
        overrides: Settings by name, such as `database_url=...`: they win over the environment.

    Raises:
        ConfigError: A setting is wrong.
    """

    def __init__(
        self, *, settings: Settings | None = None, registry: Registry | None = None, **overrides: object
    ) -> None:
        self.settings = settings if settings is not None else load_settings(**overrides)
        self.telemetry: Telemetry | None = None
        self._exit = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._url: str | None = None
        self._database: Database | None = None
        self._delivery: Delivery | None = None
        self._pauses: Pauses | None = None
        self._handlers: tuple[Handlers, Slots, asyncio.Semaphore] | None = None
        self._registry = registry

    def on(self, source: str, *events: str, name: str | None = None) -> Callable[[F], F]:
        """
        Register a handler: a function (event, db) that `postroom worker --app module:room` runs.

        What it writes by `db` happens exactly once an event: `db` has an open transaction, in which
        postroom writes down that the handler is done. A coroutine function gets an asyncpg connection; a
        plain one runs in a thread and gets a psycopg connection.

        An exception undoes what it wrote, and it is run again later; PermanentFailure says that it will
        never succeed, TemporaryFailure(retry_after_s=...) when to try again.

        Args:
            events: Types such as `checkout.session.completed` or `checkout.*`; none stands for all.
            name: What is done is remembered by it; else it is the function's module and name.

        Raises:
            ConfigError: Another handler of the source has this name.
        """

        def register(function: F) -> F:
            self.registry.add(source, events, name, function)
            return function

        return register

    async def send(
        self,
        *,
        to: str,
        subject: str,
        html: str = "",
        text: str | None = None,
        from_email: str | None = None,
        reply_to: str | None = None,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        email_type: str | None = None,
        idempotency_key: str | None = None,
        send_at: datetime | None = None,
        priority: int = 0,
        max_attempts: int | None = None,
        attachments: Sequence[Attachment | Mapping[str, Any]] | None = None,
        connection: object = None,
    ) -> UUID:
        """
        Queue one e-mail. When this returns it will go out, whatever crashes.

        Args:
            to: One address; one e-mail goes to one recipient.
            html: May be left out where there is a text.
            text: The plain part; made from html where there is none.
            from_email: `a@b.c` or `Name <a@b.c>`; POSTROOM_FROM where there is none.
            idempotency_key: The same key gives the id of the first e-mail and queues nothing, as long as
                that row exists. Give one wherever the call may be repeated.
            send_at: Not before this moment; it must have a time zone.
            priority: Higher goes first among what is due.
            max_attempts: 6 where there is none.
            attachments: Files that go with it, such as `[Attachment.from_file("invoice.pdf")]`, or objects
                as Resend's API has them.
            connection: An asyncpg or psycopg (sync or async) connection, or a session or connection of
                SQLAlchemy: the e-mail is queued in its transaction, which stays the caller's, and goes out
                if that commits.

        Returns:
            The e-mail's id.

        Raises:
            InvalidEmail: It can never be stored or sent; the error names the field.
            DatabaseUnavailable: Nothing is known to be queued; repeat it, with the same idempotency_key.
            SchemaError: The database is not migrated.
        """
        from postroom.email.enqueue import Email

        email = Email(
            to=to,
            subject=subject,
            html=html,
            text=text,
            from_email=from_email,
            reply_to=reply_to,
            headers=headers,
            metadata=metadata,
            email_type=email_type,
            idempotency_key=idempotency_key,
            send_at=send_at,
            priority=priority,
            max_attempts=max_attempts,
            attachments=attachments,
        )
        return await self.send_email(email, connection=connection)

    async def send_email(self, email: Email, *, connection: object = None) -> UUID:
        """Queue one e-mail that is an Email already; see send()."""
        from postroom.email import enqueue

        checked = [enqueue.check(email)]
        if connection is not None:
            return (await enqueue.enqueue_within(connection, checked))[0]
        await self.open()
        return (await enqueue.enqueue(self.database, checked))[0]

    async def send_many(
        self, emails: Sequence[Email | Mapping[str, Any]], *, connection: object = None
    ) -> list[UUID]:
        """
        Queue many e-mails: all of them, or none.

        Args:
            emails: Emails, or dictionaries with the arguments of send(); at most 10,000.
            connection: As in send().

        Returns:
            Their ids, in their order.

        Raises:
            InvalidEmail: One of them can never be stored or sent, such as `emails[3].to`; none is queued.
            DatabaseUnavailable, SchemaError: As send().
        """
        from postroom.email import enqueue

        checked = enqueue.check_many(emails)
        if not checked:
            return []
        if connection is not None:
            return await enqueue.enqueue_within(connection, checked)
        await self.open()
        return await enqueue.enqueue(self.database, checked)

    # Opening and closing

    async def open(self) -> Self:
        """
        Open the database; does nothing where it is open.

        Raises:
            ConfigError: The address, the user, the password or the server's version is wrong.
            DatabaseUnavailable: Nobody answers there.
        """
        if self._loop is not None:
            self._require_this_loop()
        if self._database is not None:
            return self
        async with self._opening:
            if self._database is None:
                from postroom.database.connect import Database

                url = await self.database_url()
                database = await Database.open(url, listen_url=self.settings.listen_url)
                self._exit.push_async_callback(database.close)
                self._loop = asyncio.get_running_loop()
                self._database = database
        return self

    async def close(self) -> None:
        """Close what is open; the room can be opened again."""
        exits, self._exit = self._exit, AsyncExitStack()
        self._database = self._delivery = self._pauses = self._handlers = self._url = self._loop = None
        await exits.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def database_url(self) -> str:
        """The database's address; starts the embedded one where none is set."""
        if self.settings.database_url is not None:
            return self.settings.database_url
        if self._url is None:
            from postroom.database import embedded

            self._url = await self._exit.enter_async_context(embedded.running(self.settings.data_dir))
        return self._url

    # What the parts of the house use

    @property
    def is_open(self) -> bool:
        """Whether the database has been opened."""
        return self._database is not None

    @property
    def database(self) -> Database:
        """The open database."""
        assert self._database is not None, "open the room first"
        return self._database

    @property
    def sender(self) -> str | None:
        """
        The sender where an e-mail names none: POSTROOM_FROM.

        Where nothing leaves the machine anybody will do, so that the first e-mail needs no setting.
        """
        if self.settings.sender is None and all(
            url.startswith("maildir:") for url in self.settings.transport_urls
        ):
            return LOCAL_SENDER
        return self.settings.sender

    @property
    def emails(self) -> EmailStore:
        """The e-mail queue's SQL."""
        from postroom.email.store import EmailStore

        return EmailStore(self.database, sender=self.sender)

    @property
    def pauses(self) -> Pauses:
        """What persons have paused, as this process knows it."""
        if self._pauses is None:
            from postroom.queue.pauses import Pauses

            self._pauses = Pauses(self.database)
        return self._pauses

    @property
    def delivery(self) -> Delivery:
        """E-mail's way out: one for the whole process, so that its connections and its pauses are shared."""
        if self._delivery is None:
            from postroom.email.delivery import Delivery
            from postroom.email.transports import from_urls

            transport = from_urls(self.settings.transport_urls, self.settings)
            self._exit.push_async_callback(transport.close)
            self._delivery = Delivery(self.emails, transport, self.pauses)
        return self._delivery

    @property
    def transport_names(self) -> list[str]:
        """The transports of POSTROOM_TRANSPORT as status shows them; none where it is wrong."""
        try:
            return self.delivery.transport.names
        except ConfigError:
            return []

    def email_engine(self, *, attempt_deadline_s: float | None = None) -> Engine[OutgoingEmail]:
        """A worker of the e-mail queue."""
        from postroom.queue.engine import Engine

        work: Work[OutgoingEmail] = self.delivery
        if self.telemetry is not None:
            from postroom.telemetry.attempts import traced_emails

            work = traced_emails(work, self.telemetry, self.database)
        return Engine(
            work,
            self.database,
            concurrency=self.settings.email_concurrency,
            attempt_deadline_s=attempt_deadline_s or self.settings.attempt_deadline_s,
            version=VERSION,
        )

    @property
    def registry(self) -> Registry:
        """The handlers that this program has registered."""
        if self._registry is None:
            from postroom.webhooks.registry import Registry

            self._registry = Registry()
        return self._registry

    @cached_property
    def sources(self) -> dict[str, Source]:
        """
        The sources of postroom.toml.

        Raises:
            ConfigError: One of them is wrong.
        """
        from postroom.webhooks.source_settings import read_sources

        return read_sources(self.settings)

    @cached_property
    def alerts(self) -> AlertSettings:
        """
        Who is told of what is wrong.

        Raises:
            ConfigError: The table [alerts] of postroom.toml is wrong.
        """
        from postroom.alerts.settings import read_alert_settings

        return read_alert_settings(self.settings)

    @property
    def webhooks(self) -> WebhookStore:
        """The webhook queue's SQL."""
        from postroom.webhooks.store import WebhookStore

        return WebhookStore(self.database)

    async def prepare_handlers(self) -> None:
        """
        Get ready to run handlers; those of a program that was given by --app are shown to every worker.

        Raises:
            ConfigError: A handler cannot be run, or another program has handlers of the same source.
        """
        if self._handlers is None:
            self._handlers = await self._made_handlers()
        app, of = self.registry.app, self.registry.of
        if app is None:
            return
        brought = [
            (source, one.handler.name, one.handler.events) for source, ones in of.items() for one in ones
        ]
        reach("handlers.register.before")
        others = await self.webhooks.register_handlers(app, brought)
        reach("handlers.register.after")
        if others:
            raise ConfigError(
                f"--app {app}: {others[0]} has handlers of the same source, and one program must have all of "
                f"a source; where that one is gone for good, run `postroom webhooks forget {others[0]}`"
            )

    def webhook_delivery(self) -> WebhookDelivery:
        """What one worker does with events; prepare_handlers() comes first."""
        from postroom.webhooks.delivery import Delivery

        assert self._handlers is not None, "prepare_handlers() comes first"
        return Delivery(self.webhooks, *self._handlers, self.pauses)

    def webhook_engine(self, *, attempt_deadline_s: float | None = None) -> Engine[ClaimedEvent]:
        """A worker of the webhook queue; prepare_handlers() comes first."""
        from postroom.queue.engine import BUFFER_PER_ATTEMPT, Engine

        work: Work[ClaimedEvent] = self.webhook_delivery()
        if self.telemetry is not None:
            from postroom.telemetry.attempts import traced_events

            work = traced_events(work, self.telemetry, self.database)
        return Engine(
            work,
            self.database,
            concurrency=self.settings.webhook_concurrency,
            buffered_max=self.settings.concurrency * BUFFER_PER_ATTEMPT,
            attempt_deadline_s=attempt_deadline_s or self.settings.attempt_deadline_s,
            version=VERSION,
        )

    async def further_connections(self, *, max_size: int, command_timeout_s: float) -> Database:
        """A pool for work that must neither wait for the others nor hold them up; the room closes it."""
        from postroom.database.connect import Database

        database = Database(
            await self.database_url(),
            listen_url=self.settings.listen_url,
            max_size=max_size,
            command_timeout_s=command_timeout_s,
        )
        self._exit.push_async_callback(database.close)
        return database

    async def _made_handlers(self) -> tuple[Handlers, Slots, asyncio.Semaphore]:
        from postroom.webhooks.code import CONNECTIONS_MAX, CodeRunner
        from postroom.webhooks.handlers import Handlers
        from postroom.webhooks.slots import Slots
        from postroom.webhooks.sql import SqlHandler
        from postroom.webhooks.url import UrlRunner

        connections = min(CONNECTIONS_MAX, self.settings.concurrency)
        # Long handlers must not keep claims and settles waiting.
        effects = await self.further_connections(
            max_size=CONNECTIONS_MAX, command_timeout_s=self.settings.attempt_deadline_s
        )
        code = CodeRunner(effects, await self.database_url())
        urls = UrlRunner(connections=self.settings.concurrency)
        for close in (code.close, urls.close):
            self._exit.push_async_callback(close)
        handlers = Handlers(
            self.sources,
            self.registry.of,
            store=self.webhooks,
            sql=partial(
                SqlHandler, effects, calls_max=connections, deadline_s=self.settings.attempt_deadline_s
            ),
            code=code,
            url=urls,
        )
        return handlers, Slots(connections), asyncio.Semaphore(self.settings.concurrency)

    def direct_sends(self) -> DirectSends:
        """What attempts e-mails at once, while somebody waits; whoever makes it closes it."""
        from postroom.email.direct import DEADLINE_S, DirectSends

        deadline_s = min(self.settings.attempt_deadline_s, DEADLINE_S)
        return DirectSends(
            self.emails,
            self.email_engine(attempt_deadline_s=deadline_s),
            at_once=self.settings.concurrency,
        )

    def _require_this_loop(self) -> None:
        if self._loop is asyncio.get_running_loop():
            return
        if self._loop is not None and not self._loop.is_closed():
            raise PostroomError("this Room is open in another event loop: make one Room for each of them")
        # asyncio.run() has ended, and with it whatever was open: as if nothing had been.
        self._exit = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._database = self._delivery = self._pauses = self._handlers = self._url = self._loop = None
