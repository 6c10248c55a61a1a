"""The application: routes, and what goes around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from postroom.dashboard.routes import ROUTES as DASHBOARD
from postroom.dashboard.site import ROOT, Site
from postroom.http import alerts, emails, health, metrics, webhooks
from postroom.http.answers import HANDLERS
from postroom.http.cors import Cors
from postroom.http.doors import Doors
from postroom.http.mounted import Mounted
from postroom.http.outside import Outside
from postroom.room import Room


def app(room: Room) -> Starlette:
    """
    The HTTP doors as an ASGI application.

    It opens the room where nobody has, and closes it then. It may be mounted in another application, below
    whatever path, which then belongs to POSTROOM_PUBLIC_URL: what needs a lifespan is begun at the first
    request there, and ends with the room.

    Args:
        room: Whose queue the doors lead to.
    """
    doors = Doors(room)
    site = Site(room, doors.keyring)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await doors.open()
        try:
            yield
        finally:
            await site.close()
            await doors.close()

    middleware = [
        Middleware(Mounted),
        Middleware(Outside),
        Middleware(Cors),
        Middleware(webhooks.Door, doors),
    ]
    if room.telemetry is not None:
        from postroom.telemetry.door import TracedDoor

        sources = frozenset(doors.sources)
        middleware.insert(1, Middleware(TracedDoor, telemetry=room.telemetry, sources=sources))
    made = Starlette(
        routes=[
            *webhooks.ROUTES,
            *emails.ROUTES,
            *alerts.ROUTES,
            *health.ROUTES,
            *metrics.ROUTES,
            *DASHBOARD,
            Route("/", _to_dashboard),
            Route(f"{ROOT}/", _to_dashboard),
        ],
        middleware=middleware,
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    made.router.redirect_slashes = False
    made.state.doors = doors
    made.state.site = site
    return made


async def _to_dashboard(_: Request) -> Response:
    """For a person who follows `ready http://…`, or types a slash too many."""
    return RedirectResponse(ROOT, 303)
