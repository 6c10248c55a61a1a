"""How providers sign their requests: one module a kind of scheme, its source document on top of it."""

from __future__ import annotations

from types import MappingProxyType

from postroom.webhooks.schemes.addressed import HubSpot, Square, Twilio
from postroom.webhooks.schemes.base import TOLERANCE_S, Claim, Scheme, Verified
from postroom.webhooks.schemes.custom import Hmac
from postroom.webhooks.schemes.inside import Adyen, Mailgun
from postroom.webhooks.schemes.paddle import Paddle
from postroom.webhooks.schemes.plain import GitHub, Line, Meta, Shopify
from postroom.webhooks.schemes.public_keys import Discord, SendGrid
from postroom.webhooks.schemes.standard import Resend, StandardWebhooks, Svix
from postroom.webhooks.schemes.stripe import Stripe
from postroom.webhooks.schemes.timed import Linear, Slack, Zoom
from postroom.webhooks.schemes.unsigned import NoScheme, Postmark

__all__ = ["SCHEMES", "TOLERANCE_S", "Claim", "Hmac", "Scheme", "Verified", "scheme_name"]

SCHEMES = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Adyen(),
            Discord(),
            GitHub(),
            Hmac(),
            HubSpot(),
            Line(),
            Linear(),
            Mailgun(),
            Meta(),
            NoScheme(),
            Paddle(),
            Postmark(),
            Resend(),
            SendGrid(),
            Shopify(),
            Slack(),
            Square(),
            StandardWebhooks(),
            Stripe(),
            Svix(),
            Twilio(),
            Zoom(),
        )
    }
)
"""All schemes by name; `hmac` stands for those that postroom.toml describes."""

_ALSO_CALLED = {"standard": "standard-webhooks", "standardwebhooks": "standard-webhooks"}


def scheme_name(text: str) -> str:
    """A scheme's name, however it is written."""
    name = text.strip().lower().replace("_", "-")
    return _ALSO_CALLED.get(name, name)
