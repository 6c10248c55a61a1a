"""What the tests of the SQL functions speak with: a connection, and workers that are only SQL calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from tests.support.waiting import until


@dataclass(frozen=True)
class Queue:
    """One of the two queues: what it is called in SQL."""

    name: str
    table: str
    done: str
    done_at: str
    batch: str
    mark_done: str
    mark_failed: str

    def __str__(self) -> str:
        return self.name


EMAIL = Queue(
    "email",
    "email_queue",
    "sent",
    "sent_at",
    "get_email_queue_batch",
    "mark_email_sent",
    "mark_email_failed",
)
WEBHOOK = Queue(
    "webhook",
    "webhook_retry_queue",
    "processed",
    "processed_at",
    "get_webhook_retry_batch",
    "mark_webhook_processed",
    "mark_webhook_failed",
)
QUEUES = (EMAIL, WEBHOOK)


@dataclass(frozen=True)
class Lease:
    """A claimed row: its id and the number of the lease."""

    id: UUID
    lease_no: int


class Session:
    """One connection to the database of the test."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self.connection = connection
        self.fetch = connection.fetch
        self.fetchrow = connection.fetchrow
        self.execute = connection.execute
        self.transaction = connection.transaction

    @property
    def pid(self) -> int:
        """The process id of its backend."""
        return self.connection.get_server_pid()

    async def fetchval(self, sql: str, *args: object) -> Any:
        """The first column of the first row."""
        return await self.connection.fetchval(sql, *args)

    async def now(self) -> Any:
        """The database's clock."""
        return await self.fetchval("SELECT clock_timestamp()")

    async def set(self, key: str, value: str | None) -> None:
        """Change a setting."""
        await self.execute("SELECT postroom.set_setting($1, $2)", key, value)

    async def no_limits(self) -> None:
        """Lift both limits."""
        await self.set("email.limit.global", "off")
        await self.set("email.limit.recipient", "off")

    async def insert(self, queue: Queue = EMAIL, **columns: object) -> UUID:
        """Insert a row as a plain caller does; what is not named keeps its default."""
        values: dict[str, object] = (
            {"to_email": "ada@example.com", "subject": "Hi", "html": "<p>Hi</p>"}
            if queue is EMAIL
            else {"webhook_type": "stripe", "payload": "{}"}
        ) | columns
        places = ", ".join(f"${place}" for place in range(1, len(values) + 1))
        inserted = await self.fetchval(
            f"INSERT INTO {queue.table} ({', '.join(values)}) VALUES ({places}) RETURNING id",
            *values.values(),
        )
        return UUID(str(inserted))

    async def insert_many(self, recipients: Sequence[str]) -> list[UUID]:
        """Queue one e-mail for each recipient, in this order."""
        return [await self.insert(to_email=to) for to in recipients]

    async def row(self, row_id: UUID, queue: Queue = EMAIL) -> asyncpg.Record:
        """One row, as it is now."""
        row: asyncpg.Record | None = await self.connection.fetchrow(
            f"SELECT * FROM {queue.table} WHERE id = $1", row_id
        )
        assert row is not None
        return row

    async def make_due(self, *ids: UUID, queue: Queue = EMAIL) -> None:
        """Let time pass for some rows: their delay is over, or their lease has ended."""
        await self.execute(
            f"UPDATE {queue.table} SET due_at = clock_timestamp() - interval '1 second' WHERE id = ANY ($1)",
            ids,
        )

    async def worker(self, queue: Queue = EMAIL) -> Worker:
        """One more registered worker that speaks through this connection."""
        worker = Worker(self, queue, uuid4())
        await self.execute(
            "SELECT postroom.register_worker($1, $2, 'host', 1, '0', true, false, '{}')",
            worker.id,
            queue.name,
        )
        return worker

    async def until_blocked(self, other: Session, task: asyncio.Future[Any]) -> None:
        """Wait until `other`'s statement, which runs as `task`, waits for a lock."""

        async def blocked() -> bool:
            assert not task.done(), "it did not wait for a lock"
            return bool(await self.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", other.pid))

        await until(blocked)


class Worker:
    """A worker as the database sees one: an id, and the calls that it makes."""

    def __init__(self, session: Session, queue: Queue, worker_id: UUID) -> None:
        self.session = session
        self.queue = queue
        self.id = worker_id

    async def claim(self, limit: int = 100) -> list[Lease]:
        """Lease what is due."""
        rows = await self.session.fetch(
            f"SELECT id, lease_no FROM postroom.claim_{self.queue}s($1, $2)", self.id, limit
        )
        return [Lease(row["id"], row["lease_no"]) for row in rows]

    async def begin(self, *leases: Lease, begun: Sequence[Lease] = ()) -> dict[UUID, asyncpg.Record]:
        """Take slots and write the start marks; the answers by id."""
        rows = await self.session.fetch(
            f"SELECT * FROM postroom.begin_{self.queue}s($1, $2, $3, $4, $5)",
            self.id,
            [lease.id for lease in leases],
            [lease.lease_no for lease in leases],
            [lease.id for lease in begun],
            [lease.lease_no for lease in begun],
        )
        return {row["id"]: row for row in rows}

    async def settle(
        self, verdict: str, *leases: Lease, reply: str | None = None, retry_after: float | None = None
    ) -> list[UUID]:
        """Write one verdict down for some rows; the ids of those that it changed."""
        rows = await self.session.fetch(
            f"SELECT id FROM postroom.settle_{self.queue}s($1, $2, $3, $4, $5, $6, $7)",
            self.id,
            [lease.id for lease in leases],
            [lease.lease_no for lease in leases],
            [verdict] * len(leases),
            [reply] * len(leases),
            [retry_after] * len(leases),
            [json.dumps({"outcome": verdict})] * len(leases),
        )
        return [row["id"] for row in rows]

    async def take_one(self) -> Lease:
        """Claim the only due row and begin its attempt."""
        (lease,) = await self.claim()
        answer = await self.begin(lease)
        assert answer[lease.id]["state"] == "begun"
        return lease

    async def die_during(self, row_id: UUID) -> None:
        """Begin the row's attempt and never come back; its lease is over."""
        lease = await self.take_one()
        assert lease.id == row_id
        await self.session.make_due(row_id, queue=self.queue)
