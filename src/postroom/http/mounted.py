"""
The application below a path of another one: app.mount("/postroom", postroom.http.app(room)).

Inside nothing knows of it: paths are those of the application alone. What leaves names the whole path: links
of the dashboard's pages, redirects, and the path of its cookie.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from postroom.http.cors import path_of

_LINK = b'="/dashboard'
_LOCATIONS = {b"location", b"hx-redirect", b"hx-location"}

# A mail as it looks, whose links are a stranger's.
_MAILS = "/html"


class Mounted:
    """Takes the path that it is mounted at off requests, and puts it on what refers to one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        root = scope.get("root_path", "").rstrip("/")
        path = path_of(scope)
        if scope["type"] != "http" or not root or path == scope["path"]:
            await self._app(scope, receive, send)
            return
        inside = {**scope, "root_path": "", "path": path, "raw_path": _raw_path(scope, root, path)}
        prefix = quote(root).encode()
        is_page, kept = False, {}

        async def send_outside(message: Message) -> None:
            nonlocal is_page, kept
            if message["type"] == "http.response.start":
                headers = [*_headers(message["headers"], prefix)]
                is_page = _is_page(headers) and not path.endswith(_MAILS)
                kept = {**message, "headers": headers, "body": b""}
                if not is_page:
                    await send(_without_body(kept))
                return
            if not is_page:
                await send(message)
                return
            kept["body"] += message.get("body", b"")
            if not message.get("more_body", False):
                body = kept["body"].replace(_LINK, b'="' + prefix + _LINK[2:])
                await send(_without_body(kept, size=len(body)))
                await send({"type": "http.response.body", "body": body})

        await self._app(inside, receive, send_outside)


def _raw_path(scope: Scope, root: str, path: str) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    for prefix in (root.encode(), quote(root).encode()):
        if raw.startswith(prefix):
            return raw[len(prefix) :]
    return quote(path).encode()


def _headers(headers: Iterable[tuple[bytes, bytes]], prefix: bytes) -> Iterable[tuple[bytes, bytes]]:
    for name, value in headers:
        if name in _LOCATIONS and value.startswith(b"/") and not value.startswith(b"//"):
            yield name, prefix + value
        elif name == b"set-cookie":
            yield name, value.replace(b"Path=/", b"Path=" + prefix + b"/")
        else:
            yield name, value


def _is_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)


def _without_body(kept: dict[str, Any], size: int | None = None) -> Message:
    start = {name: value for name, value in kept.items() if name != "body"}
    if size is not None:
        start["headers"] = [
            (name, str(size).encode() if name == b"content-length" else value)
            for name, value in kept["headers"]
        ]
    return start
