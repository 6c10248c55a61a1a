"""
The transport that hands e-mail to Resend's HTTP API, or to a server that speaks it.

The Idempotency-Key is the row's id and the body a function of the row, so within 24 hours a
repeated request sends nothing twice. Its batch call has one key for a whole array and is not used.

What its answers mean (https://resend.com/docs/api-reference/errors):

- 401, 403, 404, 405, 429 and names with `quota`: the transport pauses; nobody else's mail would
  fare better. 429 says for how long.
- 403 `validation_error` speaks of a sender's domain that is not verified: of the set-up, unless the
  account takes other mail. See _refused_sender.
- 409 has two meanings: the key came with another body (permanent), or its first request is still
  being worked on (temporary).
- Other 4xx speak of the e-mail: permanent. 408 and 5xx are temporary.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakSet

import aiohttp
import orjson

from postroom.email.address import Mailbox, quote_name
from postroom.email.message import OutgoingEmail
from postroom.email.mime import CheckedEmail, checked_row, message_id_of
from postroom.email.transports.base import Start
from postroom.email.transports.said import printable
from postroom.errors import PermanentFailure, SendError, TemporaryFailure, TransportDown, UncertainOutcome
from postroom.failpoints import reach
from postroom.retry_after import retry_after_s
from postroom.version import VERSION

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

BASE_URL = "https://api.resend.com"
ANSWER_BYTES_MAX = 64 * 1024
REFUSED_SENDER_TRIES = 5
"""A sender that is refused so often in a row is this e-mail's fault, and no longer holds up the others."""

_DOWN_STATUSES = frozenset({401, 402, 403, 404, 405, 429})
_SENDER_REFUSED = frozenset({"validation_error", "invalid_from_address", "invalid_to_address"})


