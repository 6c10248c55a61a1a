"""CORS for /functions/v1/*: browsers may call these doors as they call Supabase's functions."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/functions/v1/"

ASKED_CHARACTERS_MAX = 1_000
"""A browser asks for a handful of names; what a stranger asks for is given back, so it has an end."""

# Any origin: what protects these doors is a key in a header, which no browser adds by itself.
_ORIGIN = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "retry-after",
}
_HEADERS = "authorization, x-client-info, apikey, content-type"
_PREFLIGHT = {
    "access-control-allow-methods": "POST, OPTIONS",
    "access-control-max-age": "86400",
}


class Cors:
    """Answers preflights, and lets browsers read every answer, errors too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or not path_of(scope).startswith(PREFIX):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_ORIGIN)
            await send(message)

        if scope["method"] == "OPTIONS":
            # Further ones, such as x-region, are allowed where they are asked for.
            asked = Headers(scope=scope).get("access-control-request-headers", "")[:ASKED_CHARACTERS_MAX]
            headers = _PREFLIGHT | {
                "access-control-allow-headers": f"{_HEADERS}, {asked}" if asked else _HEADERS
            }
            await PlainTextResponse("ok", headers=headers)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)


def path_of(scope: Scope) -> str:
    """The path below where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path
