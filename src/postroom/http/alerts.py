"""POST /functions/v1/alerts: the job `alerts`, for pg_cron, which can only ask."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from postroom.http.answers import json_answer
from postroom.http.doors import doors_of
from postroom.jobs import run_by_name


async def alerts(request: Request) -> Response:
    """Run it now; 500 where a target failed, as the history has it, too."""
    doors = doors_of(request)
    await doors.keyring.require_service(request)
    await doors.room.open()
    return json_answer({"message": await run_by_name(doors.room, "alerts")})


ROUTES = [Route("/functions/v1/alerts", alerts, methods=["POST"])]
