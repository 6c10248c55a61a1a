"""What the handlers of the tests write; it has no unique key: what happened twice is there twice."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order that was paid."""

    stripe_id = models.TextField()
