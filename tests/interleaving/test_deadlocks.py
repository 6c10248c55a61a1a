"""No two calls of the house can wait for each other, whatever the order of the rows that they are given."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import Any

import asyncpg
import pytest

from tests.interleaving.calls import begin, extend, settle, store
from tests.interleaving.world import W1, W2, id_of, ids, seed
from tests.sql.conftest import Connect
from tests.sql.session import EMAIL, QUEUES, WEBHOOK, Queue, Session
from tests.support.waiting import until


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    """Opens one more connection to the test's database; a deadlock is found at once."""
    opened: list[Session] = []
    settings = {"deadlock_timeout": "50ms", "statement_timeout": "30s"}

    async def open_one() -> Session:
        opened.append(Session(await asyncpg.connect(database_url, server_settings=settings)))
        return opened[-1]

    yield open_one
    for session in opened:
        session.connection.terminate()


ROWS = ("held", "short", "fresh")
DEAD = ("dead1", "done", "dead2")


def _orders(queue: Queue) -> dict[str, Callable[[tuple[str, ...]], str]]:
    """Calls on several rows, by the order of the rows."""
    calls: dict[str, Callable[[tuple[str, ...]], str]] = {
        "settle": lambda rows: settle(queue, W1, "temporary", 1, *rows),
        "extend": lambda rows: extend(queue, W1, *rows),
        "begin": lambda rows: begin(queue, W1, *rows),
        "retry": lambda rows: f"SELECT postroom.retry_dead_{queue}s({ids(*rows)})",
        "discard": lambda rows: f"SELECT postroom.discard_dead_{queue}s({ids(*rows)})",
    }
    if queue is WEBHOOK:
        calls |= {
            "replay": lambda rows: f"SELECT postroom.replay_webhooks({ids(*rows)}, NULL)",
            "store": lambda rows: store(*rows),
        }
    return calls


def _crossings() -> list[Any]:
    def rows_of(name: str) -> tuple[str, ...]:
        return DEAD if name in ("retry", "discard", "replay") else ROWS

    return [
        pytest.param(queue, first, second, rows_of(first), id=f"{queue}-{first}-{second}")
        for queue in QUEUES
        for first in _orders(queue)
        for second in _orders(queue)
        if first <= second and rows_of(first) == rows_of(second) and (first == "store") == (second == "store")
    ]


@pytest.mark.parametrize(("queue", "first", "second", "rows"), _crossings())
async def test_calls_with_their_rows_in_opposite_orders_do_not_wait_for_each_other(
    connect: Connect, queue: Queue, first: str, second: str, rows: tuple[str, ...]
) -> None:
    """Each is stopped at the middle row with its first one locked: in opposite orders, a deadlock."""
    observer, holder, one, two = [await connect() for _ in range(4)]
    await seed(observer.connection, queue)
    await observer.set("email.limit.global", "1/60s")  # what begins is put back
    if first == "store":
        rows = ("new1", "new2", "new3")
    calls = _orders(queue)
    transaction = holder.transaction()
    await transaction.start()
    if first == "store":
        await holder.execute(store(rows[1]))
    else:
        await holder.execute(f"SELECT FROM {queue.table} WHERE id = ANY ({ids(rows[1])}) FOR UPDATE")
    waiting = [
        asyncio.ensure_future(one.execute(calls[first](rows))),
        asyncio.ensure_future(two.execute(calls[second](tuple(reversed(rows))))),
    ]

    async def both_wait() -> bool:
        blocked = [
            task.done()
            or await observer.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", session.pid)
            for task, session in zip(waiting, (one, two), strict=True)
        ]
        return all(blocked)

    await until(both_wait)
    await transaction.rollback()
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("follower", ["begin", "settle", "extend"])
@pytest.mark.parametrize("limit", ["1/60s", "1000/60s"])
async def test_a_start_whose_answer_was_lost_does_not_wait_for_what_the_worker_does_next(
    connect: Connect, limit: str, follower: str
) -> None:
    """It waits for a book while its leases get old; the repetition locks the rows first, in another order."""
    observer, holder, one, two = [await connect() for _ in range(4)]
    await seed(observer.connection, EMAIL)
    await observer.set("email.limit.global", limit)
    rows = ("fresh", "limited")
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("SELECT FROM rate_limit_counters WHERE key = 'email:global' FOR UPDATE")
    lost = asyncio.ensure_future(one.execute(begin(EMAIL, W1, *rows)))
    await observer.until_blocked(one, lost)
    await observer.execute(
        f"UPDATE email_queue SET due_at = clock_timestamp() + interval '20 s' WHERE id = ANY ({ids(*rows)})"
    )
    next_call = _orders(EMAIL)[follower](tuple(reversed(rows)))
    following = asyncio.ensure_future(two.execute(next_call))
    if follower == "begin":
        await observer.until_blocked(two, following)
    else:
        await following
    await transaction.rollback()
    await asyncio.gather(lost, following)
    held = await observer.fetchval(
        f"""
        SELECT count(*) FROM email_queue
        WHERE id = ANY ({ids(*rows)}) AND leased_by IS NOT NULL
            AND id <> ALL ((SELECT begun FROM postroom.workers WHERE id = '{W1}')::uuid[])
        """
    )
    assert held == 0


