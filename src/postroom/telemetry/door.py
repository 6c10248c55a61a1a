"""The webhook door, whose requests are spans: around the application, and only where somebody has asked."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import Any
from uuid import UUID

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from postroom.telemetry.signals import Telemetry, fail, now_ns

_DOOR = "/webhooks/"
_STRIPE = "/functions/v1/stripe-webhook"


class TracedDoor:
    """
    Wraps the application; what is no provider's request passes.

    Args:
        sources: Those that there are: strangers may ask for any name.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, sources: frozenset[str]) -> None:
        self._app = app
        self._telemetry = telemetry
        self._sources = sources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        path = scope["path"] if scope["type"] == "http" else ""
        if not path.startswith((_DOOR, _STRIPE)):
            await self._app(scope, receive, send)
            return
        source = "stripe" if path.startswith(_STRIPE) else path.removeprefix(_DOOR).partition("/")[0]
        if source not in self._sources:
            source = "unknown"
        began_ns, began, status = now_ns(), monotonic(), 0

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            self._tell(scope, source, status, began_ns, monotonic() - began)

    def _tell(self, scope: Scope, source: str, status: int, began_ns: int, took_s: float) -> None:
        facts: dict[str, Any] = scope.get("state", {}).get("facts", {})
        row = None
        with suppress(ValueError):
            row = UUID(facts["id"]) if status < 400 and "id" in facts else None
        attributes = {
            "messaging.system": "postroom",
            "postroom.source": source,
            "http.request.method": scope["method"],
            "http.response.status_code": status,
        }
        if row is not None:
            attributes["messaging.message.id"] = str(row)
        for fact, name in (("event_id", "postroom.event_id"), ("type", "postroom.event_type")):
            if facts.get(fact):
                attributes[name] = str(facts[fact])
        if "duplicate" in facts:
            attributes["postroom.duplicate"] = bool(facts["duplicate"])
        if self._telemetry.has_traces:
            traceparent = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
            parent = None if traceparent is None else traceparent.decode("latin-1")[:100]
            span = self._telemetry.intake_span(f"webhook {source}", attributes, row, parent, began_ns)
            if not 200 <= status < 400:
                fail(span, str(status))
            span.end()
        self._telemetry.instruments.intake.add(1, {"source": source, "status": status})
        self._telemetry.instruments.intake_duration.record(took_s, {"source": source})
