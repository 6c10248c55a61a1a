"""
For tests of your own webhook handlers.

`deliver` sends an event as its provider would, through the real door of your Room, runs the handlers, and
says what became of it. No port, no worker, no network; the database is a real one of your tests.

    from postroom.testing import deliver
    from shop.hooks import room

    async def test_a_paid_checkout_is_an_order(db):
        done = await deliver(room, "stripe", {"id": "evt_1", "type": "checkout.session.completed", ...})
        assert done.status == "processed"
        assert await db.fetchval("SELECT count(*) FROM orders") == 1

`deliver_now` does the same where there is no event loop. `signed` makes the request alone, for any HTTP
client.
"""

from __future__ import annotations

from postroom.testing.delivering import Delivered, deliver, deliver_now
from postroom.testing.signing import SignedRequest, new_secret, signed

__all__ = ["Delivered", "SignedRequest", "deliver", "deliver_now", "new_secret", "signed"]
