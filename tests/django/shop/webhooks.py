"""The shop's handler: an order and its receipt, or neither."""

from __future__ import annotations

from typing import Any

from django.core.mail import EmailMessage

from postroom.django import on
from tests.django.shop.models import Order


@on("stripe", "checkout.session.completed", name="fulfil")
def fulfil(event: Any) -> None:
    """Write the order down and mail the receipt."""
    session = event.payload["data"]["object"]
    Order.objects.create(stripe_id=session["id"])
    EmailMessage("Your order", "Thank you", to=[session["customer_email"]]).send()
