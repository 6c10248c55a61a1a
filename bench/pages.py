"""The dashboard's routes as addresses: to be measured, looked at in a browser, and taken pictures of."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.routing import Route

from postroom.dashboard.routes import ROUTES
from postroom.dashboard.site import ROOT

PAGES = {
    "{kind}": ("/emails", "/webhooks"),
    "{kind}/{id:uuid}": ("/emails/{sent}", "/emails/{waiting}", "/emails/{dead}", "/webhooks/{event}"),
    "emails/{id:uuid}/edit": ("/emails/{dead}/edit",),
    "dead-letters/actions/{id:uuid}": ("/dead-letters/actions/{action}",),
    "mailbox/{name}": ("/mailbox/{caught}",),
}
"""What stands for a route that has parameters; the {names} are ids of what is in a house."""

NO_PAGES = {
    "live": ("/live",),
    "flow": ("/flow",),
    "emails/{id:uuid}/html": ("/emails/{sent}/html",),
    "emails/{id:uuid}/source": ("/emails/{sent}/source",),
    "emails/{id:uuid}/attachments/{number}": (),
    "mailbox/{name}/html": ("/mailbox/{caught}/html",),
    "mailbox/{name}/source": ("/mailbox/{caught}/source",),
    "mailbox/{name}/attachments/{number}": (),
    "static/{name}": (),
}
"""The same of routes that answer with a part of a page, a stranger's mail in its frame, or a file."""


def addresses(*, pages_alone: bool = False) -> Iterator[str]:
    """
    The addresses below the dashboard's.

    Raises:
        LookupError: A route has parameters, and nobody has said what stands for it.
    """
    for route in ROUTES:
        assert isinstance(route, Route)
        path = route.path.removeprefix(ROOT).removeprefix("/")
        if "GET" not in (route.methods or ()):
            continue
        if path in NO_PAGES:
            yield from () if pages_alone else NO_PAGES[path]
        elif path in PAGES:
            yield from PAGES[path]
        elif "{" not in path:
            yield f"/{path}" if path else ""
        else:
            raise LookupError(f"say in {__name__}.PAGES which address shows a page of {path}")
