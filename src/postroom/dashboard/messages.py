"""E-mails and webhook events: the lists, and one message's whole life."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from postroom.dashboard.downloads import download
from postroom.dashboard.filters import PLACES, Asked
from postroom.dashboard.site import ROOT, Problem, actor_of, form_of, page, render, see, site_of
from postroom.email.attachments import Listed, read_attachments, read_file, with_images
from postroom.email.parts import read_headers
from postroom.email.source import read_source
from postroom.errors import InvalidEmail, PermanentFailure
from postroom.queue.dead_letters import read_row
from postroom.queue.explain import KEPT_MAX, explain
from postroom.queue.parts import STATES
from postroom.queue.search import InvalidCursor, Listing, list_rows
from postroom.queue.table import QueueTable
from postroom.queues import EMAILS, QUEUES, WEBHOOKS
from postroom.room import Room
from postroom.webhooks.replay import handlers_of, replay_event

SHOWN_CHARACTERS_MAX = 100_000
"""Of a body, a payload or another value on a message's page."""

SOURCE_BYTES_MAX = 256 * 1024
"""Of a mail's source, on a page; the whole is a file to take away."""

_COMMAND = ": postroom dead-letters "
"""In a line of what a row waits for: what the buttons of its page do too."""

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


@dataclass(frozen=True, slots=True)
class HandlerState:
    """A handler and one event: `state` is `done`, `not done` or `wants it no more`."""

    name: str
    state: str
    is_there: bool


@dataclass(frozen=True, slots=True)
class Source:
    """A mail's bytes on a page: their headers, and as much of them as is shown."""

    refused: str | None
    headers: list[tuple[str, str]]
    text: str
    size: int
    is_cut: bool
    files: list[Listed]


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
    source = await _source(site_of(request).room, row) if kind.queue is EMAILS else None
    return render(
        request,
        "message.html",
        kind=kind,
        row=row,
        explained=explained,
        said=[line for line in explained.why if _COMMAND not in line],
        commands=[line for line in explained.why if _COMMAND in line],
        source=source,
        kept_max=KEPT_MAX,
        replaces=_replaces(row.get("metadata")) if kind.queue is EMAILS else None,
        is_emptied=_is_emptied(kind, row),
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
    """Run an event's handlers that were missed; with `handler` also that one, with `all` every one."""
    room, event_id = site_of(request).room, request.path_params["id"]
    form = await form_of(request)
    handler, all_handlers = form.get("handler") or None, form.get("all") == "yes"
    row = await read_row(room.database, WEBHOOKS, event_id)
    if row is None:
        raise Problem(404, "There is no such event.")
    known = {one.name for one in await handlers_of(room.database, room.sources, row["webhook_type"])}
    if handler is not None and handler not in known:
        raise Problem(400, f"{row['webhook_type']} has no handler {handler[:80]!r}.")
    if not await replay_event(room.database, event_id, handler, actor_of(request), all_handlers=all_handlers):
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
    html = str(row["html"] or "")
    if "cid:" in html:
        html = await _with_images(site_of(request).room, request.path_params["id"], html)
    return Response(html, 200, headers, "text/html")


@page
async def mail_source(request: Request) -> Response:
    """The mail as it went out, or would go out, as a file."""
    room, email_id = site_of(request).room, request.path_params["id"]
    found = await read_source(room.database, email_id, room.settings.sender)
    if found is None:
        raise Problem(404, "There is no such e-mail.")
    if found.refused is not None:
        raise Problem(404, f"There are no bytes of it, since it cannot be sent: {found.refused}")
    return download(found.content, f"{email_id}.eml")


@page
async def mail_attachment(request: Request) -> Response:
    """One of a mail's attachments, to keep."""
    room, email_id, number = site_of(request).room, request.path_params["id"], request.path_params["number"]
    try:
        written = await room.emails.attachments(email_id)
    except PermanentFailure as error:
        raise Problem(404, f"The e-mail is gone, or its {error}") from None
    is_number = number.isdecimal() and len(number) < 10  # int() raises for thousands of digits
    found = await asyncio.to_thread(read_file, written, int(number)) if is_number else None
    if found is None:
        raise Problem(404, "The e-mail has no such attachment.")
    name, content = found
    return download(content, name)


def _kind(request: Request) -> Kind:
    kind = KINDS.get(request.path_params["kind"])
    if kind is None:
        raise Problem(404, "There is no such page.")
    return kind


async def _with_images(room: Room, email_id: UUID, html: str) -> str:
    """A mail's HTML with its images in it, where its attachments can be sent."""
    try:
        files = read_attachments(await room.emails.attachments(email_id))
    except (InvalidEmail, PermanentFailure):
        return html
    images = [(file.content_id, file.content_type, file.file) for file in files if file.content_id]
    return await asyncio.to_thread(with_images, html, images)


async def _source(room: Room, row: dict[str, Any]) -> Source | None:
    """A mail's bytes as far as a page shows them."""
    found = await read_source(room.database, UUID(row["id"]), room.settings.sender)
    if found is None:
        return None
    return Source(
        refused=found.refused,
        headers=read_headers(found.content),
        text=found.content[:SOURCE_BYTES_MAX].decode("utf-8", "replace").replace("\r\n", "\n"),
        size=len(found.content),
        is_cut=len(found.content) > SOURCE_BYTES_MAX,
        files=found.files,
    )


def _is_emptied(kind: Kind, row: dict[str, Any]) -> bool:
    """Whether retention.body has taken what it held."""
    if kind.queue is EMAILS:
        ended = row["status"] in ("sent", "failed")
        return ended and row["html"] == "" and row.get("text") is None
    return bool(row.get("payload") == {"_emptied": True})


async def _body(request: Request, message_id: UUID) -> str | None:
    body: bytes | None = await site_of(request).room.database.fetchval(
        "SELECT request.body FROM postroom.webhook_requests AS request WHERE request.id = $1", message_id
    )
    return None if body is None else _cut(body.decode("utf-8", "replace"))


async def _handlers(request: Request, row: dict[str, Any]) -> list[HandlerState]:
    """The handlers that want an event, and those that were done with it."""
    room, done, stopped = site_of(request).room, row["handlers_done"] or [], row["handlers_stopped"] or []
    known = await handlers_of(room.database, room.sources, row["webhook_type"])
    states = {one.name: "not done" for one in known if one.wants(row["event_type"])}
    states |= dict.fromkeys(stopped, "wants it no more") | dict.fromkeys(done, "done")
    names = {one.name for one in known}
    return [HandlerState(name, state, name in names) for name, state in states.items()]


def _replaces(metadata: Any) -> UUID | None:
    """The e-mail in whose place this one goes out."""
    return _uuid(str(metadata.get("replaces"))) if isinstance(metadata, dict) else None


def _states(kind: Kind) -> list[tuple[str, str]]:
    names = {"done": kind.done, "waiting": "Waiting", "in_flight": "In flight"}
    return list((names | {"dead_letter": "Dead letters", "failed": "Discarded", "all": "All"}).items())


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
