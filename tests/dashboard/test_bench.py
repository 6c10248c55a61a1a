"""What `make bench` asks the dashboard for."""

from __future__ import annotations

from bench.dashboard import addresses


def test_every_page_is_measured() -> None:
    """A new route with parameters must say which address stands for it."""
    assert {"", "/emails", "/webhooks", "/dead-letters", "/emails/{dead}"} <= set(addresses())
