"""
Runs a handler that is code: its writes and the mark that it is done commit together.

A coroutine function gets an asyncpg connection with an open transaction. A plain function runs in a
thread and gets a psycopg connection with the same promise, or has its framework's own transaction.
"""

from __future__ import annotations

import asyncio
import inspect
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from postroom.database.connect import SERVER_KEEPALIVES, Database
from postroom.database.sqlstate import sqlstate_of
from postroom.errors import ConfigError, NotStarted, TemporaryFailure
from postroom.failpoints import reach
from postroom.queue.claim import Claim
from postroom.webhooks.event import Event
from postroom.webhooks.registry import CodeHandler, Function, Open, Transactions
from postroom.webhooks.store import FINISH_HANDLER, LEASE_LOST, ClaimedEvent, WebhookStore

if TYPE_CHECKING:
    import psycopg

CONNECTIONS_MAX = 10
"""How many handlers of one process may have a transaction open at once."""

CONNECT_S = 10.0

KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""
A plain function waits for its server by itself, in a thread that nobody can end: without these, for two hours
where the network has swallowed the connection.
"""

# Not behind a pooler, which gives its clients process ids that it made up, and sessions that are others' too.
ASK_FOR_KEEPALIVES = """
    SELECT set_config(setting.name, setting.value, false)
    FROM unnest(%s::text[], %s::text[]) AS setting (name, value)
    WHERE pg_backend_pid() = %s
"""
_LEFT_TRANSACTION = "the handler has ended the transaction that it was given: it must leave that to postroom"


class CodeRunner:
    """
    Runs functions, each in a transaction of its own.

    Args:
        database: Where the transactions are; not the pool that claims and settles, which long handlers
            would keep waiting.
        url: The same for psycopg.
    """

    def __init__(self, database: Database, url: str) -> None:
        self._database = database
        self._store = WebhookStore(database)
        self._threads = ThreadPoolExecutor(CONNECTIONS_MAX, thread_name_prefix="postroom-handler")
        self._psycopg = PsycopgTransactions(url)
        self._used: set[Transactions] = {self._psycopg}

    async def run(self, claim: Claim[ClaimedEvent], event: Event, one: CodeHandler) -> str:
        """
        Run a function and finish its handler, in one transaction.

        Raises:
            NotStarted: The lease has passed to another worker; the effect is undone.
            Exception: What the function raised; the effect is undone.
        """
        if is_async(one.function):
            await self._run_async(claim, event, one.handler.name, one.function)
        else:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._run_sync, claim, event, one)
        return "done"

    async def close(self) -> None:
        """Close the connections; a thread that is in the middle of a function ends with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for transactions in self._used:
            await asyncio.to_thread(transactions.close)  # Django's refuse to be closed beside an event loop

    async def _run_async(
        self, claim: Claim[ClaimedEvent], event: Event, name: str, function: Function
    ) -> None:
        async with self._database.transaction(deadline_s=CONNECT_S) as connection:
            reach("async_handler.before")
            await function(event, connection)
            reach("async_handler.effect")
            if not connection.is_in_transaction():
                raise TemporaryFailure(_LEFT_TRANSACTION)
            await self._store.finish_handler(claim.item.worker, claim, name, within=connection)
            reach("async_handler.mark")

    def _run_sync(self, claim: Claim[ClaimedEvent], event: Event, one: CodeHandler) -> None:
        finished = False
        transactions = one.transactions or self._psycopg
        self._used.add(transactions)
        with transactions.begin() as opened:
            reach("plain_handler.before")
            _call(one.function, event, opened.arguments)
            reach("plain_handler.effect")
            finish = (claim.item.worker, claim.id, claim.lease_no, one.handler.name, False)
            try:
                opened.execute(FINISH_HANDLER.format("%s", "%s", "%s", "%s", "%s"), finish)
            except Exception as error:
                if sqlstate_of(error) == LEASE_LOST:
                    raise NotStarted("the lease is lost") from error
                raise
            reach("plain_handler.mark")
            finished = True
        if not finished:  # psycopg.Rollback, which leaves the block in silence
            raise TemporaryFailure(_LEFT_TRANSACTION)


class PsycopgTransactions:
    """Transactions on psycopg connections of our own, which the functions get as their second argument."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[psycopg.Connection[Any]] = []

    @contextmanager
    def begin(self) -> Iterator[Open]:
        """See Transactions."""
        connection = self._connection()
        try:
            with connection.transaction():
                yield Open((connection,), connection.execute)
        finally:
            self._take_back(connection)

    def close(self) -> None:
        """Close what nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def require_apart(self) -> None:
        """Nothing: nobody else has these connections."""

    def _connection(self) -> psycopg.Connection[Any]:
        import psycopg

        while (idle := self._pop_idle()) is not None:
            if not is_dropped(idle):
                return idle
            idle.close()
        # Autocommit: nothing is open but the transaction of the handler. No prepared statements: a pooler
        # in transaction mode knows none.
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=int(CONNECT_S),
            application_name="postroom handler",
            **KEEPALIVES,
        )
        asked = (list(SERVER_KEEPALIVES), list(SERVER_KEEPALIVES.values()), connection.info.backend_pid)
        connection.execute(ASK_FOR_KEEPALIVES, asked)
        return connection

    def _pop_idle(self) -> psycopg.Connection[Any] | None:
        with suppress(IndexError):  # another thread may take the last one
            return self._idle.pop()
        return None

    def _take_back(self, connection: psycopg.Connection[Any]) -> None:
        import psycopg

        idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if idle and not connection.closed and connection.autocommit and len(self._idle) < CONNECTIONS_MAX:
            self._idle.append(connection)
        else:
            connection.close()


def _call(function: Function, event: Event, arguments: tuple[object, ...]) -> None:
    try:
        answer = function(event, *arguments)
    except (StopIteration, SystemExit) as error:  # neither gets out of a thread as it is
        raise TemporaryFailure(f"{type(error).__name__}: {error}") from error
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TemporaryFailure("the plain function gave a coroutine: write it as async def")


def is_dropped(connection: Any) -> bool:
    """
    Whether the server has let go of an idle connection of psycopg (3, 2): a restart, a failover, a time-out.

    A handler that is given one has an attempt counted and waits a minute, though nothing was tried. A server
    speaks to an idle client to say goodbye; where it says anything else, a connection is made for nothing.
    """
    try:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except Exception:  # closed on our side: each driver has its own error
        return True


def is_async(function: Function) -> bool:
    """Whether a function is awaited; else it runs in a thread."""
    call = getattr(function, "__call__", None)  # noqa: B004  an object's own
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def require_runnable(one: CodeHandler) -> None:
    """
    See that a handler's function can be run here.

    Raises:
        ConfigError: It is none, or needs psycopg, which is not installed.
    """
    what = f"the handler {one.handler.name!r}"
    if not callable(one.function):
        raise ConfigError(f"{what} is no function")
    if is_async(one.function) or one.transactions is not None:
        return
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"{what} is a plain function, whose transaction needs psycopg: write it as async def, "
            "or install postroom[psycopg]"
        ) from None
