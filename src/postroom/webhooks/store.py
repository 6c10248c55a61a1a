"""The webhook queue's SQL: every statement that the house says to webhook_retry_queue stands here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from postroom.database.audit import Actor, record
from postroom.database.connect import Database
from postroom.database.connection import Connection
from postroom.errors import NotStarted
from postroom.queue import statements
from postroom.queue.claim import Begun, Claim, Settled, Settlement
from postroom.webhooks.event import Event, IncomingEvent, headers_list, headers_object

LEASE_LOST = "PR001"

FINISH_HANDLER = "SELECT postroom.finish_handler({}, {}, {}, {}, {})"
"""Worker, id, lease_no, handler, stopped; any driver says it in the transaction of the handler's effect."""


@dataclass(frozen=True)
class ClaimedEvent:
    """
    An event that a worker holds.

    Attributes:
        worker: Who holds it.
        done: The handlers that are done with it.
        stopped: The handlers that want it never again.
    """

    event: Event
    worker: UUID
    done: frozenset[str]
    stopped: frozenset[str]


@dataclass(frozen=True, slots=True)
class Ran:
    """
    One run of a handler.

    Attributes:
        event: The row's id.
        outcome: `done`, `temporary` or `permanent`.
    """

    event: UUID
    source: str
    handler: str
    outcome: str
    took_ms: int


@dataclass(frozen=True, slots=True)
class Handled:
    """
    How a SQL handler's function ended for one event.

    Attributes:
        error: NotStarted where the lease had passed on; what the function raised; None where it is done.
        took_s: With its mark and its commit.
    """

    error: Exception | None
    took_s: float


_SETTLE = """
    SELECT id, status, attempts, next_retry_at
    FROM postroom.settle_webhooks($1, $2, $3, $4, $5, $6, $7::text[]::jsonb[])
"""

# In the same transaction, so that they agree with the rows, and once: a settle that is repeated finds no row.
_SETTLE_AND_COUNT = f"""
    WITH settled AS MATERIALIZED ({_SETTLE}),
    counted AS (
        INSERT INTO postroom.tallies (
            queue, kind, transport, outcome, status, wait_ms, attempt_ms, total_ms
        )
        SELECT
            'handler', ran.handler, '', ran.outcome, '',
            array_fill(NULL::integer, ARRAY[count(*)::integer]),
            array_agg(ran.took_ms),
            array_fill(NULL::integer, ARRAY[count(*)::integer])
        FROM unnest($8::uuid[], $9::text[], $10::text[], $11::integer[])
            AS ran (id, handler, outcome, took_ms)
        JOIN settled ON settled.id = ran.id
        GROUP BY ran.handler, ran.outcome
    )
    SELECT * FROM settled
"""  # noqa: S608 - a statement of ours


