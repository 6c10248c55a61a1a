"""The shop as an app."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """See the module."""

    name = "tests.django.shop"
    label = "shop"
    default_auto_field = "django.db.models.BigAutoField"
