"""
Reconciliation: what the provider has sent and what has arrived are compared, and the difference is stored.

An event that came through the door is known by its id, so it is a duplicate here; one that comes through
the door after it was stored here is a duplicate there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from postroom.database.connect import Database
from postroom.errors import ConfigError
from postroom.row_ids import new_row_id
from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.intake import Intake, NotStored
from postroom.webhooks.places import read_id, read_type
from postroom.webhooks.request import JSON, Headers, WebhookRequest
from postroom.webhooks.source import ALL_EVENTS, Handler, Source
from postroom.webhooks.store import WebhookStore
from postroom.webhooks.stripe_api import StripeApi

MARK = "Postroom-Reconciled"
"""The header of an event that came by the provider's list; its value says when."""

SINCE_MAX = timedelta(days=29)
"""An event is known for 30 days, and Stripe lists 30: at the edge, one that has arrived would be new."""

CLOCKS_APART_MAX = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """
    What a reconciliation found.

    Attributes:
        listed: How many events the provider has, of the types that count.
        missing: How many of them had never arrived; they are stored now.
        refused: How many more the database refused to store.
    """

    listed: int
    missing: int
    refused: int = 0


async def reconcile_stripe(
    database: Database,
    source: Source,
    api: StripeApi,
    since: datetime,
    *,
    events: tuple[str, ...] = ALL_EVENTS,
    report: Callable[[Reconciled], None] = lambda _so_far: None,
) -> Reconciled:
    """
    Store the events that Stripe has made since and that have never arrived.

    Its times have a resolution of one second: the whole second of `since` is read. What was stored before
    an error stays stored, and the next run begins anew.

    Args:
        since: At most SINCE_MAX ago. What was handled before postroom came, and never was in the queue,
            counts as missing.
        events: Patterns of the types that count, such as those that the endpoint has subscribed to.
        report: Takes what is found so far.

    Raises:
        ConfigError: The key is refused, or the source takes its ids from where the API has none.
        DatabaseUnavailable: Some are not known to be stored.
        PostroomError: Stripe gives no list.
    """
    in_queue = await _known_to_old_callers(database, source, since)
    counting = Handler("reconcile", events)
    intake = Intake(WebhookStore(database))
    found = Reconciled(0, 0)
    try:
        async for page in api.pages(int(since.timestamp())):
            came = [_incoming(source, event) for event in page]
            wanted = [event for event in came if counting.wants(event.event_type)]
            new = [event for event in wanted if event.event_id not in in_queue]
            kept = await asyncio.gather(*map(intake.keep, new), return_exceptions=True)
            found = _added(found, len(wanted), kept)
            report(found)
    finally:
        await intake.close()
    return found


async def _known_to_old_callers(database: Database, source: Source, since: datetime) -> set[str]:
    """The ids of events that an old caller has put into the queue: the door knows nothing of them."""
    rows = await database.fetch(
        """
        SELECT event.webhook_event_id
        FROM public.webhook_retry_queue AS event
        WHERE event.webhook_type = $1
            AND event.webhook_event_id IS NOT NULL
            AND event.created_at >= $2
            AND NOT EXISTS (
                SELECT 1
                FROM postroom.seen_webhooks AS seen
                WHERE seen.source = event.webhook_type AND seen.event_id = event.webhook_event_id
            )
        """,
        source.name,
        since - CLOCKS_APART_MAX,
        deadline_s=600.0,
    )
    return {row["webhook_event_id"] for row in rows}


def _incoming(source: Source, event: dict[str, Any]) -> IncomingEvent:
    """An event as if it had come through the door, but for its signature."""
    target = f"/webhooks/{source.name}"
    headers = Headers([("Content-Type", JSON), (MARK, datetime.now(UTC).isoformat(timespec="seconds"))])
    request = WebhookRequest("POST", f"http://localhost{target}", headers, json.dumps(event).encode())
    scheme = source.scheme
    event_id = read_id(scheme.event_id if source.event_id is None else source.event_id, request)
    if event_id is None:
        raise ConfigError(
            f"source {source.name} takes an event's id from where Stripe's API has none: see its event_id"
        )
    return IncomingEvent(
        id=new_row_id(),
        source=source.name,
        event_id=event_id,
        event_type=read_type(scheme.event_type if source.event_type is None else source.event_type, request),
        request=request,
        target=target,
        lane=source.lane.name_in(request) if source.lane else None,
        # The list's newest come first: where the lane has no order of its own, it is that of the making.
        lane_place=(source.lane.place_in(request) or str(event["created"])) if source.lane else None,
        lane_holds=source.lane is not None and source.lane.dead_letter == "hold",
    )


def _added(before: Reconciled, listed: int, kept: Iterable[bool | BaseException]) -> Reconciled:
    missing, refused = 0, 0
    for one in kept:
        if isinstance(one, NotStored):
            refused += 1
        elif isinstance(one, BaseException):
            raise one
        else:
            missing += one
    return Reconciled(before.listed + listed, before.missing + missing, before.refused + refused)
