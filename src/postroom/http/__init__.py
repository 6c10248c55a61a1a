"""The HTTP doors: `app(room)` is an ASGI application; one module holds one family of routes."""

from postroom.http.app import app

__all__ = ["app"]
