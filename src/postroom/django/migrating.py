"""`manage.py migrate` runs postroom's own migrations, on connections of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.core.management.base import CommandError
from django.db import connections
from django.db.migrations.operations.base import Operation

from postroom.database.migrate import migrate, pending
from postroom.django.conf import alias, database_url, in_tests
from postroom.errors import PostroomError

T = TypeVar("T")


class MigratePostroom(Operation):
    """
    Bring postroom's tables and functions up to date.

    The other way leaves them as they are: there may be mail in them.
    """

    reduces_to_sql = False
    reversible = True
    atomic = False

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Nothing: the models are not managed."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ARG002
        """Run the migrations where the queue is."""
        bring_up_to_date(schema_editor.connection.alias, verbosity=0)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Nothing."""

    def describe(self) -> str:
        """See Django's Operation."""
        return "Bring postroom's tables and functions up to date"


def bring_up_to_date(using: str, verbosity: int) -> None:
    """
    Migrate the database with the queue; does nothing for another one.

    Raises:
        CommandError: What postroom.database.migrate says, as one line of manage.py.
    """
    if using != alias() or connections[using].vendor != "postgresql":
        return

    def report(line: str) -> None:
        if verbosity > 0:
            print(f"  postroom: {line}")

    try:
        url = database_url(using)
        if run(pending(url)):
            run(migrate(url, report=report))
    except PostroomError as error:
        raise CommandError(f"postroom: {error}") from error


def after_flush(using: str, verbosity: int) -> None:
    """
    Empty the queues between two tests, as Django does with its own tables: the same event may come again.

    Elsewhere they are left as they are, and that is said: whoever empties an application has not asked to
    lose the mail that it has queued.
    """
    if using != alias() or connections[using].vendor != "postgresql":
        return
    if in_tests():
        with connections[using].cursor() as cursor:
            for table in _EMPTIED:
                cursor.execute(f"DELETE FROM {table}")  # noqa: S608 - ours
    elif verbosity > 0:
        print("  postroom: what is in its queues was left there, and is sent and handled")


_EMPTIED = (
    "public.email_queue",
    "public.webhook_retry_queue",
    "public.rate_limit_counters",
    "postroom.webhook_requests",
    "postroom.seen_webhooks",
    "postroom.refused_rows",
    "postroom.audit",
)


def is_up_to_date(using: str) -> bool:
    """Whether `postroom migrate --check` would be content."""
    return not run(pending(database_url(using)))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
