"""E-mail by HTTP, as Supabase's functions have it: send-email and process-email-queue."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from postroom.email.address import kind_of
from postroom.email.check import AcceptedEmail, check_email
from postroom.email.direct import NotSent
from postroom.email.enqueue import QueueableEmail, enqueue
from postroom.email.store import LimitReached
from postroom.errors import InvalidEmail
from postroom.http.answers import Refused, json_answer
from postroom.http.bodies import read_json_object
from postroom.http.doors import Doors, doors_of

REQUIRED = ("to", "subject", "html")
OPTIONAL = (
    *(
        "from",
        "replyTo",
        "use_queue",
        "email_type",
        "metadata",
        "idempotency_key",
        "text",
        "headers",
        "attachments",
    ),
    "reply_to",  # as the column is called
)

ROW_BYTES = 2_000
"""What an e-mail takes besides its content, about."""


async def send_email(request: Request) -> Response:
    """Queue an e-mail, or attempt it at once and say what came of it."""
    doors = doors_of(request)
    await doors.keyring.require_service(request)
    body = await read_json_object(request)
    accepted, use_queue = _checked(body)
    if use_queue:
        return await _queue(request, doors, accepted)
    return await _send_now(request, doors, accepted)


async def process_email_queue(request: Request) -> Response:
    """One pass over what is due."""
    doors = doors_of(request)
    await doors.keyring.require_service(request)
    done = await doors.email_passes.run()
    held = 0
    if done.began_at is not None:
        held = await doors.room.emails.count_held_by_limit(done.began_at)
    errors = list(done.errors)
    if done.paused:
        errors.append(done.paused)
    counts = {"processed": done.done, "failed": done.failed, "rateLimited": done.put_back + held}
    answer: dict[str, Any] = {**counts, "total": sum(counts.values())}
    return json_answer(answer | {"errors": errors} if errors else answer)


async def _queue(request: Request, doors: Doors, accepted: AcceptedEmail) -> Response:
    email = QueueableEmail(accepted)
    if accepted.idempotency_key is None:
        size_bytes = len(accepted.html) + len(accepted.text or "") + (accepted.attached or 0) + ROW_BYTES
        email_id = await doors.queueing.put(email, size_bytes)
    else:
        # It waits for whoever holds its key, and nobody is to wait with it.
        await doors.room.open()
        (email_id,) = await enqueue(doors.room.database, [email])
    request.state.facts["id"] = str(email_id)
    return json_answer({"queued": True, "queue_id": str(email_id), "message": "Email queued for sending"})


async def _send_now(request: Request, doors: Doors, accepted: AcceptedEmail) -> Response:
    came = await (await doors.direct_sends()).send(accepted)
    if isinstance(came, LimitReached):
        wait_s = max(ceil(came.wait_s), 1)
        error = f"the limit {came.limit_key} is reached; try again in {wait_s} s"
        raise Refused(429, error, {"retry-after": str(wait_s)})
    request.state.facts["id"] = str(came.id)
    if isinstance(came, NotSent):
        answer = {"error": came.reason, "queue_id": str(came.id)}
        return json_answer(answer | {"uncertain": True} if came.uncertain else answer, 500)
    return json_answer({"id": str(came.id)})


def _checked(body: Mapping[str, Any]) -> tuple[AcceptedEmail, bool]:
    if any(body.get(name) in (None, "") for name in REQUIRED):
        raise Refused(400, "Missing required fields: to, subject, html")
    known = (*REQUIRED, *OPTIONAL)
    if unknown := next((name for name in body if name not in known), None):
        raise Refused(400, f"{unknown[:80]!r} is no field of an e-mail; there are {', '.join(known)}")
    use_queue = body.get("use_queue")
    if not isinstance(use_queue, bool | None):
        raise Refused(400, f"use_queue: must be true or false, not {kind_of(use_queue)}")
    reply_to = "reply_to" if body.get("replyTo") is None else "replyTo"
    try:
        accepted = check_email(
            to=body["to"],
            subject=body["subject"],
            html=body["html"],
            text=body.get("text"),
            from_email=body.get("from"),
            reply_to=body.get(reply_to),
            headers=body.get("headers"),
            metadata=body.get("metadata"),
            email_type=body.get("email_type"),
            idempotency_key=body.get("idempotency_key"),
            attachments=body.get("attachments"),
        )
    except InvalidEmail as error:
        name = reply_to if error.field == "reply_to" else error.field
        raise InvalidEmail(name, error.problem) from None
    return accepted, bool(use_queue)


ROUTES = [
    Route("/functions/v1/send-email", send_email, methods=["POST"]),
    Route("/functions/v1/process-email-queue", process_email_queue, methods=["POST"]),
]