@pytest.mark.parametrize("queue", QUEUES, ids=str)
async def test_outcomes_that_are_written_one_by_one_are_written_in_the_order_of_their_rows(
    connect: Connect, queue: Queue
) -> None:
    """Where a row's own trigger refuses, too: another call on the same rows does not wait for it in turn."""
    observer, holder, one, two = [await connect() for _ in range(4)]
    await seed(observer.connection, queue)
    first, middle, last = sorted(("held", "fresh", "short"), key=id_of)
    await observer.execute(
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON {queue.table} FOR EACH ROW
        WHEN (NEW.id = '{id_of(first)}' AND NEW.attempts > OLD.attempts) EXECUTE FUNCTION refuse()
        """
    )
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(f"SELECT FROM {queue.table} WHERE id = '{id_of(middle)}' FOR UPDATE")
    other = asyncio.ensure_future(two.execute(settle(queue, W1, "released", 1, middle, last)))
    await observer.until_blocked(two, other)
    refused = asyncio.ensure_future(one.execute(settle(queue, W1, "temporary", 1, last, middle, first)))
    await observer.until_blocked(one, refused)
    await transaction.rollback()
    await asyncio.gather(refused, other)


HUNT_S = 5.0


@pytest.mark.parametrize(
    "hunt_s", [HUNT_S, pytest.param(40.0, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])]
)
async def test_many_sessions_with_unordered_keys_never_deadlock(connect: Connect, hunt_s: float) -> None:
    """Batches over the same few rows, keys and books, in any order, from twelve sessions at once."""
    chosen = os.environ.get("POSTROOM_TEST_SEED") or str(random.randrange(10**9))
    print(f"POSTROOM_TEST_SEED={chosen}")
    sql = await connect()
    for queue in QUEUES:
        await _fill(sql, queue)
    _STARTING.clear()  # a lock belongs to one test's event loop
    ends = monotonic() + hunt_s
    done: Counter[str] = Counter()
    hunters = [_hunt(await connect(), random.Random(f"{chosen} {place}"), ends, done) for place in range(12)]
    await asyncio.gather(*hunters)
    assert len(done) == len(_MOVES) * 2, f"some were never tried: {sorted(done)}"


LABELS = [f"hunted{place}" for place in range(30)]


async def _fill(sql: Session, queue: Queue) -> None:
    columns = "to_email, subject, html" if queue is EMAIL else "webhook_type, payload"
    values = "'u' || n % 5 || '@example.com', 's', 'h'" if queue is EMAIL else "'stripe', '{}'"
    await sql.execute(
        f"""
        INSERT INTO {queue.table} (id, {columns})
        SELECT hunted.id, {values} FROM unnest({ids(*LABELS)}) WITH ORDINALITY AS hunted (id, n)
        ON CONFLICT DO NOTHING
        """
    )
    for worker in (W1, W2):
        await sql.execute(
            f"SELECT postroom.register_worker('{worker}', '{queue}', 'h', 1, '0', true, false, '{{}}')"
        )


Move = Callable[[Session, Queue, random.Random], Awaitable[None]]


async def _hunt(session: Session, chance: random.Random, ends: float, done: Counter[str]) -> None:
    while monotonic() < ends:
        name, move = chance.choice(list(_MOVES.items()))
        queue = chance.choice(QUEUES)
        try:
            await move(session, queue, chance)
        except asyncpg.DeadlockDetectedError as error:
            raise AssertionError(f"{name} of {queue}: {error} {error.detail}") from error
        done[f"{queue} {name}"] += 1


async def _some_leases(
    session: Session, queue: Queue, chance: random.Random
) -> tuple[Any, list[Any], list[int]]:
    """Rows as they are leased now, in any order: what a late or a second worker may still name."""
    rows = await session.fetch(
        f"SELECT id, lease_no, leased_by FROM {queue.table} WHERE leased_by IS NOT NULL"
    )
    chance.shuffle(rows := list(rows))
    rows = rows[: chance.randint(1, 12)]
    worker = rows[0]["leased_by"] if rows else W1
    return worker, [row["id"] for row in rows], [row["lease_no"] for row in rows]


async def _claim(session: Session, queue: Queue, chance: random.Random) -> None:
    await session.execute(
        f"SELECT postroom.claim_{queue}s($1, $2)", chance.choice([W1, W2]), chance.randint(1, 20)
    )


_STARTING: dict[tuple[str, object], asyncio.Lock] = defaultdict(asyncio.Lock)
"""A worker has one start under way at a time (queue/starts.py)."""


async def _begin(session: Session, queue: Queue, chance: random.Random) -> None:
    worker, rows, numbers = await _some_leases(session, queue, chance)
    async with _STARTING[queue.name, worker]:
        await session.execute(
            f"SELECT postroom.begin_{queue}s($1, $2, $3, '{{}}', '{{}}')", worker, rows, numbers
        )


async def _settle(session: Session, queue: Queue, chance: random.Random) -> None:
    worker, rows, numbers = await _some_leases(session, queue, chance)
    verdicts = [chance.choice(["done", "temporary", "permanent", "released", "transport_down"]) for _ in rows]
    nothing = [None] * len(rows)
    await session.execute(
        f"SELECT postroom.settle_{queue}s($1, $2, $3, $4, $5, $6, $7)",
        *(worker, rows, numbers, verdicts, nothing, nothing, nothing),
    )


async def _extend(session: Session, queue: Queue, chance: random.Random) -> None:
    worker, rows, numbers = await _some_leases(session, queue, chance)
    await session.execute(f"SELECT postroom.extend_{queue}_leases($1, $2, $3)", worker, rows, numbers)


async def _person(session: Session, queue: Queue, chance: random.Random) -> None:
    labels = chance.sample(LABELS, 15)
    functions = ["retry_dead", "retry_dead", "retry_dead", "discard_dead"]
    if queue is WEBHOOK:
        await session.execute(f"SELECT postroom.replay_webhooks({ids(*labels)}, NULL)")
    await session.execute(f"SELECT postroom.{chance.choice(functions)}_{queue}s({ids(*labels)})")


async def _old_caller(session: Session, queue: Queue, chance: random.Random) -> None:
    for row in await session.fetch(f"SELECT id FROM {queue.batch}(3)"):
        if chance.random() < 0.5:
            await session.execute(f"SELECT {queue.mark_done}($1)", row["id"])
        else:
            await session.execute(f"SELECT {queue.mark_failed}($1, 'no')", row["id"])


async def _time_passes(session: Session, queue: Queue, chance: random.Random) -> None:
    """Leases get old, delays end, what is done or discarded comes anew."""
    await session.execute(
        f"""
        UPDATE {queue.table} SET
            status = CASE WHEN status IN ('processing', 'dead_letter') THEN status ELSE 'pending' END,
            due_at = clock_timestamp() + interval '1 s' * $1
        WHERE id IN (
            SELECT id FROM {queue.table} WHERE status <> 'dead_letter'
            ORDER BY random() LIMIT 10 FOR UPDATE SKIP LOCKED
        )
        """,
        chance.choice([-1, 10, 20]),
    )


async def _limits(session: Session, queue: Queue, chance: random.Random) -> None:
    keys = ["email:global", *(f"email:recipient:u{place}@example.com" for place in range(5)), "app"]
    if chance.random() < 0.2:
        await session.execute(
            "SELECT postroom.set_setting($1, $2)",
            chance.choice(["email.limit.global", "email.limit.recipient"]),
            chance.choice(["off", "3/1s", "1000/1s"]),
        )
    await session.execute("SELECT increment_rate_limit($1, 1, 1000)", chance.choice(keys))
    await session.execute("SELECT postroom.replan_limited_emails(100), cleanup_rate_limit_counters()")


async def _tend(session: Session, queue: Queue, chance: random.Random) -> None:
    await session.execute(f"SELECT postroom.settle_refused_{queue}s(), postroom.{queue}_wait_s()")
    worker = chance.choice([W1, W2])
    await session.execute(
        f"SELECT postroom.register_worker('{worker}', '{queue}', 'h', 1, '0', true, true, '{{}}')"
    )


async def _queue(session: Session, queue: Queue, chance: random.Random) -> None:
    if queue is EMAIL:
        for key in sorted(chance.sample("abcdef", 3)):  # as send_many does
            await session.execute(
                "SELECT enqueue_email($1, 's', 'h', idempotency_key => $2)", f"{key}@example.com", key
            )
    else:
        labels = chance.sample(LABELS, 6)
        await session.execute(store(*labels, key=chance.choice([None, *"abcdef"])))


_MOVES: dict[str, Move] = {
    "claim": _claim,
    "begin": _begin,
    "settle": _settle,
    "extend": _extend,
    "person": _person,
    "old caller": _old_caller,
    "time": _time_passes,
    "limits": _limits,
    "tend": _tend,
    "queue": _queue,
}
