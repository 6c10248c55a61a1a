"""E-mails and webhook events: the lists, and one message's whole life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from postroom.dashboard.filters import PLACES, Asked
from postroom.dashboard.site import ROOT, Problem, actor_of, form_of, page, render, see, site_of
from postroom.queue.dead_letters import read_row
from postroom.queue.explain import KEPT_MAX, explain
from postroom.queue.parts import STATES
from postroom.queue.search import InvalidCursor, Listing, list_rows
from postroom.queue.table import QueueTable
from postroom.queues import EMAILS, QUEUES, WEBHOOKS
from postroom.webhooks.replay import handlers_of, replay_event

SHOWN_CHARACTERS_MAX = 100_000
"""Of a body, a payload or another value on a message's page."""

MAIL_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Of a mail's HTML: nothing runs, and nothing is loaded, so no sender learns that it was looked at."""


@dataclass(frozen=True, slots=True)
class Kind:
    """
    How one queue is shown.

    Attributes:
        fields: The filters by a text, and what they are called.
        hint: What the search looks in.
    """

    queue: QueueTable
    path: str
    title: str
    done: str
    fields: Mapping[str, str]
    hint: str


KINDS = {
    "emails": Kind(
        EMAILS,
        "/emails",
        "E-mails",
        "Sent",
        {"to": "To", "subject": "Subject", "type": "Type", "error": "Error"},
        "Address, subject, type, error or id",
    ),
    "webhooks": Kind(
        WEBHOOKS,
        "/webhooks",
        "Webhook events",
        "Processed",
        {"source": "Source", "type": "Type", "event": "Event id", "error": "Error"},
        "Event id, type, source, error or id",
    ),
}


@page
async def messages(request: Request) -> Response:
    """A page of a list; what looks like an id leads to its message."""
    kind = _kind(request)
    asked = Asked(request, kind.path, kind.fields, kept=("state",))
    query = request.query_params
    if (message_id := _uuid(asked.values["q"])) is not None:
        return RedirectResponse(f"{ROOT}{kind.path}/{message_id}", 303)
    # Who looks for something looks everywhere, until a list is chosen.
    chosen = query.get("state") or ("all" if asked.is_on else "done")
    state = next((each for each in STATES if each == chosen), None)
    if state is None:
        raise Problem(404, f"There is no list {chosen[:80]!r}.")
    after, before = (query.get(name) or None for name in PLACES)
    if asked.canonical is not None and after is before is None:
        return RedirectResponse(asked.canonical, 303)
    found = Listing([], None, None)
    if not asked.errors:
        try:
            found = await list_rows(
                site_of(request).room.database,
                [kind.queue],
                state,
                asked.filters,
                after=after,
                before=before,
            )
        except InvalidCursor:
            raise Problem(400, "There is no such place in this list: begin at its first page.") from None
    return render(
        request,
        "messages.html",
        status=400 if asked.errors else 200,
        kind=kind,
        asked=asked,
        state=state,
        states=_states(kind),
        found=found,
        is_first=after is before is None,
        goes_back=before is not None,
    )


@page
async def message(request: Request) -> Response:
    """One message."""
    kind, message_id = _kind(request), request.path_params["id"]
    database = site_of(request).room.database
    explained = await explain(database, QUEUES, message_id, ways=site_of(request).room.transport_names)
    row = await read_row(database, kind.queue, message_id)
    if explained is None or row is None:
        raise Problem(404, f"There is no {kind.queue.noun} {message_id}: it may be gone by its retention.")
    return render(
        request,
        "message.html",
        kind=kind,
        row=row,
        explained=explained,
        kept_max=KEPT_MAX,
        replaces=_replaces(row.get("metadata")) if kind.queue is EMAILS else None,
        payload=_cut(_pretty(row.get("payload"))),
        headers=_cut(_pretty(row.get("headers"))),
        metadata=_cut(_pretty(row.get("metadata"))),
        html=_cut(row.get("html")),
        text=_cut(row.get("text")),
        handlers=await _handlers(request, row) if kind.queue is WEBHOOKS else [],
        notice=request.query_params.get("notice", "")[:300],
        body=await _body(request, message_id) if kind.queue is WEBHOOKS else None,
    )


@page
async def replay(request: Request) -> Response:
    """Run an event's handlers that were missed; with `handler` also that one."""
    room, event_id = site_of(request).room, request.path_params["id"]
    handler = (await form_of(request)).get("handler") or None
    row = await read_row(room.database, WEBHOOKS, event_id)
    if row is None:
        raise Problem(404, "There is no such event.")
    known = {one.name for one in await handlers_of(room.database, room.sources, row["webhook_type"])}
    if handler is not None and handler not in known:
        raise Problem(400, f"{row['webhook_type']} has no handler {handler[:80]!r}.")
    if not await replay_event(room.database, event_id, handler, actor_of(request)):
        raise Problem(
            400, f"It is {row['status']}: only an event that has ended, with its body, is replayed."
        )
    return see(f"/webhooks/{event_id}?{urlencode({'notice': 'It is handled again.'})}")


@page
async def mail(request: Request) -> Response:
    """A mail's HTML, for a frame in which nothing runs."""
    row = await read_row(site_of(request).room.database, EMAILS, request.path_params["id"])
    if row is None:
        raise Problem(404, "There is no such e-mail.")
    headers = {"content-security-policy": MAIL_POLICY, "x-frame-options": "SAMEORIGIN"}
    return Response(str(row["html"] or ""), 200, headers, "text/html")


def _kind(request: Request) -> Kind:
    kind = KINDS.get(request.path_params["kind"])
    if kind is None:
        raise Problem(404, "There is no such page.")
    return kind


async def _body(request: Request, message_id: UUID) -> str | None:
    body: bytes | None = await site_of(request).room.database.fetchval(
        "SELECT request.body FROM postroom.webhook_requests AS request WHERE request.id = $1", message_id
    )
    return None if body is None else _cut(body.decode("utf-8", "replace"))


async def _handlers(request: Request, row: dict[str, Any]) -> list[tuple[str, str]]:
    """The handlers that want an event, and those that were done with it: name and state."""
    room, done, stopped = site_of(request).room, row["handlers_done"] or [], row["handlers_stopped"] or []
    known = await handlers_of(room.database, room.sources, row["webhook_type"])
    states = {one.name: "not done" for one in known if one.wants(row["event_type"])}
    states |= dict.fromkeys(stopped, "wants it no more") | dict.fromkeys(done, "done")
    return [
        (name, state if name in {one.name for one in known} else f"{state}, and gone")
        for name, state in states.items()
    ]


def _replaces(metadata: Any) -> UUID | None:
    """The e-mail in whose place this one goes out."""
    return _uuid(str(metadata.get("replaces"))) if isinstance(metadata, dict) else None


def _states(kind: Kind) -> list[tuple[str, str]]:
    names = {"done": kind.done, "waiting": "Waiting", "in_flight": "In flight"}
    return list((names | {"dead_letter": "Dead letters", "failed": "Given up", "all": "All"}).items())


def _cut(text: str | None) -> str | None:
    """A value as far as it is shown."""
    if text is None or len(text) <= SHOWN_CHARACTERS_MAX:
        return text
    return f"{text[:SHOWN_CHARACTERS_MAX]}\n… cut off here: {len(text):,} characters in all"


def _pretty(value: Any) -> str | None:
    if value in (None, {}, ""):
        return None
    if isinstance(value, str):
        return value
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text) if len(text) >= 32 else None
    except ValueError:
        return None
