"""
The shop and postroom's doors in one server: Stripe calls /postroom/webhooks/stripe.

Under WSGI leave this out: `manage.py postroom serve` has the doors on a port of its own.
"""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from starlette.applications import Starlette
from starlette.routing import Mount

import postroom.http

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
shop = ASGIStaticFilesHandler(
    get_asgi_application()
)  # how the admin pages look; in production nginx or WhiteNoise

from postroom.django import room  # noqa: E402  Django is set up now

house = postroom.http.app(room)
application = Starlette(
    routes=[Mount("/postroom", house), Mount("/", shop)],
    lifespan=lambda _: house.router.lifespan_context(house),
)
