"""The way in and out: whoever shows a service key gets a session."""

from __future__ import annotations

from time import time

from starlette.requests import Request
from starlette.responses import Response

from postroom import log
from postroom.dashboard import sessions
from postroom.dashboard.site import (
    ROOT,
    Problem,
    form_of,
    html_answer,
    keep,
    local_path,
    page_for_viewers,
    problem_page,
    see,
    site_of,
)
from postroom.errors import DatabaseUnavailable

_log = log.get_logger()


async def login(request: Request) -> Response:
    """Ask for the key; on POST, look at it."""
    if request.method != "POST":
        return _form(request, to=request.query_params.get("to", ROOT))
    site = site_of(request)
    address = request.client.host if request.client is not None else ""
    try:
        if (wait_s := site.throttle.wait_s(address)) > 0:
            return _form(request, status=429, error=f"Too many tries: wait {wait_s:.0f} s.", wait_s=wait_s)
        form = await form_of(request)
        await site.room.open()
        key = await site.keys.key_of(form.get("key", "").strip())
    except Problem as error:
        return problem_page(request, error.status, error.text)
    except DatabaseUnavailable as error:
        request.state.facts["error"] = str(error)
        return problem_page(request, 503, "The database does not answer.")
    to = local_path(form.get("to", ROOT))
    if key is None:
        site.throttle.failed(address)
        _log.warning("dashboard.login_refused", address=address)
        return _form(request, status=401, error="That key is not valid.", to=to)
    session = sessions.begin(key.key_hash, int(time()))
    _log.info("dashboard.login", address=address, key_id=session.key_id, role=key.role)
    answer = see(to.removeprefix(ROOT))
    keep(request, answer, session, key.key_hash)
    return answer


@page_for_viewers
async def logout(request: Request) -> Response:  # noqa: ARG001
    """Forget the session, in this browser."""
    answer = see("/login")
    answer.delete_cookie(sessions.COOKIE, path=ROOT)
    return answer


def _form(
    request: Request, *, status: int = 200, error: str | None = None, to: str = ROOT, wait_s: float = 0
) -> Response:
    settings = site_of(request).room.settings
    where = "service-key in its data folder" if settings.database_url is None else "POSTROOM_SERVICE_KEY"
    facts = {"error": error, "to": local_path(to), "where": where}
    headers = {"retry-after": f"{wait_s:.0f}"} if wait_s else None
    return html_answer(site_of(request).draw("login.html", None, facts), status, headers)
