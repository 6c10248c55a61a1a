"""The contenders of the e-mail benchmarks: how each one's queue is made, filled, worked off and checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import asyncpg

from bench import mails, program
from bench.program import Program
from bench.servers import Sink, create_database, execute
from postroom.database.migrate import migrate

CONCURRENCY = 100
"""What a worker of the e-mail queue has in flight where nobody sets POSTROOM_CONCURRENCY."""


class Contender(Protocol):
    """
    Something that sends queued mails.

    Attributes:
        database_url: Its own database, on the server that all contenders share.
        insert: The statement that queues one mail: recipient, subject, HTML.
    """

    database_url: str
    insert: str

    @property
    def name(self) -> str:
        """For tables."""
        ...

    async def empty(self) -> None:
        """Make its queue as new, with its settings."""
        ...

    async def unsent(self) -> int:
        """How many of its mails are not marked as sent."""
        ...

    def running(self, mode: str) -> AbstractContextManager[Program]:
        """Its worker, ready for the word; see bench/drivers for the modes."""
        ...


class Tunable(Protocol):
    """What runs with settings of its own, which it can tell people."""

    @property
    def settings(self) -> str: ...


Tried = TypeVar("Tried", bound=Tunable)


async def best_of(
    candidates: Iterable[Tried], rate_of: Callable[[Tried], Awaitable[float]]
) -> tuple[Tried, dict[str, float]]:
    """The one that is fastest here, and what each one's settings came to."""
    found = [(await rate_of(tried), tried) for tried in candidates]
    best = max(found, key=lambda rate_and_tried: rate_and_tried[0])[1]
    return best, {tried.settings: round(rate) for rate, tried in found}


@dataclass
class Postroom:
    """
    `postroom worker` with its default settings.

    Attributes:
        workers: How many of them, each in a process of its own.
        sink: Where its mails go; None: nowhere, its transport does nothing.
        limit: What both limits are set to; `off`, or far above what is reached, such as `1000000/60s`.
        concurrency: Attempts in flight at once.
    """

    database_url: str
    sink: Sink | None
    limit: str
    workers: int = 1
    insert: str = "INSERT INTO email_queue (to_email, subject, html) VALUES ($1, $2, $3)"
    concurrency: int = CONCURRENCY

    @property
    def name(self) -> str:
        further = "" if self.concurrency == CONCURRENCY else f", {self.concurrency} in flight"
        further += f", {self.workers} workers" if self.workers > 1 else ""
        return f"postroom, limits {self.limit}{further}"

    @staticmethod
    async def make_database(server_url: str) -> str:
        """A migrated database."""
        url = await create_database(server_url, "postroom_bench")
        await migrate(url)
        return url

    async def empty(self) -> None:
        await execute(
            self.database_url,
            "TRUNCATE public.email_queue, public.rate_limit_counters",
            f"SELECT postroom.set_setting('email.limit.global', '{self.limit}')",
            f"SELECT postroom.set_setting('email.limit.recipient', '{self.limit}')",
        )

    async def unsent(self) -> int:
        return await _number(self.database_url, "SELECT count(*) FROM email_queue WHERE status <> 'sent'")

    def running(self, mode: str) -> AbstractContextManager[Program]:
        return program.running(
            "postroom_worker",
            {
                "database_url": self.database_url,
                "transport": self.sink.url if self.sink is not None else "none",
                "sender": mails.SENDER,
                "concurrency": self.concurrency,
                "mode": mode,
                "workers": self.workers,
            },
        )


@dataclass
class PostOffice:
    """
    django-post-office's `send_queued_mail`.

    Attributes:
        processes, threads, batch: What its manual names for speed, with its defaults: `--processes`,
            THREADS_PER_PROCESS, BATCH_SIZE.
    """

    database_url: str
    sink: Sink
    processes: int = 1
    threads: int = 5
    batch: int = 100
    insert: str = f"""
        INSERT INTO post_office_email (
            "to", subject, html_message, from_email, cc, bcc, message, status, priority, backend_alias,
            created, last_updated
        )
        VALUES ($1, $2, $3, '{mails.SENDER}', '', '', '', 2, 1, '', now(), now())
        """

    @property
    def name(self) -> str:
        return "django-post-office"

    @property
    def settings(self) -> str:
        """Its settings, for people."""
        return f"processes {self.processes}, threads {self.threads}, batch {self.batch}"

    @staticmethod
    async def make_database(server_url: str) -> str:
        """A database with its tables."""
        url = await create_database(server_url, "post_office_bench")
        with program.running(
            "django_post_office",
            {"database_url": url, "port": 0, "threads": 1, "batch": 1, "mode": "migrate"},
        ):
            pass
        return url

    async def empty(self) -> None:
        await execute(self.database_url, "TRUNCATE post_office_email CASCADE")

    async def unsent(self) -> int:
        return await _number(self.database_url, "SELECT count(*) FROM post_office_email WHERE status <> 0")

    def running(self, mode: str) -> AbstractContextManager[Program]:
        return program.running(
            "django_post_office",
            {
                "database_url": self.database_url,
                "port": self.sink.port,
                "processes": self.processes,
                "threads": self.threads,
                "batch": self.batch,
                "mode": mode,
            },
        )


async def fill(contender: Contender, count: int, recipients: int, html: str | None = None) -> None:
    """Empty a contender's queue and put `count` mails into it, on a server that has nothing else to do."""
    await contender.empty()
    connection = await asyncpg.connect(contender.database_url)
    try:
        await connection.executemany(
            contender.insert,
            [
                (mails.recipient(number, recipients), mails.subject(number), html or mails.html(number))
                for number in range(count)
            ],
        )
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _number(url: str, query: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        number: int = await connection.fetchval(query)
    finally:
        await connection.close()
    return number
