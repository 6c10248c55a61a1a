"""An event's whole way in one call: signed, through the door, handled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit
from uuid import UUID

from postroom.errors import ConfigError
from postroom.testing.signing import Payload, SignedRequest, signed
from postroom.webhooks.source import Source

if TYPE_CHECKING:
    from postroom.room import Room

OTHERS_S_MAX = 60.0
"""For what a worker of another process has taken."""


@dataclass(frozen=True)
class Delivered:
    """
    What became of an event.

    Attributes:
        answer_status, answer: What the provider was answered, such as 200 and {"received": true}; 400 and the
            reason where the signature did not hold.
        id: Of its row in webhook_retry_queue; None, as all that follows, where nothing was stored.
        status: `processed`; `pending` where a handler failed and there are attempts left; `dead_letter`.
        attempts: How many there were.
        last_error: What the last one said that failed.
        handled_by: The handlers that are done with it.
        unhandled: No handler wanted it.
        duplicate: It had been stored before; what is said here is of that first one.
        errors: What handlers raised in this call, with their traces.
    """

    answer_status: int
    answer: str
    id: UUID | None = None
    status: str | None = None
    attempts: int = 0
    last_error: str | None = None
    handled_by: tuple[str, ...] = ()
    unhandled: bool = False
    duplicate: bool = False
    errors: tuple[BaseException, ...] = field(default=(), compare=False)


async def deliver(
    room: Room,
    source: str,
    payload: Payload,
    *,
    secret: str | None = None,
    at: float | None = None,
    event_id: str | None = None,
    headers: Mapping[str, str] | None = None,
    attempts: int = 1,
) -> Delivered:
    """
    Send an event as its provider would, run the handlers, and say what became of it.

    It goes through the same door, table and engine as in production, in this process. Handlers of whatever
    else is due in this database run as well. Where a worker of another process takes the event first, as a
    `postroom up` beside the tests may, its end is waited for: `errors` has nothing of it, `last_error` has.
    One that does not know the source gives it back.

    Args:
        room: Yours, with its handlers. It is closed afterwards where it was not open before.
        source: One of postroom.toml, or `stripe` where its secret is set.
        payload: As for signed().
        secret: What the provider signs with; default: the source's first. A wrong one shows what a forgery
            gets.
        at: When it is signed, in seconds since 1970; default: now.
        event_id: Where the provider names the event in a header; default: a fresh one.
        headers: Further ones, such as `X-GitHub-Event`.
        attempts: How many there may be; the waits between them are left out. With 0 it is only stored.

    Raises:
        ConfigError: There is no such source, or a handler cannot be run.
        SchemaError: The database is not migrated.
        DatabaseUnavailable: Nobody answers there.
    """
    async with _opened(room):
        known = room.sources.get(source)
        if known is None:
            sources = ", ".join(room.sources) or "none"
            raise ConfigError(f"there is no source {source!r} in postroom.toml; sources: {sources}")
        house = (room.settings.public_url or "http://localhost").rstrip("/")
        request = signed(
            known,
            payload,
            _secret(known) if secret is None else secret,
            url=f"{house}/webhooks/{source}",
            at=at,
            event_id=event_id,
            headers=headers,
        )
        answer_status, answer, facts = await _post(room, request, request.url.removeprefix(house))
        if "duplicate" not in facts:
            return Delivered(answer_status, answer)
        row_id = await _row_id(room, source, facts)
        errors = [] if facts["duplicate"] else await _attempt(room, row_id, attempts)
        return await _found(room, row_id, answer_status, answer, facts, errors)


def deliver_now(room: Room, source: str, payload: Payload, **how: Any) -> Delivered:
    """
    The same where there is no event loop; see deliver().

    Raises:
        ConfigError: The test has a transaction open that its framework's handlers cannot see into, as
            Django's TestCase has.
    """
    for one in room.registry.of.get(source, ()):
        if one.transactions is not None:
            one.transactions.require_apart()
    return asyncio.run(deliver(room, source, payload, **how))


@asynccontextmanager
async def _opened(room: Room) -> AsyncIterator[None]:
    from postroom.database.migrate import migrate, require_schema

    was_open = room.is_open
    await room.open()
    try:
        if room.settings.database_url is None:
            await migrate(await room.database_url())
        async with room.database.transaction() as connection:
            await require_schema(connection)
        yield
    finally:
        if not was_open:
            await room.close()


def _secret(source: Source) -> str:
    if not source.scheme.needs_secret:
        return ""
    signs, verifies = source.scheme.signing_secret()
    if signs != verifies:
        raise ConfigError(
            f"source {source.name} verifies by a public key: give deliver() the private one as secret= "
            "(new_secret() makes both)"
        )
    return source.secrets[0]


async def _post(room: Room, request: SignedRequest, target: str) -> tuple[int, str, dict[str, Any]]:
    """The application's answer by ASGI, and what it noted of the request; `target` is path and query."""
    from postroom.http import app

    parts = urlsplit(request.url)
    path, _, query = target.partition("?")
    headers = {"host": parts.netloc, **request.headers, "content-length": str(len(request.body))}
    state: dict[str, Any] = {}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": parts.scheme,
        "root_path": "",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 0),
        "server": (parts.hostname, parts.port),
        "state": state,
    }
    answered: list[Mapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        answered.append(message)

    made = app(room)
    try:
        await made(scope, receive, send)
    finally:
        await made.state.doors.close()
    body = b"".join(message.get("body", b"") for message in answered[1:])
    return answered[0]["status"], body.decode("utf-8", "replace"), state["facts"]


async def _row_id(room: Room, source: str, facts: Mapping[str, Any]) -> UUID:
    """The event's row; that of the first one where it is a duplicate."""
    if not facts["duplicate"]:
        return UUID(facts["id"])
    first: UUID = await room.database.fetchval(
        "SELECT seen.id FROM postroom.seen_webhooks AS seen WHERE seen.source = $1 AND seen.event_id = $2",
        source,
        facts["event_id"],
    )
    return first


async def _attempt(room: Room, row_id: UUID, attempts: int) -> list[BaseException]:
    """Run passes until the event has ended or has had its attempts; what handlers raised."""
    errors: list[BaseException] = []
    await room.prepare_handlers()
    ends = monotonic() + OTHERS_S_MAX
    for attempt in range(attempts):
        if attempt and not await _make_due(room, row_id):
            break
        while await _pass_leaves_it(room, row_id, errors, ends):
            pass
    return errors


async def _pass_leaves_it(room: Room, row_id: UUID, errors: list[BaseException], ends: float) -> bool:
    """Run a pass; whether a worker elsewhere had the event meanwhile, and has given it back."""
    from postroom.webhooks.delivery import Delivery

    engine = room.webhook_engine()
    assert isinstance(engine.work, Delivery)
    engine.work.on_error = errors.append
    before = await _place(room, row_id)
    await engine.run_pass()
    after = await _place(room, row_id)
    while after.is_held and monotonic() < ends:
        await asyncio.sleep(0.02)
        after = await _place(room, row_id)
    was_elsewhere = before.is_held or after.lease_no > before.lease_no
    is_left = was_elsewhere and after.is_due and after.attempts == before.attempts
    return is_left and monotonic() < ends


class _Place(NamedTuple):
    """How often an event was leased and attempted, whether somebody holds it, whether it is due."""

    lease_no: int
    attempts: int
    is_held: bool
    is_due: bool


async def _place(room: Room, row_id: UUID) -> _Place:
    return _Place(*(await room.database.fetchrow(_PLACE, row_id) or (0, 0, False, False)))


_PLACE = """
    SELECT
        event.lease_no, event.attempts,
        event.status = 'processing' AND event.due_at > clock_timestamp() AS is_held,
        event.status IN ('pending', 'processing') AND event.due_at <= clock_timestamp() AS is_due
    FROM public.webhook_retry_queue AS event
    WHERE event.id = $1
"""


async def _make_due(room: Room, row_id: UUID) -> bool:
    """Whether it waits for another attempt; then it waits no longer."""
    waits: bool | None = await room.database.fetchval(
        """
        UPDATE public.webhook_retry_queue AS event
        SET due_at = clock_timestamp(), next_retry_at = NULL
        WHERE event.id = $1 AND event.status = 'pending'
        RETURNING true
        """,
        row_id,
    )
    return bool(waits)


async def _found(
    room: Room,
    row_id: UUID,
    answer_status: int,
    answer: str,
    facts: Mapping[str, Any],
    errors: list[BaseException],
) -> Delivered:
    row = await room.database.fetchrow(
        """
        SELECT
            event.status, event.attempts, event.last_error, event.handlers_done,
            COALESCE(event.metadata @> '{"unhandled": true}', false) AS unhandled
        FROM public.webhook_retry_queue AS event
        WHERE event.id = $1
        """,
        row_id,
    )
    if row is None:  # seen before, and its row is gone
        return Delivered(answer_status, answer, duplicate=facts["duplicate"])
    return Delivered(
        answer_status,
        answer,
        id=row_id,
        status=row["status"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        handled_by=tuple(row["handlers_done"]),
        unhandled=row["unhandled"],
        duplicate=facts["duplicate"],
        errors=tuple(errors),
    )
