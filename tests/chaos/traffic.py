"""Callers and providers: they queue mails by every door and post events, and note what they were told."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import orjson
import psycopg

from postroom import DatabaseUnavailable, Room
from postroom.testing import signed
from tests.chaos.files import file_of, row_of
from tests.chaos.house import SERVICE_KEY, STRIPE_SECRET, House
from tests.chaos.promises import Promises

BACKLOG_MAX = 1_500
"""Mails that may wait: beyond, callers wait too, so that a run can be drained."""

ANSWER_S_MAX = 12.0
AGAIN_S = 0.2
HEALED_S_MAX = 60.0
"""After so long in a healed house every call must have been answered."""


Call = Callable[[], Coroutine[Any, Any, None]]
"""What a caller does once; repeated where its answer is lost."""

_LOST = (
    OSError,
    EOFError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    psycopg.Error,
    aiohttp.ClientError,
    DatabaseUnavailable,
)


class RollBack(Exception):
    """A caller's transaction fails after its mails were queued."""


class Traffic:
    """
    All callers of a house, in one event loop.

    Args:
        patience: Set when what was begun is to be ended, and nothing new begun.
    """

    def __init__(self, house: House, promises: Promises, patience: threading.Event) -> None:
        self._house = house
        self._promises = promises
        self._patience = patience
        self._room = Room(database_url=house.url, sender="shop@example.com")
        self._mails = 0
        self._events = 0
        self._waiting = 0

    async def run(self) -> None:
        """Until the patience is over; then whoever was told nothing yet asks until he is told."""
        scenario = self._house.scenario
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        async with aiohttp.ClientSession(timeout=timeout) as self._http:
            watch = asyncio.create_task(self._watch_backlog())
            callers = [
                self._flow(self._insert, scenario.mails_per_s * 0.35 / 3),
                self._flow(self._enqueue, scenario.mails_per_s * 0.15),
                self._flow(self._enqueue_with_psycopg, scenario.mails_per_s * 0.1),
                self._flow(self._send_within, scenario.mails_per_s * 0.15),
                self._flow(self._send, scenario.mails_per_s * 0.1),
                self._flow(self._post_mail, scenario.mails_per_s * 0.15),
                self._flow(self._post_event, scenario.events_per_s),
            ]
            await asyncio.gather(*callers)
            watch.cancel()
            with suppress(Exception):
                await self._room.close()

    async def _flow(self, call: Call, per_s: float) -> None:
        open_calls: set[asyncio.Task[None]] = set()
        while not self._patience.is_set():
            await asyncio.sleep(random.expovariate(per_s) if per_s else 0.5)
            if per_s and len(open_calls) < 50 and self._waiting < BACKLOG_MAX:
                task = asyncio.create_task(call())
                open_calls.add(task)
                task.add_done_callback(lambda done: self._ended(done, open_calls))
        if open_calls:
            await asyncio.wait(open_calls)

    def _ended(self, call: asyncio.Task[None], open_calls: set[asyncio.Task[None]]) -> None:
        open_calls.discard(call)
        if (error := call.exception()) is not None:
            self._promises.broken.append(f"{type(error).__name__}: {error}")

    async def _watch_backlog(self) -> None:
        sql = "SELECT count(*) FROM email_queue WHERE status IN ('pending', 'processing')"
        while True:
            with suppress(*_LOST):
                connection = await asyncpg.connect(self._house.direct_url, timeout=5)
                try:
                    self._waiting = await connection.fetchval(sql)
                finally:
                    await connection.close(timeout=2)
            await asyncio.sleep(1.0)

    # E-mails

    async def _insert(self) -> None:
        """A plain INSERT of some rows in a transaction, which may fail."""
        scenario = self._house.scenario
        mails = [(uuid4(), *self._mail()) for _ in range(random.randint(1, scenario.burst))]
        fails = random.random() < 0.2
        if fails:
            self._promises.rolled_back |= {token for _, token, _ in mails}

        async def attempt() -> None:
            async with self._connection() as db, _Failing(db.transaction(), fails):
                await db.executemany(
                    "INSERT INTO email_queue (id, to_email, subject, html, attachments) "
                    "VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING",
                    [
                        (mail_id, to, token, f"<p>{token}</p>", self._file_row(token))
                        for mail_id, token, to in mails
                    ],
                )

        if fails:
            await self._once(attempt)
            return
        self._promises.unknown |= {token for _, token, _ in mails}
        if await self._until_told(attempt):
            for mail_id, token, _ in mails:
                self._promises.commit(token, str(mail_id))

    async def _enqueue(self) -> None:
        """enqueue_email with a key, repeated where its answer was lost, and sometimes without need."""
        token, to = self._mail()

        async def attempt() -> None:
            async with self._connection() as db:
                email_id = await db.fetchval(
                    "SELECT enqueue_email($1, $2, $3, idempotency_key => $2)", to, token, f"<p>{token}</p>"
                )
            self._promises.commit(token, str(email_id))

        await self._promise_with_key(token, attempt)

    async def _enqueue_with_psycopg(self) -> None:
        """The same by another driver, in a transaction that is rolled back now and then."""
        token, to = self._mail()
        fails = random.random() < 0.2

        async def attempt() -> None:
            async with asyncio.timeout(ANSWER_S_MAX):
                connection = await psycopg.AsyncConnection.connect(self._house.url, connect_timeout=10)
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    answer = await connection.execute(
                        "SELECT enqueue_email(%s, %s, %s, idempotency_key => %s)",
                        (to, token, f"<p>{token}</p>", token),
                    )
                    row = await answer.fetchone()
                    assert row is not None
                    if fails:
                        await connection.rollback()
                        return
                    await connection.commit()
                self._promises.commit(token, str(row[0]))
            finally:
                connection.pgconn.finish()

        if fails:
            self._promises.rolled_back.add(token)
            await self._once(attempt)
        else:
            await self._promise_with_key(token, attempt)

    async def _send_within(self) -> None:
        """Room.send in the caller's transaction, which may fail."""
        token, to = self._mail()
        fails = random.random() < 0.2

        async def attempt() -> None:
            async with self._connection() as db:
                async with _Failing(db.transaction(), fails):
                    email_id = await self._room.send(
                        to=to, subject=token, html=f"<p>{token}</p>", idempotency_key=token, connection=db
                    )
                if not fails:
                    self._promises.commit(token, str(email_id))

        if fails:
            self._promises.rolled_back.add(token)
            await self._once(attempt)
        else:
            await self._promise_with_key(token, attempt)

    async def _send(self) -> None:
        """Room.send in a transaction of its own."""
        token, to = self._mail()

        file = file_of(token)
        if file is not None:
            self._promises.with_files.add(token)

        async def attempt() -> None:
            email_id = await self._room.send(
                to=to,
                subject=token,
                html=f"<p>{token}</p>",
                idempotency_key=token,
                attachments=None if file is None else [file],
            )
            self._promises.commit(token, str(email_id))

        await self._promise_with_key(token, attempt)

    async def _post_mail(self) -> None:
        """HTTP, into the queue; or at once, where nothing may be repeated."""
        token, to = self._mail()
        at_once = random.random() < 0.2
        body: dict[str, object] = {
            "to": to,
            "subject": token,
            "html": f"<p>{token}</p>",
            "use_queue": not at_once,
            "attachments": row_of(token),
        }
        if body["attachments"] is not None:
            self._promises.with_files.add(token)

        async def attempt() -> None:
            url = f"{random.choice(self._house.door_urls)}/functions/v1/send-email"
            headers = {"Authorization": f"Bearer {SERVICE_KEY}"}
            async with self._http.post(url, json=body, headers=headers) as answer:
                said = await answer.json(content_type=None)
                if answer.status == 200:
                    self._promises.commit(token, said["id" if at_once else "queue_id"])
                elif not at_once:
                    raise OSError(answer.status)

        if at_once:
            self._promises.unknown.add(token)
            await self._once(attempt)
        else:
            await self._promise_with_key(token, attempt, body)

    async def _promise_with_key(
        self,
        token: str,
        attempt: Call,
        body: dict[str, object] | None = None,
    ) -> None:
        if body is not None:
            body["idempotency_key"] = token
        self._promises.unknown.add(token)
        if await self._until_told(attempt) and random.random() < 0.2:
            self._promises.counts["keys repeated"] += 1
            await self._until_told(attempt)

    # Events

    async def _post_event(self) -> None:
        """One event, to one door or to all at once, until it is answered 200; now and then once more."""
        self._events += 1
        event_id = f"evt_{self._events:07d}"
        payload = {"id": event_id, "type": "checkout.session.completed", "shop": "Grüße 你好"}

        async def attempt() -> None:
            url = f"{random.choice(self._house.door_urls)}/webhooks/stripe"
            request = signed("stripe", payload, STRIPE_SECRET, url=url)
            self._promises.offered[event_id] = hashlib.sha256(request.body).hexdigest()
            async with self._http.post(url, data=request.body, headers=request.headers) as answer:
                if answer.status == 200:
                    self._promises.answered.add(event_id)
                elif answer.status == 503:
                    raise OSError(answer.status)
                else:
                    self._promises.broken.append(f"{event_id} was answered {answer.status}")

        at_once = 2 if random.random() < 0.15 else 1
        await asyncio.gather(*(self._until_told(attempt) for _ in range(at_once)))
        if random.random() < 0.2:
            self._promises.counts["events posted again"] += 1
            await self._until_told(attempt)

    # What they share

    def _mail(self) -> tuple[str, str]:
        """A token of its own, and somebody to write to: a few get much."""
        self._mails += 1
        hot = random.random() < self._house.scenario.hot_share
        number = (
            random.randrange(self._house.scenario.hot_recipients) if hot else 1_000 + random.randrange(500)
        )
        return f"m{self._mails:07d}", f"u{number}@example.com"

    def _file_row(self, token: str) -> str | None:
        files = row_of(token)
        if files is None:
            return None
        self._promises.with_files.add(token)
        return orjson.dumps(files).decode()

    async def _once(self, attempt: Call) -> None:
        with suppress(RollBack, *_LOST):
            async with asyncio.timeout(2 * ANSWER_S_MAX):
                await attempt()

    async def _until_told(self, attempt: Call) -> bool:
        """Repeat until an answer comes; False where none came long after the house was healed."""
        ends: float | None = None
        while True:
            try:
                async with asyncio.timeout(2 * ANSWER_S_MAX):
                    await attempt()
                return True
            except _LOST as error:
                self._promises.counts["calls repeated"] += 1
                said = f"{type(error).__name__}: {error}"
            if self._patience.is_set():
                ends = ends or time.monotonic() + HEALED_S_MAX
                if time.monotonic() > ends:
                    self._promises.broken.append(f"no answer though all is healed: {said}")
                    return False
            await asyncio.sleep(random.uniform(0.5, 1.5) * AGAIN_S)

    def _connection(self) -> _Connection:
        return _Connection(self._house.url)


class _Connection:
    """A connection by the bad network; in whatever state, it is left in time."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> asyncpg.Connection[Any]:
        self._connection = await asyncpg.connect(
            self._url, timeout=ANSWER_S_MAX, command_timeout=ANSWER_S_MAX
        )
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        self._connection.terminate()


class _Failing:
    """A transaction, which fails at its end where it is to."""

    def __init__(self, transaction: Any, fails: bool) -> None:
        self._transaction = transaction
        self._fails = fails

    async def __aenter__(self) -> None:
        await self._transaction.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None and self._fails:
            await self._transaction.__aexit__(RollBack, RollBack(), None)
            raise RollBack
        await self._transaction.__aexit__(kind, error, trace)


@contextmanager
def running_traffic(house: House, promises: Promises) -> Iterator[None]:
    """Callers while the block runs; afterwards they end what they had begun."""
    patience = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(Traffic(house, promises, patience).run())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        patience.set()
        thread.join(180)
    assert not failed, failed
    assert not thread.is_alive(), "a caller got no answer"
