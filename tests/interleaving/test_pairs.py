"""
Each two calls that may write the same rows, at once: the outcome is that of one after the other.

The first session's call is made and its transaction stays open; the second session's call runs, or waits
for a lock (PostgreSQL says for whose); then the first one commits or rolls back. What the world looks like
then must be what it looks like where the two came one after the other, in either order, or the second is told
to repeat itself and that repetition comes to the same. Nobody waits for ever, nothing is lost, no answer is
NULL or unknown.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

import asyncpg
import psycopg
import pytest

from tests.interleaving.calls import CALLS, Call
from tests.interleaving.world import TABLES, State, answer, id_of, seed, state
from tests.sql.session import QUEUES, Queue
from tests.support.postgres import PostgresServer
from tests.support.waiting import LIMIT_S

UNEQUAL = {
    # The repetition of a call whose answer was lost, where the first one is still under way: a mail that
    # waits has a second ticket, which leaves a hole in the line until that is counted (take_for_emails).
    ("W1 begins one that waits", "W1 begins one that waits"),
    # A settle of rows whose start was given up and is still under way: its slots and marks are spent, which
    # lets no mail through too many, and blames nobody: no row has that lease any more.
    ("W1 settles one that waits", "W1 begins one that waits"),
    ("W1 settles one that waits", "W1 begins"),
    ("W1 settles: done", "W1 begins"),
    ("W1 gives back", "W1 begins"),
}
"""Pairs that end as no serial order does, and why that does no harm: a start locks no rows."""

Isolation = Literal["read_committed", "repeatable_read"]
ISOLATIONS: tuple[Isolation, ...] = ("read_committed", "repeatable_read")


@dataclass(frozen=True)
class Ending:
    """What came of a run: the world, and what each call gave back (or the code that it raised)."""

    world: State
    answers: dict[str, str]


_SERIAL: dict[tuple[Queue, tuple[Call, ...]], Ending] = {}
"""How runs without interleaving ended: they are the same for every isolation."""


@pytest.fixture(scope="module")
def world_url(postgres_server: PostgresServer, _migrated_template: str) -> Iterator[str]:
    """A database for all pairs: each run begins with a truncate."""
    name = postgres_server.create_database(template=_migrated_template)
    yield postgres_server.url_of(name)
    postgres_server.drop_database(name)


class Stage:
    """Three connections to the world: two that act and one that looks."""

    def __init__(self, queue: Queue, *connections: asyncpg.Connection[Any]) -> None:
        self.queue = queue
        self.first, self.second, self.observer = connections

    async def one_after_the_other(self, *calls: Call) -> Ending:
        """Each call in a transaction of its own."""
        if (self.queue, calls) not in _SERIAL:
            _SERIAL[self.queue, calls] = await self._one_after_the_other(*calls)
        return _SERIAL[self.queue, calls]

    async def _one_after_the_other(self, *calls: Call) -> Ending:
        await seed(self.observer, self.queue)
        answers = [await self._commit(call) for call in calls]
        return await self._ending(list(calls), answers)

    async def at_once(self, first: Call, second: Call, isolation: Isolation, ending: str) -> Ending:
        """Two transactions that are open together."""
        await seed(self.observer, self.queue)
        holder = self.first.transaction(isolation=isolation)
        follower = self.second.transaction(isolation=isolation)
        await holder.start()
        await follower.start()
        await self.second.fetchval("SELECT count(*) FROM postroom.workers")  # its snapshot
        answers: list[Any] = [await self._call(self.first, first)]
        waiting = asyncio.ensure_future(self._call(self.second, second))
        await self._until_blocked_or_done(waiting)
        if isinstance(answers[0], str):
            await holder.rollback()
        else:
            await getattr(holder, ending)()
        answers.append(await waiting)
        if isinstance(answers[1], str):
            await follower.rollback()
        else:
            try:
                await follower.commit()
            except asyncpg.SerializationError:
                answers[1] = "40001"
        if answers[1] == "40001":
            assert isolation == "repeatable_read", "READ COMMITTED asks nobody to repeat"
            answers[1] = await self._commit(second)
        if ending == "rollback":
            return await self._ending([second], answers[1:])
        return await self._ending([first, second], answers)

    async def _commit(self, call: Call) -> Any:
        async with self.second.transaction():
            try:
                async with self.second.transaction():
                    return await self.second.fetch(call.sql)
            except asyncpg.PostgresError as error:
                return error.sqlstate

    async def _call(self, connection: asyncpg.Connection[Any], call: Call) -> Any:
        try:
            return await connection.fetch(call.sql)
        except asyncpg.DeadlockDetectedError as error:
            raise AssertionError(f"{call}: {error} {error.detail}") from error
        except asyncpg.PostgresError as error:
            return error.sqlstate

    async def _until_blocked_or_done(self, task: asyncio.Future[Any]) -> None:
        pid = self.second.get_server_pid()
        ends = monotonic() + LIMIT_S
        while not (await asyncio.wait([task], timeout=0.003))[0]:
            if await self.observer.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
                return
            assert monotonic() < ends, "it neither ends nor waits for a lock"

    async def _ending(self, calls: list[Call], answers: list[Any]) -> Ending:
        world = await state(self.observer, self.queue)
        now = await self.observer.fetchval("SELECT clock_timestamp()")
        key = "idempotency_key" if self.queue.name == "email" else "webhook_event_id"
        named = {
            row["id"]: f"made:{row[key]}"
            for row in await self.observer.fetch(f"SELECT id, {key} FROM {self.queue.table}")
        }
        # The row of the key `made`, whoever made it.
        named[id_of("made")] = "made:made"
        said = {
            call.name: given if isinstance(given, str) else answer(given, now, named)
            for call, given in zip(calls, answers, strict=True)
        }
        return Ending(world, said)


@pytest.fixture
async def stage(world_url: str, queue: Queue) -> AsyncIterator[Stage]:
    """The stage of one queue."""
    connections = [await asyncpg.connect(world_url) for _ in range(3)]
    yield Stage(queue, *connections)
    for connection in connections:
        connection.terminate()


@pytest.fixture(params=QUEUES, ids=str)
def queue(request: pytest.FixtureRequest) -> Queue:
    """Both queues."""
    chosen: Queue = request.param
    return chosen


def pairs(queue: Queue, isolation: Isolation, *, both_orders: bool) -> list[tuple[Call, Call]]:
    """Calls that may write the same; in one order, which is another in each isolation, or in both."""
    calls = CALLS[queue] if isolation == "read_committed" else CALLS[queue][::-1]
    return [
        (first, second)
        for place, first in enumerate(calls)
        for second in (calls if both_orders else calls[place:])
        if first.touches & second.touches
        and (first.name, second.name) not in UNEQUAL
        and (isolation == "read_committed" or not (first.reads_committed or second.reads_committed))
    ]


def matches(found: Ending, serial: list[Ending], *, passes_over: bool) -> bool:
    """Whether a run ended as one of the serial ones; a claim may have left out what was in hand."""
    if any(found == one for one in serial):
        return True
    if not passes_over:
        return False
    # Each row by itself as in one of them; no answer has a row that it has in none of them.
    worlds = [one.world for one in serial]
    keys = set(found.world).union(*worlds)
    return all(any(found.world.get(key) == world.get(key) for world in worlds) for key in keys) and all(
        rows_in(said) <= set().union(*(rows_in(one.answers.get(name, "")) for one in serial))
        for name, said in found.answers.items()
    )


def rows_in(said: str) -> set[str]:
    """The rows of the queue in an answer; an error's code and a count name none."""
    rows = json.loads(said) if said.startswith("[") else []
    return {row for row in rows if json.loads(row).get("id") is not None}