class ResendTransport:
    """
    Resend over connections that are kept.

    Args:
        key: The API key; never shown.
        base_url: Where the API is, without a slash at its end.
        connections: How many requests may be under way at once.
    """

    def __init__(self, key: str, *, base_url: str = BASE_URL, connections: int = 10) -> None:
        self.name = "resend" if base_url == BASE_URL else f"resend+{base_url}"
        self._key = key
        self._url = f"{base_url}/emails"
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._accepted = False
        self._refused: tuple[UUID | None, int] = (None, 0)

    async def send(self, email: OutgoingEmail, start: Start) -> str:
        """
        Hand one e-mail over; see postroom.email.transports.base.Transport.

        A kept connection that the server has closed meanwhile is replaced once: the key makes
        that safe.
        """
        checked = await checked_row(email)
        body = orjson.dumps(_request(email, checked))
        handing = _Handing(start)
        answer = await self._post(body, email.id, handing)
        if answer is None:
            handing = _Handing(start)
            answer = await self._post(body, email.id, handing, last=True)
        assert answer is not None
        if (sent_id := answer.sent_id) is not None:
            self._accepted, self._refused = True, (None, 0)
            return f"{answer.status} {sent_id}"
        raise self._failure(email.id, answer)

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(
        self, body: bytes, row_id: UUID, handing: _Handing, *, last: bool = False
    ) -> _Answer | None:
        """One request; None where its connection had been kept for too long, and it may be repeated."""
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Idempotency-Key": str(row_id),
        }
        token = _HANDING.set(handing)
        try:
            request = self._opened().post(self._url, data=body, headers=headers, allow_redirects=False)
            async with request as response:
                answer = await _read(response)
            reach("resend.answered")
            return answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if handing.start_error is not None:
                raise handing.start_error from None
            text = self._without_key(str(error) or type(error).__name__)
            if not handing.handed_over:
                raise TransportDown(f"{self.name}: {text}") from None
            if handing.reused and not last and not isinstance(error, TimeoutError):
                return None
            raise UncertainOutcome(f"{self.name}: {text}, after the e-mail was handed over") from None
        finally:
            _HANDING.reset(token)

    def _opened(self) -> aiohttp.ClientSession:
        if self._closed:
            raise TransportDown(f"{self.name}: closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(limit=self._connections, keepalive_timeout=15.0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=60.0),
                headers={"User-Agent": f"postroom/{VERSION}"},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _failure(self, row_id: UUID, answer: _Answer) -> SendError:
        status = answer.status
        text = self._without_key(f"{status} {answer.said}")
        if status < 300:
            return UncertainOutcome(f"{text}: it answered without an id", code=status)
        if status == 403 and answer.error_name in _SENDER_REFUSED:
            return self._refused_sender(row_id, text)
        if status in _DOWN_STATUSES or "quota" in answer.error_name or status < 400:
            return TransportDown(f"{self.name}: {text}", code=status, retry_after_s=answer.retry_after_s)
        same_key_in_work = status == 409 and answer.error_name != "invalid_idempotent_request"
        if status >= 500 or status == 408 or same_key_in_work:
            return TemporaryFailure(text, code=status, retry_after_s=answer.retry_after_s)
        return PermanentFailure(text, code=status)

    def _refused_sender(self, row_id: UUID, text: str) -> SendError:
        """
        Whether a refused domain is the set-up's fault or one e-mail's.

        It is the e-mail's where another one was accepted since the last such refusal, or where it
        was refused REFUSED_SENDER_TRIES times in a row: a row with a sender of its own must not
        hold up all mail for ever, and a wrong set-up must not make all mail dead letters.
        """
        last_id, tries = self._refused
        tries = tries + 1 if last_id == row_id else 1
        self._refused = (row_id, tries)
        if self._accepted or tries >= REFUSED_SENDER_TRIES:
            self._accepted = False
            return PermanentFailure(text, code=403)
        return TransportDown(f"{self.name}: {text}", code=403)

    def _without_key(self, text: str) -> str:
        return printable(text.replace(self._key, "***") if self._key else text)


@dataclass(slots=True)
class _Handing:
    """How far one request came."""

    start: Start
    start_error: BaseException | None = None
    handed_over: bool = False
    reused: bool = False


_HANDING: ContextVar[_Handing] = ContextVar("postroom_resend_handing")


class _Connector(aiohttp.TCPConnector):
    """Starts the attempt once the connection stands, right before the request is written to it."""

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        handing = _HANDING.get()
        try:
            await handing.start()
            reach("resend.post.before")
        except BaseException as error:
            # aiohttp would wrap some errors; send() raises this one as it is.
            handing.start_error = error
            connection.release()
            raise
        protocol = connection.protocol
        handing.reused = protocol in _USED
        handing.handed_over = True
        if protocol is not None:
            _USED.add(protocol)
        return connection


_USED: WeakSet[object] = WeakSet()


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    sent_id: str | None
    error_name: str
    message: str
    retry_after_s: float | None

    @property
    def said(self) -> str:
        return f"{self.error_name}: {self.message}" if self.error_name else self.message


async def _read(response: aiohttp.ClientResponse) -> _Answer:
    """The answer, of which at most 64 KB are read; what is no JSON counts by its status alone."""
    try:
        content = await response.content.read(ANSWER_BYTES_MAX)
        while len(content) < ANSWER_BYTES_MAX and (more := await response.content.read(ANSWER_BYTES_MAX)):
            content += more
        read = orjson.loads(content)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        read = None
    found = read if isinstance(read, dict) else {}
    sent_id = found.get("id") if response.status < 300 else None
    return _Answer(
        status=response.status,
        sent_id=printable(str(sent_id)) if sent_id else None,
        error_name=str(found.get("name") or ""),
        message=str(found.get("message") or response.reason or "no message"),
        # Where it does not say it in so many words: the seconds until its window is over.
        retry_after_s=retry_after_s(
            response.headers.get("Retry-After") or response.headers.get("RateLimit-Reset")
        ),
    )


def _request(email: OutgoingEmail, checked: CheckedEmail) -> dict[str, object]:
    """The body, its keys always in one order: the same row gives the same bytes."""
    message_id = message_id_of(email, checked.sender)
    request: dict[str, object] = {
        "from": _written(checked.sender),
        "to": [checked.recipient.wire_address],
        "subject": checked.subject,
    }
    if checked.html.strip() or checked.text is None:
        request["html"] = checked.html
    if checked.text is not None:
        request["text"] = checked.text
    if checked.reply_to is not None:
        request["reply_to"] = _written(checked.reply_to)
    if checked.attachments:
        request["attachments"] = [
            {**file.document, "content_type": file.content_type} for file in checked.attachments
        ]
    request["headers"] = {"Message-ID": message_id, **checked.headers}
    return request


def _written(mailbox: Mailbox) -> str:
    if not mailbox.name:
        return mailbox.wire_address
    return f"{quote_name(mailbox.name)} <{mailbox.wire_address}>"
