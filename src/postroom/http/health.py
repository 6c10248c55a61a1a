"""Whether this process lives (/healthz), and whether it can do its work (/readyz). Open to all."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from postroom.http.answers import json_answer
from postroom.http.doors import doors_of


async def healthz(_: Request) -> Response:
    """Alive."""
    return json_answer({"status": "ok"})


async def readyz(request: Request) -> Response:
    """
    Ready: the database is reachable and migrated.

    Anybody may ask: whoever holds an old snapshot is told by its process and its age alone.
    """
    readiness = doors_of(request).readiness
    problem = await readiness.problem()
    if problem is not None:
        return json_answer({"status": "not ready", "error": problem}, 503)
    holder = readiness.oldest_snapshot
    if holder is None:
        return json_answer({"status": "ready"})
    detail = {"kind": holder.kind, "pid": holder.pid, "age_s": holder.age_s}
    return json_answer({"status": "ready", "oldest_snapshot": detail})


ROUTES = [Route("/healthz", healthz), Route("/readyz", readyz)]
