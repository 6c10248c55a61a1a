"""A webhook event: on its way in, and as its handlers get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from postroom.webhooks.request import Headers, WebhookRequest, parse_json


@dataclass(frozen=True)
class IncomingEvent:
    """
    What the door stores: a request whose signature holds.

    Attributes:
        id: The row's, made by the door: a call whose answer was lost is repeated with it.
        event_id: The provider's; None where it gives none, and then it is never taken for a duplicate.
        target: Path and query of the request.
        lane: Events of one lane are handled one after the other.
        lane_place: The provider's order in the lane, a number as text; None stands for the order of arrival.
        lane_holds: Whether a dead letter holds those behind it.
    """

    id: UUID
    source: str
    event_id: str | None
    event_type: str | None
    request: WebhookRequest = field(repr=False)
    target: str
    lane: str | None = None
    lane_place: str | None = None
    lane_holds: bool = False

    @property
    def size_bytes(self) -> int:
        """What it takes while it waits, about."""
        return len(self.request.body) + 2_000

    def payload_text(self) -> str | None:
        """
        The body as JSON: as it came, or a form as an object; None where it is neither.

        Whether jsonb can hold it is for the database to say.
        """
        body = self.request.body
        if self.request.body_json is not None or body.strip() == b"null":
            try:
                return body.decode() if b"\0" not in body else None
            except UnicodeDecodeError:
                return None
        return _form_as_json(self.request.form)


def _form_as_json(fields: tuple[tuple[str, str], ...]) -> str | None:
    if not fields:
        return None
    collected: dict[str, Any] = {}
    for name, value in fields:
        if name not in collected:
            collected[name] = value
        elif isinstance(collected[name], list):
            collected[name].append(value)
        else:
            collected[name] = [collected[name], value]
    try:
        return orjson.dumps(collected).decode()
    except orjson.JSONEncodeError:  # bytes that are no UTF-8
        return None


def headers_object(headers: Headers) -> str:
    """Headers as old callers read them: names in lower case, repeated ones joined."""
    joined = {name: ", ".join(values) for name, values in headers.by_name().items()}
    return orjson.dumps(joined).decode()


def headers_list(headers: Headers) -> str:
    """Headers as they came: [[name, value], …]."""
    return orjson.dumps(list(headers)).decode()


@dataclass(frozen=True)
class Event:
    """
    What a handler gets.

    Attributes:
        id: The row's, the same at every attempt.
        source: As in POST /webhooks/SOURCE.
        event_id: The provider's, where it gives one.
        type: The provider's, such as `checkout.session.completed`.
        payload: The body as JSON; a form as a dictionary; {"_raw": True} where it is neither.
        body: The bytes as they came.
        headers: Name to value, in any case.
        attempt: 1 at the first.
        method, target: How the provider called, and which path and query; empty in rows of old callers.
    """

    id: UUID
    source: str
    event_id: str | None
    type: str | None
    payload: Any = field(repr=False)
    body: bytes = field(repr=False)
    headers: Headers
    received_at: datetime | None
    attempt: int = 1
    method: str = ""
    target: str = ""

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Event:
        """
        The event of a claimed row.

        A row that an old caller wrote has no request: its payload stands for the body.
        """
        payload = parse_json(row["payload"].encode()) if row["payload"] is not None else None
        fields = orjson.loads(row["raw_headers"]) if row["raw_headers"] else _fields(row["headers"])
        body = row["body"]
        return cls(
            id=row["id"],
            source=row["webhook_type"],
            event_id=row["webhook_event_id"],
            type=row["event_type"],
            payload=payload,
            body=(row["payload"] or "").encode() if body is None else body,
            headers=Headers((name, value) for name, value in fields),
            received_at=row["created_at"],
            attempt=row["attempts"] + 1,
            method=row["method"] or "",
            target=row["target"] or "",
        )


def _fields(headers: str | None) -> list[tuple[str, str]]:
    found = parse_json(headers.encode()) if headers else None
    return [(name, str(value)) for name, value in found.items()] if isinstance(found, dict) else []