class WebhookStore:
    """
    Stores, claims, begins and settles webhook events.

    Attributes:
        not_of: Sources whose events this worker leaves alone: another one has their handlers.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.not_of: tuple[str, ...] = ()

    async def keep(self, events: Sequence[IncomingEvent]) -> set[UUID]:
        """
        Store what has come, in one statement.

        Returns:
            The ids that are stored; the others were there before. A call whose answer was lost can be
            repeated: it gives the same again.

        Raises:
            DatabaseUnavailable: They are not known to be stored.
        """
        rows = await self._database.fetch(
            """
            SELECT id
            FROM postroom.store_webhooks(
                $1, $2, $3, $4, $5, $6::text[]::jsonb[], $7, $8, $9::text[]::jsonb[], $10, $11,
                $12::text[]::numeric[], $13
            ) AS id
            """,
            [event.id for event in events],
            [event.source for event in events],
            [event.event_id for event in events],
            [event.event_type for event in events],
            [event.payload_text() for event in events],
            [headers_object(event.request.headers) for event in events],
            [event.request.method for event in events],
            [event.target for event in events],
            [headers_list(event.request.headers) for event in events],
            [event.request.body for event in events],
            [event.lane for event in events],
            [event.lane_place for event in events],
            [event.lane_holds for event in events],
        )
        return {row["id"] for row in rows}

    async def claim(self, worker: UUID, limit: int, before: datetime | None) -> list[Claim[ClaimedEvent]]:
        """Lease up to `limit` due events."""
        asked_at = monotonic()
        rows = await self._database.fetch(
            "SELECT * FROM postroom.claim_webhooks($1, $2, $3, $4)", worker, limit, before, list(self.not_of)
        )
        return [
            Claim(
                row["id"], _claimed(row, worker), row["lease_no"], row["lease_s"], asked_at + row["lease_s"]
            )
            for row in rows
        ]

    async def begin(
        self, worker: UUID, asked: Sequence[Claim[ClaimedEvent]], begun: Sequence[Claim[ClaimedEvent]]
    ) -> list[Begun]:
        """Write the start marks."""
        rows = await self._database.fetch(
            "SELECT id, state, waits_for, due_at FROM postroom.begin_webhooks($1, $2, $3, $4, $5)",
            worker,
            *statements.leases(asked),
            *statements.leases(begun),
        )
        return [statements.begun(row) for row in rows]

    async def settle(
        self, worker: UUID, settlements: Sequence[Settlement[ClaimedEvent]], ran: Sequence[Ran] = ()
    ) -> list[Settled]:
        """
        Write outcomes down, in one statement; what has passed to another worker is not in the answer.

        Args:
            ran: The handlers that ran for these events: they are counted with the outcome, or not at all.
        """
        rows = await self._database.fetch(
            _SETTLE_AND_COUNT if ran else _SETTLE,
            *statements.outcomes(worker, settlements),
            *(zip(*map(_columns, ran), strict=True) if ran else ()),
        )
        return [statements.settled(row) for row in rows]

    async def extend(self, worker: UUID, claims: Sequence[Claim[ClaimedEvent]]) -> set[UUID]:
        """Take another lease of events that are held; returns those that are still ours."""
        rows = await self._database.fetch(
            "SELECT postroom.extend_webhook_leases($1, $2, $3) AS id",
            worker,
            *statements.leases(claims),
        )
        return {row["id"] for row in rows}

    async def wait_s(self) -> float | None:
        """Seconds until an event can be claimed: 0 now, None where nothing waits."""
        seconds: float | None = await self._database.fetchval(
            "SELECT postroom.webhook_wait_s($1)", list(self.not_of)
        )
        return seconds

    async def tend(self) -> None:
        """Write outcomes that a row had refused."""
        await self._database.execute("SELECT postroom.settle_refused_webhooks()")

    async def register_handlers(
        self, app: str, handlers: Sequence[tuple[str, str, tuple[str, ...]]]
    ) -> list[str]:
        """
        Show every worker which handlers a program brings, as (source, name, events).

        Returns:
            The other programs that have handlers of these sources: then nothing is registered.
        """
        async with self._database.transaction() as connection:
            # Whatever the database's default is.
            await connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            rows = await connection.fetch(
                "SELECT app FROM postroom.register_handlers($1, $2, $3, $4::text[]::jsonb[]) AS app",
                app,
                [source for source, _, _ in handlers],
                [name for _, name, _ in handlers],
                [orjson.dumps(events).decode() for _, _, events in handlers],
            )
        return [row["app"] for row in rows]

    async def sources_of_others(self, own: Sequence[tuple[str, str]]) -> set[str]:
        """The sources that have a registered handler which is not among one's own, each (source, name)."""
        rows = await self._database.fetch(
            "SELECT source FROM postroom.sources_of_others($1, $2) AS source",
            [source for source, _ in own],
            [name for _, name in own],
        )
        return {row["source"] for row in rows}

    async def programs_of(self, sources: Sequence[str]) -> dict[str, list[str]]:
        """The programs that have registered handlers of these sources, as they are given to --app."""
        rows = await self._database.fetch(
            """
            SELECT handlers.source, array_agg(DISTINCT handlers.app ORDER BY handlers.app) AS apps
            FROM postroom.handlers
            WHERE handlers.source = ANY ($1)
            GROUP BY handlers.source
            """,
            list(sources),
        )
        return {row["source"]: row["apps"] for row in rows}

    async def forget_handlers(self, app: str, by: Actor) -> list[tuple[str, str]]:
        """Forget a program that is gone for good; returns its handlers, each (source, name)."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch("SELECT source, name FROM postroom.forget_handlers($1)", app)
            if rows:
                handlers = [f"{row['source']}/{row['name']}" for row in rows]
                await record(connection, by, "handlers.forget", {"program": app, "handlers": handlers})
        return [(row["source"], row["name"]) for row in rows]

    async def finish_handler(
        self,
        worker: UUID,
        claim: Claim[ClaimedEvent],
        handler: str,
        *,
        stopped: bool = False,
        within: Connection | None = None,
    ) -> None:
        """
        Write down that a handler is done with an event, or wants it never again.

        Args:
            within: The connection with the transaction of the handler's effect; its own where there is none.

        Raises:
            NotStarted: The lease has passed to another worker: the effect must be undone.
            DatabaseUnavailable: It is not known to be written.
        """
        statement = FINISH_HANDLER.format("$1", "$2", "$3", "$4", "$5")
        arguments = (worker, claim.id, claim.lease_no, handler, stopped)
        try:
            await (within or self._database).execute(statement, *arguments)
        except asyncpg.PostgresError as error:
            raise lease_lost_or(error) from error

    async def handle(
        self,
        worker: UUID,
        claims: Sequence[Claim[ClaimedEvent]],
        handler: str,
        function: str,
        *,
        limit_s: float,
        deadline_s: float,
    ) -> list[Handled | None]:
        """
        Call a function (payload jsonb, event_id text) for begun events, each in a transaction with its mark.

        Args:
            function: Schema and name, quoted as SQL needs it.
            limit_s: No further one is begun after so many seconds.
            deadline_s: For all of them.

        Returns:
            What became of each, in their order; None of one that was not begun. A call that raises may be
            repeated: what is done is not done again.
        """
        row = await self._database.fetchrow(
            "CALL postroom.handle_webhooks($1, $2, $3, $4, $5, $6, NULL, NULL, NULL)",
            worker,
            *statements.leases(claims),
            handler,
            function,
            timedelta(seconds=limit_s),
            deadline_s=deadline_s,
        )
        assert row is not None
        begun = [
            _handled(state, error, ms)
            for state, error, ms in zip(row["p_states"], row["p_errors"], row["p_ms"], strict=False)
        ]
        return begun + [None] * (len(claims) - len(begun))


def lease_lost_or(error: asyncpg.PostgresError) -> Exception:
    """What finish_handler's refusal means: NotStarted; any other error as it is."""
    return NotStarted("the lease is lost") if error.sqlstate == LEASE_LOST else error


def _claimed(row: Any, worker: UUID) -> ClaimedEvent:
    return ClaimedEvent(
        Event.of_row(row),
        worker,
        frozenset(row["handlers_done"] or ()),
        frozenset(row["handlers_stopped"] or ()),
    )


def _handled(state: str, error: str | None, took_ms: float) -> Handled:
    if error is not None:
        fields = {letter: text for letter, text in orjson.loads(error).items() if text}
        return Handled(asyncpg.PostgresError.new(fields), took_ms / 1000)
    return Handled(NotStarted("the lease is lost") if state == "lost" else None, took_ms / 1000)


def _columns(ran: Ran) -> tuple[UUID, str, str, int]:
    return ran.event, f"{ran.source}/{ran.handler}", ran.outcome, ran.took_ms
