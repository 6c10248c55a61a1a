"""What every request gets: a line in the log, headers that browsers obey, and an answer whatever happens."""

from __future__ import annotations

from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from postroom import log
from postroom.http.answers import error_answer

PATH_CHARACTERS_MAX = 200

_NO_SNIFFING = [(b"x-content-type-options", b"nosniff")]
_HEADERS = [
    *_NO_SNIFFING,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
# No browser comes here, and each header costs 2 us of the 100 that a provider's request takes.
_OF_PROVIDERS = "/webhooks/"
# Probes come every few seconds.
_QUIET = ("/healthz", "/readyz", "/metrics")

_log = log.get_logger()


class Outside:
    """
    Wraps the application.

    A route may put facts for the log into `request.state.facts`, such as an e-mail's id. Neither
    bodies nor headers nor the query are logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = monotonic()
        status = 0
        facts: dict[str, object] = scope.setdefault("state", {}).setdefault("facts", {})
        path = scope["path"][:PATH_CHARACTERS_MAX]
        added = _NO_SNIFFING if path.startswith(_OF_PROVIDERS) else _HEADERS

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message["headers"]}
                missing = [one for one in added if one[0] not in own]
                # A new list: an answer may be given again.
                message = {**message, "headers": [*message["headers"], *missing]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            _log.error("http.failed", path=path, error=_where(error))
            if not status:
                await error_answer(500, "internal error; the log says more")(
                    scope, receive, send_with_headers
                )
        say = _log.warning if status >= 500 else _log.debug if path in _QUIET else _log.info
        ms = round((monotonic() - began) * 1000, 1)
        say("http.request", method=scope["method"], path=path, status=status, ms=ms, **facts)


def _where(error: Exception) -> str:
    """The kind of an error and the line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"
