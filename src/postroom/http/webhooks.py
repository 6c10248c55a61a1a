"""The webhook door: signatures are checked over the bytes as they came, and the answer follows the commit."""

from __future__ import annotations

import asyncio
from time import time
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from postroom import log
from postroom.errors import DatabaseUnavailable, SignatureError
from postroom.failpoints import reach
from postroom.http.answers import Refused, error_answer, json_answer
from postroom.http.bodies import Share, read_body
from postroom.http.doors import Doors, doors_of
from postroom.webhooks.doctor import diagnose
from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.intake import LineFull, NotStored
from postroom.webhooks.request import Answer, Headers, WebhookRequest
from postroom.webhooks.schemes import Verified
from postroom.webhooks.source import Source
from postroom.webhooks.source_settings import STRIPE

METHODS = ["POST", "GET"]
"""Starlette answers HEAD where it answers GET; what a source's events come with its scheme says."""

DIAGNOSES_AT_ONCE = 2
"""Refused requests whose cause is looked for at once: a stranger must not keep the house busy with that."""

_diagnoses = asyncio.Semaphore(DIAGNOSES_AT_ONCE)
_log = log.get_logger()


class Door:
    """Stores a provider's event. An ASGI application: as a function, Starlette would wrap it once more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        response = await _receive(Request(scope, receive, send))
        await response(scope, receive, send)


async def _receive(request: Request) -> Response:
    doors = doors_of(request)
    name = request.path_params.get("source", STRIPE)
    source = doors.sources.get(name)
    if source is None:
        raise Refused(404, "no such source: name it in postroom.toml, as [webhooks.NAME]")
    request.state.facts["source"] = source.name
    with doors.strangers_bodies.share() as share:
        try:
            came = await _as_it_came(request, doors, source, share)
        except Refused as refused:
            if refused.status == 503:
                doors.exposition.intake[source.name, "not_stored"] += 1
            raise
        return await _answer(request, doors, source, came)


async def process_webhook_retries(request: Request) -> Response:
    """One pass over what is due."""
    doors = doors_of(request)
    await doors.keyring.require_service(request)
    done = await doors.webhook_passes.run()
    answer = {"processed": done.done, "failed": done.failed, "total": done.done + done.failed}
    return json_answer(answer | {"errors": done.errors} if done.errors else answer)


async def _answer(request: Request, doors: Doors, source: Source, came: WebhookRequest) -> Response:
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
    return await _keep(request, doors, source, came, verified)


async def _keep(
    request: Request, doors: Doors, source: Source, came: WebhookRequest, verified: Verified
) -> Response:
    lane = source.lane
    event = IncomingEvent(
        id=uuid4(),
        source=source.name,
        event_id=verified.event_id,
        event_type=verified.event_type,
        request=came,
        target=_target(request),
        lane=lane.name_in(came) if lane else None,
        lane_place=lane.place_in(came) if lane else None,
        lane_holds=lane is not None and lane.dead_letter == "hold",
    )
    request.state.facts |= {"id": str(event.id), "event_id": event.event_id, "type": event.event_type}
    try:
        is_new = await (await doors.intake()).keep(event)
    except (DatabaseUnavailable, LineFull, NotStored) as error:
        request.state.facts["error"] = str(error)
        doors.exposition.intake[source.name, "not_stored"] += 1
        return error_answer(503, "not stored: send it again", {"retry-after": "5"})
    request.state.facts["duplicate"] = not is_new
    doors.exposition.intake[source.name, "stored" if is_new else "duplicate"] += 1
    if not is_new:
        del request.state.facts["id"]  # it names no row
    reach("door.answer.before")
    if (answer := source.scheme.acknowledge(came)) is not None:
        return _as_response(answer)
    return json_answer({"received": True} if is_new else {"received": True, "duplicate": True})


async def _as_it_came(request: Request, doors: Doors, source: Source, share: Share) -> WebhookRequest:
    return WebhookRequest(
        method=request.method,
        url=(doors.room.settings.public_url or "http://localhost").rstrip("/") + _target(request),
        headers=Headers(request.headers.raw),
        body=await read_body(request, bytes_max=source.body_bytes_max, share=share),
    )


def _target(request: Request) -> str:
    """Path and query, as they came."""
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope["query_string"]
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
    Route("/webhooks/{source}", Door(), methods=METHODS),
    Route("/functions/v1/stripe-webhook", Door(), methods=METHODS),
    Route("/functions/v1/process-webhook-retries", process_webhook_retries, methods=["POST"]),
]
