"""A source: a provider that sends webhooks, how it signs, and the handlers that its events are for."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Literal

from postroom.webhooks.places import Place, Places
from postroom.webhooks.request import Answer, WebhookRequest
from postroom.webhooks.schemes import Scheme, Verified

BODY_BYTES_MAX = 10 * 1024 * 1024

LANE_CHARACTERS_MAX = 255

ALL_EVENTS = ("*",)


@dataclass(frozen=True, slots=True)
class Handler:
    """
    What an event is for, as postroom.toml says it: exactly one of url, sql and python is set.

    Attributes:
        name: What is done is remembered by it.
        events: Patterns of types; `*` stands for any characters, dots too.
        sql: A function (payload jsonb, event_id text).
        python: `module:function`.
        secret: What the event is signed with on its way to the URL, by Standard Webhooks.
        allow_private: A public name may resolve to a private address.
    """

    name: str
    events: tuple[str, ...] = ALL_EVENTS
    url: str | None = field(default=None, repr=False)
    sql: str | None = None
    python: str | None = None
    secret: str | None = field(default=None, repr=False)
    allow_private: bool = False

    def wants(self, event_type: str | None) -> bool:
        """Whether it is for events of this type; one without a type is for those that take all."""
        if "*" in self.events:
            return True
        return event_type is not None and any(_pattern(one).fullmatch(event_type) for one in self.events)


@dataclass(frozen=True, slots=True)
class Lane:
    """
    Events of one object are handled one after the other.

    Attributes:
        place: Where the object is named.
        order: Where the provider gives its order; None stands for the order of arrival.
        dead_letter: Whether a dead letter holds those behind it or lets them pass.
    """

    place: Place
    order: Place | None = None
    dead_letter: Literal["hold", "pass"] = "hold"

    def name_in(self, request: WebhookRequest) -> str | None:
        """The lane of a request's event; None where it names no object."""
        name = self.place.read(request)
        if not name:
            return None
        # Half a character, which JSON can name, no database can hold.
        return name[:LANE_CHARACTERS_MAX].replace("\0", "").encode("utf-8", "replace").decode()

    def place_in(self, request: WebhookRequest) -> str | None:
        """The provider's order: a number, or a time as one; None where it gives none that can be read."""
        text = self.order.read(request) if self.order is not None else None
        if text is None or len(text) > 50:
            return None
        with suppress(InvalidOperation):
            number = Decimal(text)
            # Written out: 1e-999999999 would be a gigabyte.
            return f"{number:f}" if number.is_finite() and abs(number.adjusted()) < 50 else None
        with suppress(ValueError):
            return f"{datetime.fromisoformat(text).timestamp():f}"
        return None


@dataclass(frozen=True, slots=True)
class Source:
    """
    A provider that sends webhooks.

    Attributes:
        name: As in POST /webhooks/NAME, and the webhook_type of its rows.
        secrets: Several during a rotation; empty where the scheme needs none.
        event_id, event_type: None stands for where the scheme has them.
        verify_token: The word by which the provider confirms the address, where its scheme has one.
    """

    name: str
    scheme: Scheme
    secrets: tuple[str, ...] = field(default=(), repr=False)
    event_id: Places | None = None
    event_type: Places | None = None
    body_bytes_max: int = BODY_BYTES_MAX
    lane: Lane | None = None
    verify_token: str | None = field(default=None, repr=False)
    handlers: tuple[Handler, ...] = ()

    def verify(self, request: WebhookRequest, now_s: float) -> Verified:
        """
        Check a request's signature and its time.

        Raises:
            SignatureError: It does not hold, or its time is too far off.
        """
        return self.scheme.verify(
            request,
            self.secrets if self.scheme.needs_secret else ("",),
            now_s,
            event_id=self.event_id,
            event_type=self.event_type,
        )

    def greet(self, request: WebhookRequest) -> Answer | None:
        """What answers a request that carries no event and no signature; None where it is none such."""
        return self.scheme.greet(request, self.verify_token)

    def handshake(self, request: WebhookRequest, verified: Verified) -> Answer | None:
        """What answers a verified request that carries no event; None where it carries one, to be stored."""
        secret = self.secrets[verified.secret_index] if self.secrets else ""
        return self.scheme.handshake(request, secret)

    def handlers_for(self, event_type: str | None) -> tuple[Handler, ...]:
        """The handlers that want an event of this type."""
        return tuple(handler for handler in self.handlers if handler.wants(event_type))


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)
