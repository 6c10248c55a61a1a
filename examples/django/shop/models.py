"""What the shop knows."""

from django.db import models


class Order(models.Model):
    """What somebody has ordered, and whether it is paid."""

    email = models.EmailField()
    item = models.CharField(max_length=200)
    paid_at = models.DateTimeField(null=True)
