"""Checks of the sources and their handlers, for `postroom doctor`."""

from __future__ import annotations

from collections.abc import Mapping

from postroom.database.connect import Database
from postroom.errors import ConfigError
from postroom.finding import Finding, ok, problem, warning
from postroom.settings import Settings
from postroom.webhooks.source import Handler, Source
from postroom.webhooks.source_settings import read_sources
from postroom.wording import count_of, duration

WAITED_S = 60.0
"""Events that have been due for longer than this are held up."""

_SIGNED_BY_ID = ("standard-webhooks", "svix", "resend")


def check_sources(settings: Settings) -> list[Finding]:
    """Look at postroom.toml's sources; no database is needed."""
    try:
        sources = read_sources(settings)
    except ConfigError as error:
        return [problem("webhooks", str(error), "correct it: no program that takes webhooks starts")]
    found: list[Finding] = []
    for source in sources.values():
        if source.scheme.needs_secret:
            secrets = count_of(len(source.secrets), "secret")
            handlers = ", ".join(handler.name for handler in source.handlers) or "none in postroom.toml"
            said = f"source {source.name}: scheme {source.scheme.name}, {secrets}, handlers: {handlers}"
            found.append(ok("webhooks", said))
        else:
            said = f"source {source.name} has scheme none: anybody may send it events"
            found.append(warning("webhooks", said, "name the provider's scheme, where it signs"))
        found += [_unsigned(source, one) for one in source.handlers if _cannot_verify(source, one)]
    return found


async def check_handlers(database: Database, sources: Mapping[str, Source]) -> list[Finding]:
    """Look for functions that are not there, and for events that wait for a program."""
    found: list[Finding] = []
    for source in sources.values():
        for handler in source.handlers:
            if handler.sql is not None and not await _is_there(database, handler.sql):
                said = f"handler {handler.name} of {source.name}: there is no {handler.sql}(jsonb, text)"
                found.append(problem("webhooks", said, "create it, or correct the name in postroom.toml"))
    waiting = await database.fetch(
        """
        SELECT
            handlers.app,
            count(DISTINCT event.id) AS events,
            extract(EPOCH FROM clock_timestamp() - min(
                COALESCE(event.due_at, event.next_retry_at, event.created_at)
            ))::double precision AS waited_s
        FROM postroom.handlers
        JOIN public.webhook_retry_queue AS event ON event.webhook_type = handlers.source
        WHERE event.status = 'pending'
            AND COALESCE(event.due_at, event.next_retry_at, event.created_at)
                < clock_timestamp() - make_interval(secs => $1)
        GROUP BY handlers.app
        """,
        WAITED_S,
    )
    for row in waiting:
        app, events = row["app"], count_of(row["events"], "event")
        wait = "waits" if row["events"] == 1 else "wait"
        said = f"{events} {wait} for a worker with --app {app}, for {duration(row['waited_s'])}"
        gone = f"where it is gone for good, run `postroom webhooks forget {app}`"
        found.append(problem("webhooks", said, f"start `postroom worker --app {app}`; {gone}"))
    return found


def _cannot_verify(source: Source, handler: Handler) -> bool:
    """Its requests bear a signature of the provider's webhook-id beside ours."""
    return handler.url is not None and handler.secret is None and source.scheme.name in _SIGNED_BY_ID


def _unsigned(source: Source, handler: Handler) -> Finding:
    said = (
        f"handler {handler.name} of {source.name} has no secret: the provider's webhook-signature does not "
        "hold there, since webhook-id is postroom's"
    )
    return warning("webhooks", said, "give it a secret, if it checks signatures")


async def _is_there(database: Database, function: str) -> bool:
    schema, _, name = function.rpartition(".")
    there: bool = await database.fetchval(
        """
        SELECT EXISTS (
            SELECT 1
            FROM pg_proc AS function
            JOIN pg_namespace AS namespace ON namespace.oid = function.pronamespace
            WHERE function.proname = $1
                AND (namespace.nspname = $2 OR $2 = '' AND pg_function_is_visible(function.oid))
                AND 2 BETWEEN function.pronargs - function.pronargdefaults AND function.pronargs
        )
        """,
        name,
        schema,
    )
    return there
