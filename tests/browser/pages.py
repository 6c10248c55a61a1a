"""Every page that the dashboard's routes have, with an address at which it can be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from starlette.routing import Route

from postroom.dashboard.routes import ROUTES
from postroom.dashboard.site import ROOT
from tests.browser.seed import CAUGHT, Seeded

ALSO = (
    "/emails?state=waiting",
    "/emails?state=dead_letter",
    "/emails?q=nothing+like+it",
    "/emails?q=order&to=ada@&since=7d&until=1m&error=",
    "/emails?since=yesterday&subject=x",
    "/emails?state=all",
    "/webhooks?state=in_flight",
    "/dead-letters?reason=permanent",
    "/dead-letters?q=nobody&since=24h",
    "/emails/00000000-0000-0000-0000-000000000001",
)
"""Pages that look different at another address of their route: other columns, nothing found, a 404."""

OF_A_KIND = {
    "{kind}": ("/emails", "/webhooks"),
    "{kind}/{id:uuid}": ("/emails/{sent}", "/emails/{waiting}", "/emails/{dead}", "/webhooks/{dead_event}"),
    "emails/{id:uuid}/edit": ("/emails/{dead}/edit", "/emails/{long}/edit"),
    "dead-letters/actions/{id:uuid}": ("/dead-letters/actions/{action}",),
    "emails/{id:uuid}/html": (),  # a stranger's mail, in its frame: it is not ours to judge
    "mailbox/{name}": (f"/mailbox/{CAUGHT}",),
    "emails/{id:uuid}/source": (),  # files to take away
    "emails/{id:uuid}/attachments/{number}": (),
    "mailbox/{name}/source": (),
    "mailbox/{name}/attachments/{number}": (),
    "mailbox/{name}/html": (),
    "static/{name}": (),
}
"""What stands for a route that has parameters."""

PARTS = {"/live", "/flow"}
"""Routes that answer with a part of the overview."""


def addresses() -> Iterator[str]:
    """
    The addresses below the dashboard's, with {names} of Seeded in them.

    Raises:
        LookupError: A route has parameters, and nobody has said what stands for it.
    """
    for route in ROUTES:
        assert isinstance(route, Route)
        path = route.path.removeprefix(ROOT)
        if path in PARTS or "GET" not in (route.methods or ()):
            continue
        if "{" not in path:
            yield path
        elif path.removeprefix("/") in OF_A_KIND:
            yield from OF_A_KIND[path.removeprefix("/")]
        else:
            raise LookupError(f"say in {__name__}.OF_A_KIND which address shows a page of {path}")
    yield from ALSO


def address_of(address: str, seeded: Seeded) -> str:
    """One of them, with the ids of what is in the house."""
    ids = {name: value for name, value in vars(seeded).items() if isinstance(value, UUID)}
    return address.format(**ids)
