"""What every page shares: who is asking, how it is drawn, and what is answered where something is wrong."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import wraps
from time import time
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, quote

import jinja2
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from postroom import log, wording
from postroom.dashboard import sessions
from postroom.dashboard.sessions import Session
from postroom.dashboard.throttle import Throttle
from postroom.database.audit import Actor
from postroom.database.keys import Key
from postroom.errors import DatabaseUnavailable, PostroomError
from postroom.room import Room
from postroom.version import VERSION

ROOT = "/dashboard"
TITLES = {"email": ("E-mail", "/emails"), "webhook": ("Webhooks", "/webhooks")}
"""By queue: what it is called, and where its rows are."""

FORM_BYTES_MAX = 1024 * 1024
FIELDS_MAX = 2_000

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

T = TypeVar("T")
Form = Mapping[str, str]
Page = Callable[[Request], Awaitable[Response]]

_log = log.get_logger()


class Keys(Protocol):
    """The keys that open the dashboard."""

    async def key_of(self, key: str) -> Key | None:
        """The key that this is; None where it is none."""
        ...

    async def keys(self) -> list[Key]:
        """Each key that is good at present."""
        ...


class Site:
    """The dashboard's state in one process."""

    def __init__(self, room: Room, keys: Keys) -> None:
        self.room = room
        self.keys = keys
        self.throttle = Throttle()
        self._working: set[asyncio.Task[Any]] = set()
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("postroom.dashboard"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "duration": wording.duration,
            "latency": wording.latency,
            "away": wording.away,
            "clock": wording.clock,
            "stamp": wording.stamp,
            "zone": wording.zone,
            "exact": wording.exact,
            "number": lambda number: f"{number:,}",
            "quote": lambda text: quote(str(text), safe=""),
            "commands": _commands,
        }
        self._templates.globals |= {"root": ROOT, "version": VERSION, "count_of": wording.count_of}

    def work(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """
        Do something that goes on when its page is answered; it ends with the process, or with its room.

        A PostroomError is told by what the work is about: a job's history, an action's page.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Break off what still goes on."""
        working = list(self._working)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, PostroomError):
            _log.error("dashboard.work_failed", error=type(error).__name__)

    def draw(self, template: str, session: Session | None, facts: Mapping[str, Any]) -> str:
        """A page as HTML."""
        now = datetime.now(UTC)
        return self._templates.get_template(template).render(session=session, **{"now": now, **facts})


