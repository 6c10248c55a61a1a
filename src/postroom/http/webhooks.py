"""The webhook door: signatures are checked over the bytes as they came, and the answer follows the commit."""

from __future__ import annotations

import asyncio
from time import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from postroom import log
from postroom.errors import DatabaseUnavailable, SignatureError
from postroom.failpoints import reach
from postroom.http.answers import Refused, error_answer, json_answer, response_to
from postroom.http.bodies import Share, read_body
from postroom.http.cors import path_of
from postroom.http.doors import Doors, doors_of
from postroom.queue.line import LineFull
from postroom.row_ids import new_row_id
from postroom.webhooks.doctor import diagnose
from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.intake import NotStored
from postroom.webhooks.request import Answer, Headers, WebhookRequest
from postroom.webhooks.schemes import Verified
from postroom.webhooks.source import Source
from postroom.webhooks.source_settings import STRIPE

PREFIX = "/webhooks/"
STRIPE_FUNCTION = "/functions/v1/stripe-webhook"

DIAGNOSES_AT_ONCE = 2
"""Refused requests whose cause is looked for at once: a stranger must not keep the house busy with that."""

Facts = dict[str, object]
"""What the log's line of a request says."""

_RECEIVED = json_answer({"received": True})
_RECEIVED_BEFORE = json_answer({"received": True, "duplicate": True})

_diagnoses = asyncio.Semaphore(DIAGNOSES_AT_ONCE)
_log = log.get_logger()


class Door:
    """
    Stores what comes to the providers' addresses; all else is the application's.

    It stands before the routes, since providers come in crowds: to be routed, a request took 20 us of the
    85 that it takes in all.

    Args:
        app: Gets every other request.
    """

    def __init__(self, app: ASGIApp, doors: Doors) -> None:
        self._app = app
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        name = _source_name(scope) if scope["type"] == "http" else None
        if name is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await _receive(self._doors, name, scope, receive)
        except Exception as error:
            response = await response_to(error, Request(scope))
        await response(scope, receive, send)


def _source_name(scope: Scope) -> str | None:
    path = path_of(scope)
    if path.startswith(PREFIX):
        name = path[len(PREFIX) :]
        return name if name and "/" not in name else None
    return STRIPE if path == STRIPE_FUNCTION else None


async def _receive(doors: Doors, name: str, scope: Scope, receive: Receive) -> Response:
    source = doors.sources.get(name)
    if source is None:
        raise Refused(404, "no such source: name it in postroom.toml, as [webhooks.NAME]")
    facts = scope["state"]["facts"]
    facts["source"] = name
    share = Share(doors.strangers_bodies)
    try:
        came = await _as_it_came(doors, source, share, scope, receive)
        return await _answer(doors, source, came, facts)
    finally:
        share.give_back()


async def process_webhook_retries(request: Request) -> Response:
    """One pass over what is due."""
    doors = doors_of(request)
    await doors.keyring.require_service(request)
    done = await doors.webhook_passes.run()
    answer = {"processed": done.done, "failed": done.failed, "total": done.done + done.failed}
    errors = [*done.errors, *([done.paused] if done.paused else [])]
    return json_answer(answer | {"errors": errors} if errors else answer)


async def _answer(doors: Doors, source: Source, came: WebhookRequest, facts: Facts) -> Response:
    if (greeting := source.greet(came)) is not None:
        return _as_response(greeting)
    if came.method not in source.scheme.methods:
        allowed = ", ".join(source.scheme.methods)
        raise Refused(405, f"events of this source come by {allowed}", {"allow": allowed})
    try:
        verified = source.verify(came, time())
    except SignatureError as error:
        doors.exposition.intake[source.name, "refused"] += 1
        await _say_why(doors, source, came, error)
        return error_answer(source.scheme.refusal_status, error.sentence)
    if (handshake := source.handshake(came, verified)) is not None:
        return _as_response(handshake)
    return await _keep(doors, source, came, verified, facts)


async def _keep(
    doors: Doors, source: Source, came: WebhookRequest, verified: Verified, facts: Facts
) -> Response:
    lane = source.lane
    event = IncomingEvent(
        id=new_row_id(),
        source=source.name,
        event_id=verified.event_id,
        event_type=verified.event_type,
        request=came,
        target=came.url.removeprefix(doors.public_url),
        lane=lane.name_in(came) if lane else None,
        lane_place=lane.place_in(came) if lane else None,
        lane_holds=lane is not None and lane.dead_letter == "hold",
    )
    facts["id"] = str(event.id)
    facts["event_id"] = event.event_id
    facts["type"] = event.event_type
    try:
        is_new = await (await doors.intake()).keep(event)
    except (DatabaseUnavailable, LineFull, NotStored) as error:
        facts["error"] = str(error)
        doors.exposition.intake[source.name, "not_stored"] += 1
        return error_answer(503, "not stored: send it again", {"retry-after": "5"})
    facts["duplicate"] = not is_new
    doors.exposition.intake[source.name, "stored" if is_new else "duplicate"] += 1
    if not is_new:
        del facts["id"]  # it names no row
    reach("door.answer.before")
    if (answer := source.scheme.acknowledge(came)) is not None:
        return _as_response(answer)
    return _RECEIVED if is_new else _RECEIVED_BEFORE


async def _as_it_came(
    doors: Doors, source: Source, share: Share, scope: Scope, receive: Receive
) -> WebhookRequest:
    headers = Headers.of_bytes(scope["headers"])
    try:
        body = await read_body(
            receive, headers.first("content-length"), bytes_max=source.body_bytes_max, share=share
        )
    except Refused as refused:
        if refused.status == 503:
            doors.exposition.intake[source.name, "not_stored"] += 1
        raise
    return WebhookRequest(scope["method"], doors.public_url + _target(scope), headers, body)


def _target(scope: Scope) -> str:
    """Path and query, as they came."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return (path.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")


async def _say_why(doors: Doors, source: Source, came: WebhookRequest, error: SignatureError) -> None:
    """One line for whoever set this up; the stranger is told less."""
    if _diagnoses.locked():
        _log.warning("webhook.refused", source=source.name, reason=str(error.reason), found=error.sentence)
        return
    async with _diagnoses:
        others = [other for other in doors.sources.values() if other is not source]
        found = await asyncio.to_thread(diagnose, source, came, time(), others=others)
    _log.warning(
        "webhook.refused",
        source=source.name,
        reason=str(error.reason),
        found=found.found if found else error.sentence,
        advice=found.advice if found else None,
    )


def _as_response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, media_type=answer.content_type)


ROUTES = [
    Route("/functions/v1/process-webhook-retries", process_webhook_retries, methods=["POST"]),
]
