"""GET /metrics, for Prometheus. Open to all, as /healthz is: counts, and no address, no text, no secret."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from postroom.http.doors import doors_of


async def metrics(request: Request) -> Response:
    """Everything, as text."""
    text = await doors_of(request).exposition.text()
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


ROUTES = [Route("/metrics", metrics)]