@pytest.mark.parametrize(
    "both_orders",
    [
        pytest.param(False, id="one-order"),
        pytest.param(True, id="both-orders", marks=[pytest.mark.chaos, pytest.mark.timeout(600)]),
    ],
)
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_two_sessions_at_once_come_to_what_one_after_the_other_would(
    stage: Stage, queue: Queue, isolation: Isolation, both_orders: bool
) -> None:
    """Every pair of calls that share a row, the first one committing while the second is under way."""
    wrong = []
    for first, second in pairs(queue, isolation, both_orders=both_orders):
        serial = [
            await stage.one_after_the_other(first, second),
            await stage.one_after_the_other(second, first),
        ]
        passes_over = first.passes_over or second.passes_over
        if passes_over:
            serial += [await stage.one_after_the_other(call) for call in (first, second)]
        found = await stage.at_once(first, second, isolation, "commit")
        if not matches(found, serial, passes_over=passes_over):
            wrong.append(describe(first, second, found, serial))
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_session_that_rolls_back_leaves_nothing_behind_for_the_other(
    stage: Stage, queue: Queue, isolation: Isolation
) -> None:
    """The second session's outcome is as if the first had never been."""
    wrong = []
    for first, second in pairs(queue, isolation, both_orders=True):
        serial = [await stage.one_after_the_other(second)]
        passes_over = second.passes_over
        if passes_over:
            nothing = await stage.one_after_the_other()
            alone = await stage.one_after_the_other(first)
            both = await stage.one_after_the_other(first, second)
            # What the second passes over leaves its place to rows further on, as if the first had committed.
            further = {}
            for key in {*nothing.world, *alone.world, *both.world}:
                is_touched = alone.world.get(key) != nothing.world.get(key)
                if (row := (nothing if is_touched else both).world.get(key)) is not None:
                    further[key] = row
            serial += [nothing, Ending(further, {second.name: both.answers[second.name]})]
        found = await stage.at_once(first, second, isolation, "rollback")
        if not matches(found, serial, passes_over=passes_over):
            wrong.append(describe(first, second, found, serial))
    assert not wrong, "\n\n".join(wrong)


def describe(first: Call, second: Call, found: Ending, serial: list[Ending]) -> str:
    """What a failed pair looks like."""
    lines = [f"{first} / {second}"]
    for place, one in enumerate(serial):
        lines += [
            f"  {place} {key}:\n    is  {found.world.get(key)}\n    not {one.world.get(key)}"
            for key in sorted(set(found.world) | set(one.world))
            if found.world.get(key) != one.world.get(key)
        ]
        if found.answers != one.answers:
            lines.append(f"  {place} answers: {found.answers}, not {one.answers}")
    return "\n".join(lines)


def test_every_function_that_writes_has_an_interleaving(world_url: str) -> None:
    """A new function that writes one of the world's tables, and that no call reaches, fails here."""
    with psycopg.connect(world_url) as connection:
        functions: dict[str, str] = dict(
            connection.execute(
                """
                SELECT proc.proname, proc.prosrc
                FROM pg_proc AS proc
                WHERE proc.pronamespace IN ('postroom'::regnamespace, 'public'::regnamespace)
                    AND proc.prorettype <> 'trigger'::regtype
                """
            ).fetchall()
        )
    texts = [call.sql for calls in CALLS.values() for call in calls]
    reached: set[str] = set()
    while texts:
        names = {name for text in texts for name in re.findall(r"\b(\w+)\(", text)} & set(functions)
        texts = [functions[name] for name in names - reached]
        reached |= names
    written = re.compile(rf"(INSERT INTO|UPDATE|DELETE FROM) ({'|'.join([*TABLES, 'postroom.settings'])})\b")
    writers = {name for name, body in functions.items() if written.search(body)}
    assert len(writers) > 30
    assert writers <= reached
