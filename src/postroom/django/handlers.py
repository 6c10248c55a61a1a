"""Webhook handlers in Django: each runs in transaction.atomic(), with the mark that it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from django.conf import settings
from django.db import connections, reset_queries, transaction

from postroom.database.connect import SERVER_KEEPALIVES
from postroom.django.conf import alias
from postroom.errors import ConfigError
from postroom.webhooks.code import ASK_FOR_KEEPALIVES, is_async, is_dropped
from postroom.webhooks.registry import Open, Registry

_DROPPED_MAX = 100
"""Connections that are taken from a pool, one after the other, where the server has dropped them all."""

F = TypeVar("F", bound=Callable[..., Any])


class OrmTransactions:
    """transaction.atomic() on Django's connection of the thread that the handler runs in."""

    def __init__(self) -> None:
        self._opened: set[Any] = set()
        self._lock = threading.Lock()

    @contextmanager
    def begin(self) -> Iterator[Open]:
        """See Transactions."""
        using = alias()
        connection = connections[using]
        try:
            self._open(connection)
            with transaction.atomic(using, durable=True):

                def execute(sql: str, values: Sequence[object]) -> None:
                    with connection.cursor() as cursor:
                        cursor.execute(sql, values)

                yield Open((), execute)
        finally:
            _release(using)

    def close(self) -> None:
        """See Transactions."""
        with self._lock:
            opened, self._opened = self._opened, set()
        for connection in opened:
            if not connection.in_atomic_block:  # else a thread is in the middle of a function
                connection.close()

    def require_apart(self) -> None:
        """See Transactions; handlers run in threads of their own, and so on other connections."""
        if connections[alias()].in_atomic_block:
            raise ConfigError(
                "this test holds a transaction open (TestCase, atomic): it and the handler cannot see what "
                "the other writes; use a TransactionTestCase, in pytest django_db(transaction=True)"
            )

    def _open(self, connection: Any) -> None:
        """See that there is a connection which the server has not let go of, as far as can be seen."""
        if connection.in_atomic_block:
            return
        for _ in range(_DROPPED_MAX):
            taken = connection.connection is None
            connection.ensure_connection()
            if not is_dropped(connection.connection):
                break
            connection.connection.close()  # else a pool would give it to the next one
            connection.close()
        if taken:
            self._ask_for_keepalives(connection)

    def _ask_for_keepalives(self, connection: Any) -> None:
        """See ASK_FOR_KEEPALIVES."""
        with connection.cursor() as cursor:
            pid = cursor.connection.info.backend_pid
            cursor.execute(
                ASK_FOR_KEEPALIVES, [list(SERVER_KEEPALIVES), list(SERVER_KEEPALIVES.values()), pid]
            )
        connection.inc_thread_sharing()  # close() comes from another thread
        with self._lock:
            self._opened.add(connection)


def on(source: str, *events: str, name: str | None = None) -> Callable[[F], F]:
    """
    Register a handler: a plain function of the event, which runs in transaction.atomic().

        @on("stripe", "checkout.session.completed")
        def fulfil(event):
            Order.objects.create(stripe_id=event.payload["data"]["object"]["id"])

    What it writes by the ORM, the mails that it sends and the mark that it is done are one transaction:
    they are there exactly once an event. An exception undoes all of it, and it is run again later;
    PermanentFailure says that it will never succeed, TemporaryFailure(retry_after_s=...) when to try again.

    Write them in the module `webhooks` of an app: it is imported when Django starts.

    Args:
        events: Types such as `checkout.session.completed` or `checkout.*`; none stands for all.
        name: What is done is remembered by it; else it is the function's module and name.

    Raises:
        ConfigError: Another handler of the source has this name, or it is a coroutine function.
    """

    def register(function: F) -> F:
        if is_async(function):
            raise ConfigError(
                f"handler {function.__qualname__} of {source}: Django has no transactions in coroutines; "
                "write it as a plain function"
            )
        registry.add(source, events, name, function, transactions)
        return function

    return register


def program_name() -> str:
    """What workers know this project's handlers by: other projects on the same database have another."""
    return f"django:{str(settings.ROOT_URLCONF or settings.SETTINGS_MODULE).partition('.')[0]}"


transactions = OrmTransactions()
registry = Registry()
"""All handlers of this process."""


def _release(using: str) -> None:
    """
    Let go of connections as at the end of a request.

    But the one with the queue is kept where nothing is wrong with it: CONN_MAX_AGE is 0 by default, and a new
    connection for each event would be most of its cost. One of a pool goes back: it may have fewer than there
    are threads.

    With DEBUG, Django remembers every statement with its values until a request begins, and here none does.
    """
    reset_queries()
    for connection in connections.all(initialized_only=True):
        own = connection.settings_dict["CONN_MAX_AGE"] or connection.settings_dict["OPTIONS"].get("pool")
        kept = connection.alias == using and not own
        if not kept or connection.errors_occurred:
            connection.close_if_unusable_or_obsolete()
