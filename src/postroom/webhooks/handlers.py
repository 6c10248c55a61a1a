"""The handlers that one worker has: of postroom.toml and of its program, each with what runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from postroom.errors import ConfigError
from postroom.failpoints import reach
from postroom.queue.claim import Claim
from postroom.webhooks.code import CodeRunner, require_runnable
from postroom.webhooks.event import Event
from postroom.webhooks.places import read_type
from postroom.webhooks.registry import CodeHandler, load_object
from postroom.webhooks.request import WebhookRequest
from postroom.webhooks.schemes import SCHEMES, scheme_name
from postroom.webhooks.slots import SHARES
from postroom.webhooks.source import Handler, Source
from postroom.webhooks.sql import SqlHandler
from postroom.webhooks.store import ClaimedEvent, WebhookStore
from postroom.webhooks.url import UrlRunner

Run = Callable[[Claim[ClaimedEvent], Event], Awaitable[str]]
"""Runs a handler and finishes it; returns what it said, raises what went wrong."""


@dataclass(frozen=True, slots=True)
class Runnable:
    """
    A handler with what runs it.

    Attributes:
        shares: Of a slot for a transaction that an event needs for it; None where it holds none open.
    """

    handler: Handler
    run: Run
    shares: Callable[[Claim[ClaimedEvent]], int] | None

    @property
    def name(self) -> str:
        """What is done is remembered by it."""
        return self.handler.name


class Handlers:
    """
    What runs the events of a worker.

    Args:
        sources: Those of postroom.toml.
        registered: What the program has registered by @room.on, by source.
        store: Finishes what has no transaction of its own.
        sql: Makes what runs a SQL handler, of its name and its function.

    Raises:
        ConfigError: Two handlers of a source have one name, or a function cannot be imported.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        registered: Mapping[str, Sequence[CodeHandler]],
        *,
        store: WebhookStore,
        sql: Callable[[str, str], SqlHandler],
        code: CodeRunner,
        url: UrlRunner,
    ) -> None:
        self._sources = sources
        self._store = store
        self._sql = sql
        self._code = code
        self._url = url
        self._of: dict[str, list[Runnable]] = {
            name: [self._of_settings(name, handler) for handler in source.handlers]
            for name, source in sources.items()
        }
        for name, handlers in registered.items():
            self._of.setdefault(name, []).extend(self._of_program(one) for one in handlers)
        for name, runnables in self._of.items():
            names = [runnable.name for runnable in runnables]
            if twice := next((one for one in names if names.count(one) > 1), None):
                raise ConfigError(
                    f"there are two handlers named {twice!r} of {name}, in postroom.toml and in --app"
                )

    def knows(self, source: str) -> bool:
        """Whether events of this source are this worker's business."""
        return source in self._of

    def names(self) -> list[tuple[str, str]]:
        """All handlers, as (source, name)."""
        return [(source, one.name) for source, runnables in self._of.items() for one in runnables]

    def of(self, event: Event) -> list[Runnable]:
        """The handlers that want an event, in the order in which they were written."""
        return [one for one in self._of.get(event.source, ()) if one.handler.wants(event.type)]

    def typed(self, event: Event) -> Event:
        """The event with its type: a row that an old caller wrote names none, but its payload does."""
        if event.type is not None:
            return event
        source = self._sources.get(event.source)
        scheme = source.scheme if source is not None else SCHEMES.get(scheme_name(event.source))
        places = source.event_type if source is not None and source.event_type is not None else None
        if places is None:
            places = scheme.event_type if scheme is not None else ()
        return replace(event, type=read_type(places, WebhookRequest("POST", "", event.headers, event.body)))

    def _of_settings(self, source: str, handler: Handler) -> Runnable:
        if handler.python is not None:
            what = f"the handler {handler.name!r} of {source}, python ="
            return self._of_program(CodeHandler(handler, load_object(handler.python, what)))
        if handler.sql is not None:
            return self._of_sql(handler, handler.sql)
        return Runnable(handler, self._url_run(handler), shares=None)

    def _of_program(self, one: CodeHandler) -> Runnable:
        require_runnable(one)
        return Runnable(one.handler, self._code_run(one), lambda _: SHARES)

    def _code_run(self, one: CodeHandler) -> Run:
        async def run(claim: Claim[ClaimedEvent], event: Event) -> str:
            return await self._code.run(claim, event, one)

        return run

    def _of_sql(self, handler: Handler, function: str) -> Runnable:
        quoted = ".".join(f'"{part}"' for part in function.split("."))  # of the settings: no quote is in it
        sql = self._sql(handler.name, quoted)

        async def run(claim: Claim[ClaimedEvent], event: Event) -> str:  # noqa: ARG001  the row has it
            await sql.run(claim)
            return "done"

        return Runnable(handler, run, sql.shares)

    def _url_run(self, handler: Handler) -> Run:
        async def run(claim: Claim[ClaimedEvent], event: Event) -> str:
            said = await self._url.post(handler, event)
            reach("url_handler.answered")
            await self._store.finish_handler(claim.item.worker, claim, handler.name)
            return said

        return run
