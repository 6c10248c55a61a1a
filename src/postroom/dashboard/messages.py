"""E-mails and webhook events: the lists, and one message's whole life."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from postroom.dashboard.site import ROOT, Problem, actor_of, form_of, page, render, see, site_of
from postroom.queue.dead_letters import read_row
from postroom.queue.explain import KEPT_MAX, explain
from postroom.queue.search import STATES, InvalidCursor, list_rows
from postroom.queue.table import QueueTable
from postroom.queues import EMAILS, QUEUES, WEBHOOKS
from postroom.webhooks.replay import handlers_of, replay_event

TEXT_CHARACTERS_MAX = 200
SHOWN_CHARACTERS_MAX = 100_000
"""Of a body, a payload or another value on a message's page."""

MAIL_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Of a mail's HTML: nothing runs, and nothing is loaded, so no sender learns that it was looked at."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one queue is shown."""

    queue: QueueTable
    path: str
    title: str
    done: str


KINDS = {
    "emails": Kind(EMAILS, "/emails", "E-mails", "Sent"),
    "webhooks": Kind(WEBHOOKS, "/webhooks", "Webhook events", "Processed"),
}


@page
async def messages(request: Request) -> Response:
    """A page of a list; what looks like an id leads to its message."""
    kind = _kind(request)
    query = request.query_params
    state = query.get("state", "done")
    if state not in STATES:
        raise Problem(404, f"There is no list {state!r}.")
    text = query.get("q", "").strip()[:TEXT_CHARACTERS_MAX]
    if (message_id := _uuid(text)) is not None:
        return RedirectResponse(f"{ROOT}{kind.path}/{message_id}", 303)
    try:
        found = await list_rows(
            site_of(request).room.database,
            kind.queue,
            state,
            text=text.replace("\0", ""),
            cursor=query.get("after") or None,
        )
    except InvalidCursor:
        raise Problem(400, "There is no such place in this list: begin at its first page.") from None
    return render(
        request,
        "messages.html",
        kind=kind,
        state=state,
        states=_states(kind),
        text=text,
        found=found,
        after=query.get("after", ""),
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
    names = {"waiting": "Waiting", "in_flight": "In flight", "done": kind.done}
    return list((names | {"dead_letter": "Dead letters", "failed": "Given up"}).items())


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
