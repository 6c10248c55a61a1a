"""
Stripe's list of events, as its API gives it: newest first, page by page, for the last 30 days.

Source: https://docs.stripe.com/api/events/list, https://docs.stripe.com/api/pagination
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import aiohttp

from postroom.errors import ConfigError, PostroomError
from postroom.retry_after import retry_after_s
from postroom.settings_sources import variable
from postroom.version import VERSION
from postroom.webhooks.request import parse_json

PAGE_EVENTS = 100
"""What Stripe gives at most at once."""

PAGE_BYTES_MAX = 64 * 1024 * 1024
TRIES_MAX = 6
WAIT_S_MAX = 60.0


class StripeApi:
    """
    Lists a Stripe account's events.

    Args:
        url: Without /v1.
        key: sk_…, or rk_… that may read events.
        first_wait_s: After a page that could not be had, where Stripe names no time; then twice as long each.
    """

    def __init__(self, url: str, key: str, *, first_wait_s: float = 1.0) -> None:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"{variable('stripe_api_key')} is no API key: one begins with sk_ or rk_")
        self._url = f"{url}/v1/events"
        self._key = key
        self._first_wait_s = first_wait_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=120.0, sock_connect=30.0, sock_read=60.0),
            headers={"Authorization": f"Bearer {self._key}", "User-Agent": f"postroom/{VERSION}"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def pages(self, created_s: int) -> AsyncIterator[list[dict[str, Any]]]:
        """
        The events that were made at this second or later, newest first.

        Raises:
            ConfigError: The key is refused.
            PostroomError: Stripe gives no list, also after several tries.
        """
        after: str | None = None
        while True:
            page, more = await self._page(created_s, after)
            if page:
                yield page
            if not more:
                return
            after = page[-1]["id"]

    async def _page(self, created_s: int, after: str | None) -> tuple[list[dict[str, Any]], bool]:
        wait_s, why = self._first_wait_s, ""
        for tries_left in reversed(range(TRIES_MAX)):
            asked_wait_s: float | None = None
            try:
                status, asked, body = await self._get(created_s, after)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if status == 200 and (found := _read_page(body, after)) is not None:
                    return found
                why = "HTTP 200 with what is no page of events" if status == 200 else self._said(status, body)
                if status in (401, 403):
                    raise ConfigError(f"Stripe refuses the key in {variable('stripe_api_key')}: {why}")
                if status < 500 and status not in (200, 408, 409, 429):
                    raise PostroomError(f"Stripe refuses to list its events: {why}")
                asked_wait_s = retry_after_s(asked)
            if tries_left:
                await asyncio.sleep(min(wait_s if asked_wait_s is None else asked_wait_s, WAIT_S_MAX))
                wait_s *= 2
        raise PostroomError(
            f"Stripe's list of events could not be had in {TRIES_MAX} tries: {why}; run it again"
        )

    async def _get(self, created_s: int, after: str | None) -> tuple[int, str | None, bytes]:
        assert self._session is not None, "it is opened by async with"
        query = {"created[gte]": str(created_s), "limit": str(PAGE_EVENTS)}
        if after is not None:
            query["starting_after"] = after
        async with self._session.get(self._url, params=query, allow_redirects=False) as response:
            body = bytearray()
            async for part in response.content.iter_chunked(1 << 18):
                body += part
                if len(body) > PAGE_BYTES_MAX:
                    raise PostroomError(f"a page of Stripe's events is larger than {PAGE_BYTES_MAX:,} bytes")
            return response.status, response.headers.get("Retry-After"), bytes(body)

    def _said(self, status: int, body: bytes) -> str:
        """The status and Stripe's message, without the key."""
        found = parse_json(body)
        error = found.get("error") if isinstance(found, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        text = f"HTTP {status} {message if isinstance(message, str) else ''}".strip()
        return " ".join(text.replace(self._key, "…").split())[:300]


def _read_page(body: bytes, after: str | None) -> tuple[list[dict[str, Any]], bool] | None:
    """The events of a page, and whether there are more; None where it is none, or the one before again."""
    found = parse_json(body)
    events = found.get("data") if isinstance(found, dict) else None
    more = found.get("has_more") if isinstance(found, dict) else None
    if not isinstance(events, list) or not isinstance(more, bool) or not all(map(_is_event, events)):
        return None
    if more and (not events or any(event["id"] == after for event in events)):
        return None  # it would go round for ever
    return events, more


def _is_event(found: object) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("id"), str)
        and bool(found["id"])
        and isinstance(found.get("created"), int)
    )
