"""Every page that the dashboard's routes have, with an address at which it can be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from bench import pages
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
    "/emails/{long}/edit",
    "/emails/00000000-0000-0000-0000-000000000001",
)
"""Pages that look different at another address of their route: other columns, nothing found, a 404."""


def addresses() -> Iterator[str]:
    """The addresses below the dashboard's, with {names} of Seeded in them."""
    for address in pages.addresses(pages_alone=True):
        yield address.replace("{event}", "{dead_event}").replace("{caught}", CAUGHT)
    yield from ALSO


def address_of(address: str, seeded: Seeded) -> str:
    """One of them, with the ids of what is in the house."""
    ids = {name: value for name, value in vars(seeded).items() if isinstance(value, UUID)}
    return address.format(**ids)
