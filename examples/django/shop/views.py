"""Ordering, and a look at what became of it."""

import json

from django.core.mail import send_mail
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST

from shop.models import Order


@require_POST
@transaction.atomic
def place(request: HttpRequest) -> JsonResponse:
    """Write an order down and mail that it has come: both, or neither."""
    wanted = json.loads(request.body)
    order = Order.objects.create(email=wanted["email"], item=wanted["item"])
    send_mail(f"Your order of {order.item}", "We have it. It ships when it is paid.", None, [order.email])
    # Where the customer pays: stripe.checkout.Session.create(client_reference_id=str(order.pk), …).url
    return JsonResponse({"id": order.pk}, status=201)


def look(request: HttpRequest, order_id: int) -> JsonResponse:  # noqa: ARG001
    """What became of an order."""
    order = get_object_or_404(Order, pk=order_id)
    return JsonResponse({"item": order.item, "paid": order.paid_at is not None})
