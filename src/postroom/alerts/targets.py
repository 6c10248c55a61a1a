"""
Sending: by apprise, straight to its servers, or as a webhook. Not by the queue: it may be what is broken.

What a target says of a failure is shown with everything of its address taken out but the host: an address
holds passwords and tokens.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import time
from urllib.parse import unquote, urlsplit

import aiohttp
import orjson

from postroom.alerts.message import Message
from postroom.alerts.settings import Target
from postroom.errors import PostroomError
from postroom.webhooks.schemes.standard import StandardWebhooks

DEADLINE_S = 20.0
"""For one message to one target."""

SAID_CHARACTERS_MAX = 300


class NotTaken(PostroomError):
    """A target did not take a message; the text says why, and holds no secret."""


async def send(target: Target, message: Message) -> None:
    """
    Send one message to one target.

    Raises:
        NotTaken: It may be tried again.
    """
    try:
        async with asyncio.timeout(DEADLINE_S):
            if target.kind == "webhook":
                await _post(target, message)
            else:
                await asyncio.to_thread(_notify, target, message)
    except TimeoutError:
        raise NotTaken(f"no answer within {DEADLINE_S:g} s") from None


async def _post(target: Target, message: Message) -> None:
    body = orjson.dumps(message.document)
    headers = {"content-type": "application/json", "user-agent": "postroom"}
    if target.secret is not None:
        at = str(int(time()))
        headers["webhook-id"], headers["webhook-timestamp"] = message.id, at
        signed = b".".join((message.id.encode(), at.encode(), body))
        headers["webhook-signature"] = StandardWebhooks().signature(target.secret, signed)
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(target.url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            if not 200 <= response.status < 300:
                raise NotTaken(f"it answered {response.status}")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise NotTaken(without_secrets(str(error) or type(error).__name__, target)) from None


def _notify(target: Target, message: Message) -> None:
    try:
        import apprise
    except ImportError:
        raise NotTaken("it needs apprise: pip install 'postroom[alerts]'") from None

    kinds = {
        "fired": apprise.NotifyType.FAILURE,
        "repeated": apprise.NotifyType.WARNING,
        "over": apprise.NotifyType.SUCCESS,
        "test": apprise.NotifyType.INFO,
    }
    said: list[str] = []
    with _what_it_says(said):
        one = apprise.Apprise.instantiate(target.url, suppress_exceptions=True)
        if one is None:
            raise NotTaken(f"apprise cannot read its address, of kind {target.kind}: see its documentation")
        taken = one.notify(
            title=message.title,
            body=message.text,
            notify_type=kinds[message.kind],
            body_format=apprise.NotifyFormat.TEXT,
        )
    if not taken:
        raise NotTaken(without_secrets("; ".join(said) or "apprise does not say why", target))


@contextmanager
def _what_it_says(said: list[str]) -> Iterator[None]:
    """Collect apprise's warnings of this thread, and keep them from the log: they may hold an address."""
    logger = logging.getLogger("apprise")
    handler = _OfThisThread(said)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _OfThisThread(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and len(self._said) < 3:
            self._said.append(record.getMessage())


def without_secrets(text: str, target: Target) -> str:
    """A text in one line with nothing of the target's address in it but its scheme and host."""
    line = " ".join(text.split())
    for part in _parts_of(target.url):
        line = line.replace(part, "…")
    return line if len(line) <= SAID_CHARACTERS_MAX else f"{line[:SAID_CHARACTERS_MAX]}…"


def _parts_of(url: str) -> list[str]:
    """What may be a secret in an address, the longest first: all of its words but scheme, host and port."""
    try:
        split = urlsplit(url)
        host, port = split.hostname or "", str(split.port or "")
    except ValueError:
        host, port = "", ""
    words: set[str] = set()
    for written in (url, unquote(url)):
        rest = written.partition("://")[2]
        words |= {rest, *re.split(r"[/?&#]", rest), *re.split(r"[/?&#=:@,]", rest)}
    kept = {host, port, f"{host}:{port}", *host.split("."), ""}
    return sorted((word for word in words if word not in kept and len(word) > 2), key=len, reverse=True)