class Problem(Exception):
    """
    A page that cannot be shown.

    Args:
        status: The HTTP status.
        text: For the person: what is wrong and what to do.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def site_of(request: Request) -> Site:
    """The dashboard of the application that serves this request."""
    site: Site = request.app.state.site
    return site


def session_of(request: Request) -> Session:
    """Who is asking, on a page behind the login."""
    session: Session = request.state.session
    return session


def actor_of(request: Request) -> Actor:
    """Who is asking, for the audit trail."""
    return Actor(key_of(request).called, "operator")


def key_of(request: Request) -> Key:
    """The key of who is asking, on a page behind the login."""
    key: Key = request.state.key
    return key


def page(show: Page) -> Page:
    """
    A page behind the login.

    Who is not logged in is led to the login and back. What would change something must bring the session's
    token, come from a page of ours, and be asked for by an operator.
    """
    return _behind_login(show, changes=True)


def page_for_viewers(show: Page) -> Page:
    """The same where a POST changes nothing but the session of who asks."""
    return _behind_login(show, changes=False)


def _behind_login(show: Page, *, changes: bool) -> Page:
    @wraps(show)
    async def shown(request: Request) -> Response:
        site = site_of(request)
        now = int(time())
        try:
            await site.room.open()
            keys = {key.key_hash: key for key in await site.keys.keys()}
            found = sessions.read(request.cookies.get(sessions.COOKIE, ""), keys, now)
            if found is None:
                return _to_login(request)
            session, key_hash = found
            request.state.session, request.state.key = session, keys[key_hash]
            if request.method not in ("GET", "HEAD"):
                await require_token(request, session)
                if changes and keys[key_hash].role != "operator":
                    raise Problem(403, "You look on with a viewer's key: only an operator may change this.")
            answer = await show(request)
        except Problem as error:
            return problem_page(request, error.status, error.text)
        except DatabaseUnavailable as error:
            request.state.facts["error"] = str(error)  # it names hosts: for the log only
            return problem_page(request, 503, "The database does not answer. This page comes back with it.")
        except PostroomError as error:
            return problem_page(request, 400, str(error))
        if now - session.used_at > sessions.RENEWED_AFTER_S:
            keep(request, answer, sessions.renew(session, now), key_hash)
        return answer

    return shown


def keep(request: Request, answer: Response, session: Session, key_hash: bytes) -> None:
    """Have the browser keep the session."""
    public_url = site_of(request).room.settings.public_url or ""
    answer.set_cookie(
        sessions.COOKIE,
        sessions.write(session, key_hash),
        max_age=session.ends_at - session.used_at,
        path=ROOT,
        secure=request.url.scheme == "https" or str(public_url).startswith("https:"),
        httponly=True,
        samesite="lax",  # strict would ask for the key again at each link in an alert
    )


async def require_token(request: Request, session: Session) -> None:
    """
    See that a change comes from a page of this session.

    Raises:
        Problem: It does not (403).
    """
    shown = (await form_of(request)).get("csrf_token", "")
    same_site = request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
    if not same_site or not _same(shown, session.csrf_token):
        raise Problem(
            403, "This form is not from a page of your session. Go back, load it again, and repeat it."
        )


async def form_of(request: Request) -> Form:
    """
    The fields of a form; of several with one name the last, see values_of.

    Raises:
        Problem: It is too large (413).
    """
    return dict(await _pairs(request))


async def values_of(request: Request, name: str) -> list[str]:
    """All values of one field."""
    return [value for field, value in await _pairs(request) if field == name]


def problem_page(request: Request, status: int, text: str) -> Response:
    """A page that says what is wrong."""
    session = getattr(request.state, "session", None)
    return html_answer(
        site_of(request).draw("problem.html", session, {"text": text, "status": status}), status
    )


def render(request: Request, template: str, *, status: int = 200, **facts: Any) -> Response:
    """A page for who is logged in."""
    facts = {"may_change": key_of(request).role == "operator", **facts}
    return html_answer(site_of(request).draw(template, session_of(request), facts), status)


def html_answer(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A page that may run and load nothing but our own files."""
    return Response(text, status, {"content-security-policy": POLICY, **(headers or {})}, "text/html")


def see(path: str) -> Response:
    """After a change: look there, by GET."""
    return RedirectResponse(ROOT + path, 303)


def local_path(path: str) -> str:
    """A path below the dashboard that somebody names to come back to; the overview in place of any other."""
    inside = path == ROOT or path.startswith((f"{ROOT}/", f"{ROOT}?"))
    clean = "\\" not in path and "//" not in path and path.isprintable()
    return path if inside and clean else ROOT


def _commands(text: str) -> Markup:
    """A text in which what stands in backquotes is shown as a command."""
    parts = text.split("`")
    return Markup().join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


async def _pairs(request: Request) -> list[tuple[str, str]]:
    body = bytearray()
    if hasattr(request.state, "form"):
        kept: list[tuple[str, str]] = request.state.form
        return kept
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            raise Problem(413, "That is more than a form may hold (1 MiB).")
    try:
        pairs = parse_qsl(
            body.decode(),
            keep_blank_values=True,
            max_num_fields=FIELDS_MAX,
            encoding="utf-8",
            errors="strict",
        )
    except (ValueError, UnicodeError):
        raise Problem(400, "The form could not be read.") from None
    request.state.form = pairs
    return pairs


def _to_login(request: Request) -> Response:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = f"{ROOT}/login" if request.method != "GET" else f"{ROOT}/login?to={quote(wanted, safe='')}"
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"hx-redirect": f"{ROOT}/login"})
    return RedirectResponse(target, 303)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
