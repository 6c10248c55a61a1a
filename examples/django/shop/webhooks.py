"""What Stripe's events are for; postroom imports the module `webhooks` of every app."""

from django.core.mail import EmailMessage
from django.utils import timezone

from postroom import Event
from postroom.django import on
from shop.models import Order


@on("stripe", "checkout.session.completed", name="fulfil")
def fulfil(event: Event) -> None:
    """The order is paid and the receipt is queued, exactly once, however often Stripe tells it."""
    checkout = event.payload["data"]["object"]
    order = Order.objects.select_for_update().get(pk=checkout["client_reference_id"])
    order.paid_at = timezone.now()
    order.save(update_fields=["paid_at"])
    EmailMessage(
        f"Your receipt: {order.item}",
        f"You have paid {checkout['amount_total'] / 100:.2f}. Thank you!",
        to=[order.email],
    ).send()
